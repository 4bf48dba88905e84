// Pixels: channels side by side (channels_last), even sizes, aligned. With 3 channels neither a
// pixel nor a cell is a whole number of words of 16 bytes, so a block moves a run of cells through
// shared memory: only the copies in and out touch global memory, and they are contiguous.
//
//   for (k = 0; k < 2 * count; ++k)              // 1. two rows of the run, in words of 16 bytes
//     in[0][k] = x[n][2 * i][2 * first * C + k], in[1][k] = x[n][2 * i + 1][2 * first * C + k];
//   for (e = 0; e < count; ++e) {                // 2. cells and channels, one by one
//     cell = e / C, channel = e % C, at = 2 * cell * C + channel;
//     out[..][e] = analyse(in[0][at], in[0][at + C], in[1][at], in[1][at + C]);
//   }
//   for (e = 0; e < count; ++e)                  // 3. the bands, in words of 16 bytes
//     low[n][i][first * C + e] = out[0][e], ...;
//
// with C channels and count = C * the cells of the run. The threads of the block share out each of
// the three loops and wait for each other in between. Synthesis does the same backwards.
#pragma once
#include "cells.h"
#include "plan.h"

namespace srk::cuda {
namespace {

template <class T>
constexpr int kStage = kStageBytes / int(sizeof(T)) / 4;  // cell-channels of a block, at most

// The run of this block: cells from `first` on of a row of image n.
struct Run {
  int64_t n, row, first;
  int count;  // cell-channels
};
__device__ __forceinline__ Run run_of_block(const Runs& runs, const Shape& cells) {
  Run run;
  int64_t segment, index = divide(blockIdx.x, runs.segments, segment);
  run.n = divide(index, cells.h, run.row);
  run.first = segment * runs.cells;
  const int64_t rest = cells.w - run.first;
  run.count = int(rest < runs.cells ? rest : runs.cells) * runs.channels;
  return run;
}

// Both ends are 16-byte aligned and `count` is a multiple of the vector.
template <class T>
__device__ __forceinline__ void copy(T* to, const T* from, int count) {
  constexpr int V = kVector<T>;
#pragma unroll 2
  for (int i = int(threadIdx.x) * V; i < count; i += kThreads * V)
    *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
}

// Where a cell-channel's value of one band lies in the staged high bands.
__device__ __forceinline__ int staged(const Runs& runs, int count, int slot, int e, int cell,
                                      int channel) {
  return runs.packed ? cell * 3 * runs.channels + slot * runs.band + channel * runs.channel
                     : slot * count + e;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    haar_analysis_pixels(Image<const T> x, Image<T> low, High<T> high, Shape cells, Runs runs,
                         Factors<typename Compute<T>::type> k) {
  using A = typename Compute<T>::type;
  alignas(16) __shared__ T in[4 * kStage<T>];
  alignas(16) __shared__ T out[4 * kStage<T>];
  const Run run = run_of_block(runs, cells);
  const int count = run.count, channels = runs.channels;

  const T* from = x.at(run.n, 0, 2 * run.row, 2 * run.first);
  copy(in, from, 2 * count);
  copy(in + 2 * count, from + x.stride.h, 2 * count);
  __syncthreads();

  T* staged_high = out + count;
  for (int e = int(threadIdx.x); e < count; e += kThreads) {
    const int cell = e / channels, channel = e - cell * channels;
    const T* top = in + 2 * cell * channels + channel;
    const T* bottom = top + 2 * count;
    A a = widen(top[0]), b = widen(top[channels]);
    A c = widen(bottom[0]), d = widen(bottom[channels]);
    analyse(k, a, b, c, d);
    out[e] = narrow<T>(a);
    staged_high[staged(runs, count, k.slot_v, e, cell, channel)] = narrow<T>(b);
    if (!k.sum) {
      staged_high[staged(runs, count, k.slot_h, e, cell, channel)] = narrow<T>(c);
      staged_high[staged(runs, count, k.slot_d, e, cell, channel)] = narrow<T>(d);
    }
  }
  __syncthreads();

  if (low.data) copy(low.at(run.n, 0, run.row, run.first), out, count);
  const int each = runs.packed ? 3 * count : count;
  for (int i = 0; i < runs.high_count; ++i)
    copy(high.at(run.n, 0, run.row, run.first) + i * high.stride.band, staged_high + i * each,
         each);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    haar_synthesis_pixels(Image<const T> low, High<const T> high, Image<T> x, Shape cells,
                          Runs runs, Factors<typename Compute<T>::type> k) {
  using A = typename Compute<T>::type;
  alignas(16) __shared__ T in[4 * kStage<T>];
  alignas(16) __shared__ T out[4 * kStage<T>];
  const Run run = run_of_block(runs, cells);
  const int count = run.count, channels = runs.channels;

  const T* staged_high = in + count;
  if (low.data) copy(in, low.at(run.n, 0, run.row, run.first), count);
  const int each = runs.packed ? 3 * count : count;
  for (int i = 0; i < runs.high_count; ++i)
    copy(in + count + i * each, high.at(run.n, 0, run.row, run.first) + i * high.stride.band, each);
  __syncthreads();

  for (int e = int(threadIdx.x); e < count; e += kThreads) {
    const int cell = e / channels, channel = e - cell * channels;
    A a = low.data ? A(widen(in[e])) : A(0);
    A b = missing_band(k), c = b, d = b;
    if (high.data) {
      b = widen(staged_high[staged(runs, count, k.slot_v, e, cell, channel)]);
      c = widen(staged_high[staged(runs, count, k.slot_h, e, cell, channel)]);
      d = widen(staged_high[staged(runs, count, k.slot_d, e, cell, channel)]);
    }
    synthesise(k, a, b, c, d);
    T* top = out + 2 * cell * channels + channel;
    T* bottom = top + 2 * count;
    top[0] = narrow<T>(a), top[channels] = narrow<T>(b);
    bottom[0] = narrow<T>(c), bottom[channels] = narrow<T>(d);
  }
  __syncthreads();

  T* to = x.at(run.n, 0, 2 * run.row, 2 * run.first);
  copy(to, out, 2 * count);
  copy(to + x.stride.h, out + 2 * count, 2 * count);
}

}  // namespace
}  // namespace srk::cuda
