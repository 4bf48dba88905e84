// Weighted losses on CPU, forward. With rho what the loss charges for a difference (penalty.h) it
// computes
//
//   for (n, c, y, x) {
//     w = resized(map)[n][c][y][x];              // 1 without a map
//     loss += w * rho(input[n][c][y][x] - target[n][c][y][x]);
//     weights += w;
//   }
//   loss /= N * C * H * W;                       // or weights, or nothing
//
// and without a reduction writes each term instead.
//
// 1. Cut the images into tiles, which the threads share out (tiles.h).
// 2. Resize the map for a tile, once for all its channels (resize.h).
// 3. Sum each run of the tile in vectors (runs.h), keeping the signs if they are asked for
//    (signs.h).
// 4. Add up the tiles' sums, in order and in double.
#pragma once
#include "../parallel.h"
#include "resize.h"
#include "runs.h"
#include "signs.h"
#include "tiles.h"

namespace srk::SRK_ISA {
namespace {

template <class F>
double total(const F* values, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += double(values[i]);
  return sum;
}

template <class F>
void forward(const WeightedLossArguments& a) {
  const Tiling t = tiling(a);
  const Runs<F> run = runs(a.kind, a.input.dtype, a.target.dtype, F(0));
  const F parameter = F(a.parameter);
  const bool none = a.reduction == Reduction::none;
  Buffer<double> losses(t.tiles), weights(a.statistics ? t.tiles : 1);
  parallel_ranges(t.tiles, grain(t), a.launch.threads, [&](int64_t begin, int64_t end) {
    Buffer<F> scratch(none ? t.rows * t.row_elements : 1);
    ResizedWeight<F> resized(a, t);
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = tile_at(a, t, index);
      double loss = 0, weight = 0;
      const F* w = nullptr;
      for (int64_t c = tile.first_channel; c < tile.last_channel; ++c) {
        if (a.weight.data && (c == tile.first_channel || a.weight_shape.c > 1)) {
          w = static_cast<const F*>(
              resized.tile(tile.n, c, tile.first_row, tile.rows, F(1), run_blend<F>));
          if (a.statistics) {
            const int64_t sharing =
                a.weight_shape.c > 1 || t.pixels ? 1 : tile.last_channel - tile.first_channel;
            weight += double(sharing) * total(w, tile.rows * t.row_elements);
          }
        }
        for_each_run(t, tile, c, [&](int64_t channel, int64_t row, int64_t from, int64_t size) {
          const void* x = address(a.input, offset(a.input, tile.n, channel, row));
          const void* y = address(a.target, offset(a.target, tile.n, channel, row));
          if (!none) {
            const F* weights = w ? w + from : nullptr;
            if constexpr (sizeof(F) == sizeof(float)) {
              if (a.signs) {
                uint32_t* signs = signs_of(a, t.pixels, tile.n, channel, row);
                loss += signed_sum(a.input.dtype, a.target.dtype)(x, y, weights, size, signs);
                return;
              }
            }
            loss += run.sum(x, y, weights, size, parameter);
            return;
          }
          run.penalty(x, y, scratch.data, size, parameter);
          if (w)
            for (int64_t i = 0; i < size; ++i) scratch[i] *= w[from + i];
          write(a.out.dtype, const_cast<void*>(address(a.out, offset(a.out, tile.n, channel, row))),
                scratch.data, size);
        });
      }
      losses[index] = loss;
      if (a.statistics) weights[index] = weight;
    }
  });
  if (none) return;
  double value = total(losses.data, t.tiles);
  if (a.statistics) {
    const double sum = total(weights.data, t.tiles);
    value /= sum;
    F* statistics = static_cast<F*>(a.statistics);
    statistics[0] = F(value);
    statistics[1] = F(sum);
  } else if (a.reduction == Reduction::mean) {
    value /= double(a.shape.n * a.shape.c * a.shape.h * a.shape.w);
  }
  write(a.out.dtype, a.out.data, &value, 1);
}

}  // namespace
}  // namespace srk::SRK_ISA
