// Strided: any layout, odd sizes. One thread takes one cell (i, j) of one channel:
//
//   for (r = 0; r < 2; ++r)
//     for (q = 0; q < 2; ++q)
//       value[r][q] = x[n][c][2 * i + r][2 * j + q];   // beyond an odd size, what padding repeats
//   band[..] = analyse(value[0][0], value[0][1], value[1][0], value[1][1]);
//   low[n][c][i][j] = band[0], high_v[n][c][i][j] = band[1], ...;
//
// Synthesis does the same backwards. At an odd size the last cell's second row (or column) lies
// beyond the image, and what it receives belongs to the row that padding repeated. The thread that
// owns that row computes the last cell, too, so that no value has two writers.
#pragma once
#include "cells.h"

namespace srk::cuda {
namespace {

// Neighbouring threads take neighbouring channels where those are closer in memory than columns.
__device__ __forceinline__ Position strided_position(int64_t index, const Shape& cells,
                                                     bool channels_first) {
  if (!channels_first) return position(index, cells);
  Position p;
  index = divide(index, cells.c, p.c);
  index = divide(index, cells.w, p.j);
  p.n = divide(index, cells.h, p.i);
  return p;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    haar_analysis_strided(Image<const T> x, Image<T> low, High<T> high, Shape shape, Shape cells,
                          Pad pad, bool channels_first, Factors<typename Compute<T>::type> k) {
  using A = typename Compute<T>::type;
  const int64_t index = thread_index();
  if (index >= cells.n * cells.c * cells.h * cells.w) return;
  const Position p = strided_position(index, cells, channels_first);

  const int64_t row[2] = {2 * p.i, padded_index(2 * p.i + 1, shape.h, pad)};
  const int64_t column[2] = {2 * p.j, padded_index(2 * p.j + 1, shape.w, pad)};
  A value[2][2];
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int q = 0; q < 2; ++q)
      value[r][q] =
          row[r] < 0 || column[q] < 0 ? A(0) : A(widen(*x.at(p.n, p.c, row[r], column[q])));
  analyse(k, value[0][0], value[0][1], value[1][0], value[1][1]);
  if (low.data) *low.at(p.n, p.c, p.i, p.j) = narrow<T>(value[0][0]);
  if (high.data) {
    T* to = high.at(p.n, p.c, p.i, p.j);
    to[k.slot_v * high.stride.band] = narrow<T>(value[0][1]);
    if (!k.sum) {
      to[k.slot_h * high.stride.band] = narrow<T>(value[1][0]);
      to[k.slot_d * high.stride.band] = narrow<T>(value[1][1]);
    }
  }
}

// The four samples that cell (i, j) gives, before folding.
template <class T, class A>
__device__ __forceinline__ void cell_samples(const Image<const T>& low, const High<const T>& high,
                                             const Factors<A>& k, int64_t n, int64_t c, int64_t i,
                                             int64_t j, A (&value)[2][2]) {
  value[0][0] = low.data ? A(widen(*low.at(n, c, i, j))) : A(0);
  value[0][1] = value[1][0] = value[1][1] = missing_band(k);
  if (high.data) {
    const T* from = high.at(n, c, i, j);
    value[0][1] = widen(from[k.slot_v * high.stride.band]);
    value[1][0] = widen(from[k.slot_h * high.stride.band]);
    value[1][1] = widen(from[k.slot_d * high.stride.band]);
  }
  synthesise(k, value[0][0], value[0][1], value[1][0], value[1][1]);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    haar_synthesis_strided(Image<const T> low, High<const T> high, Image<T> x, Shape shape,
                           Shape cells, Pad pad, bool channels_first,
                           Factors<typename Compute<T>::type> k) {
  using A = typename Compute<T>::type;
  const int64_t index = thread_index();
  if (index >= cells.n * cells.c * cells.h * cells.w) return;
  const Position p = strided_position(index, cells, channels_first);

  A value[2][2];
  cell_samples(low, high, k, p.n, p.c, p.i, p.j, value);

  // Row (column) of this cell that the appended row (column) repeats, 0 or 1; -1: none of them.
  const bool odd_h = shape.h % 2, odd_w = shape.w % 2;
  const int64_t source_h = odd_h ? appended_source(shape.h, pad) : -1;
  const int64_t source_w = odd_w ? appended_source(shape.w, pad) : -1;
  const int fold_h = source_h >= 0 && source_h / 2 == p.i ? int(source_h % 2) : -1;
  const int fold_w = source_w >= 0 && source_w / 2 == p.j ? int(source_w % 2) : -1;
  const int64_t last_h = cells.h - 1, last_w = cells.w - 1;
  A other[2][2], corner[2][2];
  if (fold_h >= 0 || fold_w >= 0) {
    // Columns are folded into columns after rows were folded into rows, corner included.
    if (fold_h >= 0) {
      cell_samples(low, high, k, p.n, p.c, last_h, p.j, other);
      value[0][0] += fold_h == 0 ? other[1][0] : A(0);
      value[0][1] += fold_h == 0 ? other[1][1] : A(0);
      value[1][0] += fold_h == 1 ? other[1][0] : A(0);
      value[1][1] += fold_h == 1 ? other[1][1] : A(0);
    }
    if (fold_w >= 0) {
      cell_samples(low, high, k, p.n, p.c, p.i, last_w, other);
      if (fold_h >= 0) {
        cell_samples(low, high, k, p.n, p.c, last_h, last_w, corner);
        other[0][1] += fold_h == 0 ? corner[1][1] : A(0);
        other[1][1] += fold_h == 1 ? corner[1][1] : A(0);
      }
      value[0][0] += fold_w == 0 ? other[0][1] : A(0);
      value[1][0] += fold_w == 0 ? other[1][1] : A(0);
      value[0][1] += fold_w == 1 ? other[0][1] : A(0);
      value[1][1] += fold_w == 1 ? other[1][1] : A(0);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int q = 0; q < 2; ++q)
      if (2 * p.i + r < shape.h && 2 * p.j + q < shape.w)
        *x.at(p.n, p.c, 2 * p.i + r, 2 * p.j + q) = narrow<T>(value[r][q]);
}

}  // namespace
}  // namespace srk::cuda
