// Haar analysis on CPU: an image to its bands. Of one channel, of even sizes, it computes
//
//   for (i = 0; i < h / 2; ++i)
//     for (j = 0; j < w / 2; ++j) {
//       a = x[2 * i][2 * j], b = x[2 * i][2 * j + 1];
//       c = x[2 * i + 1][2 * j], d = x[2 * i + 1][2 * j + 1];
//       low[i][j] = k.low * (a + b + c + d);
//       high_v[i][j] = k.v * (a + b - c - d) + k.shift;
//       high_h[i][j] = k.h * (a - b + c - d) + k.shift;
//       high_d[i][j] = k.d * (a - b - c + d) + k.shift;
//     }
//
// with the high bands side by side or added into one. An odd size has one more row or column, which
// repeats an earlier one or is zero.
//
// Arithmetic is cheap next to reading the image and writing the bands once, so what matters is how
// memory is walked. The strides choose one of three ways:
//
//   rows    columns are side by side (NCHW): a vector load brings a b a b ..., load2 sorts two of
//           them into a a ... and b b ..., and the loop runs on whole vectors of cells;
//   pixels  channels are side by side (channels_last): a vector holds channels of one pixel, and
//           the loop runs on them as it stands;
//   cells   any strides, and the borders of odd sizes: the loop as it stands, value by value.
#include <cstdint>

#include "../parallel.h"
#include "cells.h"
#include "haar.h"

namespace srk::SRK_ISA {
namespace {

// Writes the bands of a cell, or of the cell's channels that L takes at a time.
template <class L, class F, class T = typename L::T>
SRK_HD void write_bands(const HaarArguments& a, const Factors<F>& k, const Band& at,
                        int64_t step_low, int64_t step_high, T s, T v, T h, T d) {
  using S = typename L::S;
  const int64_t low_c = a.low_stride.c, high_c = a.high_stride.c;
  if (a.low) store_apart<L>(static_cast<S*>(a.low) + at.low + step_low, low_c, s * k.low);
  if (a.high) {
    S* high = static_cast<S*>(a.high) + step_high;
    if (a.plan.sum) {
      store_apart<L>(high + at.v, high_c, v * k.v + h * k.h + d * k.d + k.shift);
    } else {
      store_apart<L>(high + at.v, high_c, v * k.v + k.shift);
      store_apart<L>(high + at.h, high_c, h * k.h + k.shift);
      store_apart<L>(high + at.d, high_c, d * k.d + k.shift);
    }
  }
}

// One cell of one channel, any strides; beyond the image as the padding has it.
template <class S>
void analysis_cell(const HaarArguments& a, const Factors<typename Simd<S>::Scalar>& k, int64_t n,
                   int64_t c, int64_t row, int64_t column) {
  using T = typename Simd<S>::Scalar;
  const S* x = static_cast<const S*>(a.x) + n * a.x_stride.n + c * a.x_stride.c;
  const int64_t bottom = padded_index(2 * row + 1, a.shape.h, a.pad);
  const int64_t right = padded_index(2 * column + 1, a.shape.w, a.pad);
  auto value = [&](int64_t i, int64_t j) {
    return i < 0 || j < 0 ? T(0) : Simd<S>::get(x + i * a.x_stride.h + j * a.x_stride.w);
  };
  T s, v, h, d;
  butterfly(value(2 * row, 2 * column), value(2 * row, right), value(bottom, 2 * column),
            value(bottom, right), s, v, h, d);
  write_bands<One<S>>(a, k, band_offset(a, n, c, row), column * a.low_stride.w,
                      column * a.high_stride.w, s, v, h, d);
}

// Two contiguous input rows to one contiguous row of each band; kLow, kHigh: which are wanted.
template <class S, bool kLow, bool kHigh>
void analysis_row(const HaarArguments& a, const Factors<typename Simd<S>::Scalar>& k, const S* top,
                  const S* bottom, int64_t cells, const Band& at) {
  using V = typename Simd<S>::Vector;
  constexpr int N = lanes<V>();
  S* low = static_cast<S*>(a.low) + at.low;
  S* high = static_cast<S*>(a.high);
  const bool sum = a.plan.sum;
  struct Bands {
    V low, v, h, d;
  };
  const auto bands = [&](int64_t i) {
    V p, q, r, t, s, v, h, d;
    Simd<S>::load2(top + 2 * i, p, q);
    Simd<S>::load2(bottom + 2 * i, r, t);
    butterfly(p, q, r, t, s, v, h, d);
    if (sum) return Bands{s * k.low, v * k.v + h * k.h + d * k.d + k.shift, {}, {}};
    return Bands{s * k.low, v * k.v + k.shift, h * k.h + k.shift, d * k.d + k.shift};
  };
  const int64_t next = 2 * (bottom - top);  // the next two rows
  int64_t i = 0;
  for (; i + 2 * N <= cells; i += 2 * N) {
    fetch_ahead<4 * N * sizeof(S)>(top + 2 * i + next);
    fetch_ahead<4 * N * sizeof(S)>(bottom + 2 * i + next);
    const Bands x = bands(i), y = bands(i + N);
    if (kLow) Simd<S>::store_two(low + i, x.low, y.low);
    if (!kHigh) continue;
    Simd<S>::store_two(high + at.v + i, x.v, y.v);
    if (sum) continue;
    Simd<S>::store_two(high + at.h + i, x.h, y.h);
    Simd<S>::store_two(high + at.d + i, x.d, y.d);
  }
  if (i + N <= cells) {
    const Bands x = bands(i);
    if (kLow) Simd<S>::store(low + i, x.low);
    if (kHigh) Simd<S>::store(high + at.v + i, x.v);
    if (kHigh && !sum) {
      Simd<S>::store(high + at.h + i, x.h);
      Simd<S>::store(high + at.d + i, x.d);
    }
    i += N;
  }
  for (; i < cells; ++i) {
    typename Simd<S>::Scalar s, v, h, d;
    butterfly(Simd<S>::get(top + 2 * i), Simd<S>::get(top + 2 * i + 1),
              Simd<S>::get(bottom + 2 * i), Simd<S>::get(bottom + 2 * i + 1), s, v, h, d);
    write_bands<One<S>>(a, k, at, i, i, s, v, h, d);
  }
}

// Two input rows to one row of each band, channels contiguous in the input.
template <class S>
void analysis_pixels(const HaarArguments& a, const Factors<typename Simd<S>::Scalar>& k,
                     const S* top, const S* bottom, int64_t cells, const Band& at) {
  const int64_t right = a.x_stride.w, next = 2 * (bottom - top);  // the next two rows
  for_each_channels<S>(cells, a.shape.c, right > 0, [&](auto some, int64_t i, int64_t c) {
    using L = decltype(some);
    const S *p = top + 2 * i * right + c, *q = bottom + 2 * i * right + c;
    if (L::kCount == 3) {
      fetch_ahead<1>(p + next);
      fetch_ahead<1>(q + next);
    }
    typename L::T s, v, h, d;
    butterfly(L::load(p), L::load(p + right), L::load(q), L::load(q + right), s, v, h, d);
    write_bands<L>(a, k, at, i * a.low_stride.w + c * a.low_stride.c,
                   i * a.high_stride.w + c * a.high_stride.c, s, v, h, d);
  });
}

template <class S>
void analysis(const HaarArguments& a) {
  const Factors<typename Simd<S>::Scalar> k(a.plan);
  const int64_t rows = (a.shape.h + 1) / 2, columns = (a.shape.w + 1) / 2;
  const int64_t whole_rows = a.shape.h / 2, whole_columns = a.shape.w / 2;
  const S* x = static_cast<const S*>(a.x);
  const bool contiguous_rows =
      a.x_stride.w == 1 && (!a.low || a.low_stride.w == 1) && (!a.high || a.high_stride.w == 1);
  const bool contiguous_pixels = a.x_stride.c == 1 && a.shape.c > 1;

  if (contiguous_rows || !contiguous_pixels) {
    const auto row_kernel = !a.low   ? analysis_row<S, false, true>
                            : a.high ? analysis_row<S, true, true>
                                     : analysis_row<S, true, false>;
    parallel_ranges(
        a.shape.n * a.shape.c * rows, 1 + kGrainValues / (4 * columns), a.launch.threads,
        [&](int64_t begin, int64_t end) {
          int64_t row = begin % rows, plane = begin / rows, c = plane % a.shape.c,
                  n = plane / a.shape.c;
          for (int64_t i = begin; i < end; ++i) {
            int64_t column = 0;
            if (contiguous_rows && row < whole_rows) {
              const S* top = x + n * a.x_stride.n + c * a.x_stride.c + 2 * row * a.x_stride.h;
              row_kernel(a, k, top, top + a.x_stride.h, whole_columns, band_offset(a, n, c, row));
              column = whole_columns;
            }
            for (; column < columns; ++column) analysis_cell<S>(a, k, n, c, row, column);
            if (++row == rows) {
              row = 0;
              if (++c == a.shape.c) c = 0, ++n;
            }
          }
        });
    return;
  }
  parallel_ranges(a.shape.n * rows, 1 + kGrainValues / (4 * columns * a.shape.c), a.launch.threads,
                  [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) {
                      const int64_t n = i / rows, row = i % rows;
                      int64_t column = 0;
                      if (row < whole_rows) {
                        const S* top = x + n * a.x_stride.n + 2 * row * a.x_stride.h;
                        analysis_pixels(a, k, top, top + a.x_stride.h, whole_columns,
                                        band_offset(a, n, 0, row));
                        column = whole_columns;
                      }
                      for (; column < columns; ++column)
                        for (int64_t c = 0; c < a.shape.c; ++c)
                          analysis_cell<S>(a, k, n, c, row, column);
                    }
                  });
}

}  // namespace

void haar_analysis(const HaarArguments& args) {
  switch (args.dtype) {
    case DType::f32:
      return analysis<float>(args);
    case DType::bf16:
      return analysis<bf16>(args);
    case DType::f16:
      return analysis<f16>(args);
    case DType::f64:
      return analysis<double>(args);
  }
}

}  // namespace srk::SRK_ISA
