// Rows: columns side by side (NCHW), even sizes, aligned. One thread takes V neighbouring cells of
// a row (n, c, i) from column j on:
//
//   for (k = 0; k < 2 * V; ++k)                  // 1. two rows of the image, in words of 16 bytes
//     top[k] = x[n][c][2 * i][2 * j + k], bottom[k] = x[n][c][2 * i + 1][2 * j + k];
//   for (k = 0; k < V; ++k)                      // 2. V cells, in registers
//     band[..][k] = analyse(top[2 * k], top[2 * k + 1], bottom[2 * k], bottom[2 * k + 1]);
//   for (k = 0; k < V; ++k)                      // 3. of each band, one word
//     low[n][c][i][j + k] = band[0][k], high_v[n][c][i][j + k] = band[1][k], ...;
//
// with V = 4 in fp32, 8 in bf16 and fp16, 2 in fp64: a word of each band. Neighbouring threads take
// neighbouring words, so that a warp reads and writes whole lines of memory. Synthesis does the
// same backwards.
#pragma once
#include "cells.h"

namespace srk::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    haar_analysis_rows(Image<const T> x, Image<T> low, High<T> high, Shape cells,
                       Factors<typename Compute<T>::type> k) {
  using A = typename Compute<T>::type;
  constexpr int V = kVector<T>;
  const int64_t index = thread_index();
  if (index >= cells.n * cells.c * cells.h * cells.w) return;
  Position p = position(index, cells);
  p.j *= V;

  A top[2 * V], bottom[2 * V];
  const T* from = x.at(p.n, p.c, 2 * p.i, 2 * p.j);
  load<2 * V>(from, top);
  load<2 * V>(from + x.stride.h, bottom);

  A band[4][V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    A a = top[2 * i], b = top[2 * i + 1], c = bottom[2 * i], d = bottom[2 * i + 1];
    analyse(k, a, b, c, d);
    band[0][i] = a, band[1][i] = b, band[2][i] = c, band[3][i] = d;
  }
  if (low.data) store<V>(low.at(p.n, p.c, p.i, p.j), band[0]);
  if (high.data) {
    T* to = high.at(p.n, p.c, p.i, p.j);
    store<V>(to + k.slot_v * high.stride.band, band[1]);
    if (!k.sum) {
      store<V>(to + k.slot_h * high.stride.band, band[2]);
      store<V>(to + k.slot_d * high.stride.band, band[3]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    haar_synthesis_rows(Image<const T> low, High<const T> high, Image<T> x, Shape cells,
                        Factors<typename Compute<T>::type> k) {
  using A = typename Compute<T>::type;
  constexpr int V = kVector<T>;
  const int64_t index = thread_index();
  if (index >= cells.n * cells.c * cells.h * cells.w) return;
  Position p = position(index, cells);
  p.j *= V;

  A band[4][V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    band[0][i] = A(0);
    band[1][i] = band[2][i] = band[3][i] = missing_band(k);
  }
  if (low.data) load<V>(low.at(p.n, p.c, p.i, p.j), band[0]);
  if (high.data) {
    // Summed bands share one slot: the same value is read three times, twice from L1.
    const T* from = high.at(p.n, p.c, p.i, p.j);
    load<V>(from + k.slot_v * high.stride.band, band[1]);
    load<V>(from + k.slot_h * high.stride.band, band[2]);
    load<V>(from + k.slot_d * high.stride.band, band[3]);
  }

  A top[2 * V], bottom[2 * V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    A a = band[0][i], b = band[1][i], c = band[2][i], d = band[3][i];
    synthesise(k, a, b, c, d);
    top[2 * i] = a, top[2 * i + 1] = b, bottom[2 * i] = c, bottom[2 * i + 1] = d;
  }
  T* to = x.at(p.n, p.c, 2 * p.i, 2 * p.j);
  store<2 * V>(to, top);
  store<2 * V>(to + x.stride.h, bottom);
}

}  // namespace
}  // namespace srk::cuda
