// Weighted losses on CPU, backward to the map: the adjoint of its resize. With low, high, lambda
// the rows of the map around the image's row y, left, right, share the columns around x (resize.h),
// and g the loss's cotangent over its divisor, it computes
//
//   for (n, c, y, x) {
//     r = g * (rho(input[n][c][y][x] - target[n][c][y][x]) - mean);
//     grad[low][left] += (1 - lambda) * (1 - share) * r;
//     grad[low][right] += (1 - lambda) * share * r;
//     grad[high][left] += lambda * (1 - share) * r;
//     grad[high][right] += lambda * share * r;
//   }
//
// for each map the images and channels that share it. `mean` is the loss where the sum of weights
// is its divisor, for that depends on the weights too, and 0 otherwise.
//
// Threads that add to the same cell would have to take turns. So a task owns a band of the map's
// rows, reads every row of the image that reaches it and skips the rest. Rows between two bands are
// read twice; nothing is shared, and the order of the sums is fixed.
//
// 1. For a row of the image, add up the residuals of all images and channels that share the map.
// 2. Gather this row in the map's columns.
// 3. Add it to the map's two rows, as far as they are in the band.
// 4. After the last row, write the band.
#pragma once
#include "../buffer.h"
#include "../parallel.h"
#include "runs.h"
#include "tiles.h"

namespace srk::SRK_ISA {
namespace {

template <class F>
void gradient_of_weight(const WeightedLossArguments& a, F scale) {
  const Tiling t = tiling(a);
  const Runs<F> run = runs(a.kind, a.input.dtype, a.target.dtype, F(0));
  const F parameter = F(a.parameter);
  const Resize<F> vertical(a.weight_shape.h, a.shape.h, a.resize),
      horizontal(a.weight_shape.w, a.shape.w, a.resize);
  const bool none = a.reduction == Reduction::none;
  const F mean = a.statistics ? static_cast<const F*>(a.statistics)[0] : F(0);
  const int64_t band = a.weight_shape.h < 8 ? a.weight_shape.h : 8;
  const int64_t bands = (a.weight_shape.h + band - 1) / band;
  // An image of no elements has no address to read; its sums are empty.
  const bool empty = a.shape.n * a.shape.c == 0;
  const int64_t n_each = empty                  ? 0
                         : a.weight_shape.n > 1 ? 1
                                                : a.shape.n,
                c_each = a.weight_shape.c > 1 ? 1 : a.shape.c;

  parallel_ranges(
      a.weight_shape.n * a.weight_shape.c * bands, 1, a.launch.threads,
      [&](int64_t begin, int64_t end) {
        Buffer<int64_t> left(a.shape.w), right(a.shape.w);
        Buffer<F> share(a.shape.w), run_values(t.row_elements), run_grad(t.row_elements);
        Buffer<double> row_sum(a.shape.w), sums(band * a.weight_shape.w),
            gathered(a.weight_shape.w);
        for (int64_t x = 0; x < a.shape.w; ++x) horizontal.source(x, left[x], right[x], share[x]);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t first = task % bands * band, plane = task / bands;
          const int64_t wc = plane % a.weight_shape.c, wn = plane / a.weight_shape.c;
          const int64_t last = first + band < a.weight_shape.h ? first + band : a.weight_shape.h;
          for (int64_t i = 0; i < (last - first) * a.weight_shape.w; ++i) sums[i] = 0;
          for (int64_t y = 0; y < a.shape.h; ++y) {
            int64_t low, high;
            F lambda;
            vertical.source(y, low, high, lambda);
            if (high < first) continue;
            if (low >= last) break;
            // 1. Add up the residuals of the images and channels that share the map.
            for (int64_t x = 0; x < a.shape.w; ++x) row_sum[x] = 0;
            for (int64_t n = wn; n < wn + n_each; ++n) {
              // In planes a run is one channel's row; in pixels it is a row of all channels.
              const int64_t first_run = t.pixels ? 0 : wc, runs_here = t.pixels ? 1 : c_each;
              for (int64_t c = first_run; c < first_run + runs_here; ++c) {
                run.penalty(address(a.input, offset(a.input, n, c, y)),
                            address(a.target, offset(a.target, n, c, y)), run_values.data,
                            t.row_elements, parameter);
                if (a.statistics)
                  for (int64_t i = 0; i < t.row_elements; ++i) run_values[i] -= mean;
                if (none) {
                  read(a.grad.dtype, address(a.grad, offset(a.grad, n, c, y)), run_grad.data,
                       t.row_elements);
                  for (int64_t i = 0; i < t.row_elements; ++i) run_values[i] *= run_grad[i];
                }
                if (!t.pixels) {
                  for (int64_t x = 0; x < a.shape.w; ++x) row_sum[x] += double(run_values[x]);
                } else {
                  for (int64_t x = 0; x < a.shape.w; ++x)
                    for (int64_t k = 0; k < c_each; ++k)
                      row_sum[x] +=
                          double(run_values[x * a.shape.c + (a.weight_shape.c > 1 ? wc : k)]);
                }
              }
            }
            // 2. Gather them in the map's columns. At the edges both are one, which takes it whole.
            for (int64_t i = 0; i < a.weight_shape.w; ++i) gathered[i] = 0;
            for (int64_t x = 0; x < a.shape.w; ++x) {
              const bool one = left[x] == right[x];
              gathered[left[x]] += one ? row_sum[x] : double(F(1) - share[x]) * row_sum[x];
              if (!one) gathered[right[x]] += double(share[x]) * row_sum[x];
            }
            // 3. Add them to the map's two rows, likewise.
            for (int64_t i = 0; i < a.weight_shape.w; ++i) {
              if (low >= first)
                sums[(low - first) * a.weight_shape.w + i] +=
                    low == high ? gathered[i] : double(F(1) - lambda) * gathered[i];
              if (high < last && low != high)
                sums[(high - first) * a.weight_shape.w + i] += double(lambda) * gathered[i];
            }
          }
          // 4. Write the band.
          for (int64_t row = first; row < last; ++row)
            for (int64_t i = 0; i < a.weight_shape.w; ++i)
              static_cast<F*>(a.grad_weight.data)[offset(a.grad_weight, wn, wc, row) +
                                                  i * a.grad_weight.stride.w] =
                  F(double(scale) * sums[(row - first) * a.weight_shape.w + i]);
        }
      });
}

}  // namespace
}  // namespace srk::SRK_ISA
