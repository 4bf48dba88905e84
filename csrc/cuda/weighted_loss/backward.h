// Weighted losses on CUDA, backward to the images. With g, the loss's cotangent over its divisor,
// it computes
//
//   for (n, c, y, x) {
//     w = g * resized(map)[n][c][y][x];          // g without a map
//     grad_input[n][c][y][x] = w * rho'(input[n][c][y][x] - target[n][c][y][x]);
//     grad_target[n][c][y][x] = -grad_input[n][c][y][x];
//   }
//
// and without a reduction multiplies by the cotangent of each element. Forward saves nothing: the
// operands are read again.
//
// 1. The first blocks gather the map's gradient, if it is wanted (gather.h). The rest:
// 2. Each thread takes one chunk, resizes the map for it once, times g, and uses that for the
//    chunk's channels.
#pragma once
#include "chunks.h"
#include "gather.h"
#include "plan.h"

namespace srk::cuda {
namespace {

// WithMap: the first blocks gather the map's gradient. Without them the kernel needs fewer
// registers, so more of it is in flight.
template <class T, class A, int V, bool Pixels, bool WithMap>
__global__ void __launch_bounds__(kThreads, kBlocks<A, WithMap>)
    weighted_loss_backward_kernel(Backward<A> b) {
  if constexpr (WithMap) {
    if (int64_t(blockIdx.x) < b.gather.blocks) return gather_cells<T, A, Pixels>(b);
  }

  const int64_t index = thread_index() - b.gather.blocks * kThreads;
  if (index >= b.tiling.items) return;
  const Item item = item_at<V, Pixels>(index, b.tiling);
  A w[V];
  resize_chunk<V, Pixels>(b.map, b.tiling, item, w);
  const A scale = scale_of(b);
#pragma unroll
  for (int i = 0; i < V; ++i) w[i] *= scale;
  int64_t at_input = offset_of(b.input.stride, item);
  int64_t at_target = offset_of(b.target.stride, item);
  int64_t at_grad = offset_of(b.grad.stride, item);
  int64_t at_grad_input = offset_of(b.grad_input.stride, item);
  int64_t at_grad_target = offset_of(b.grad_target.stride, item);
  // Not unrolled: with its branches on what is wanted, two rounds take the registers of two blocks.
#pragma unroll 1
  for (int32_t c = 0; c < item.channels; ++c) {
    A x[V], t[V];
    load_chunk<T>(b.input, at_input, x);
    load_chunk<T>(b.target, at_target, t);
    with_penalty(b.kind, b.parameter, [&](auto penalty) {
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = penalty.slope(x[i] - t[i], w[i]);
    });
    if (b.reduction == Reduction::none) {
      load<V>(b.grad.data, b.grad.dtype, at_grad, t);
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] *= t[i];
    }
    if (b.grad_input.data) store_chunk<T>(b.grad_input, at_grad_input, x);
    if (b.grad_target.data) {
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = -x[i];
      store_chunk<T>(b.grad_target, at_grad_target, x);
    }
    at_input += b.input.stride.c;
    at_target += b.target.stride.c;
    at_grad += b.grad.stride.c;
    at_grad_input += b.grad_input.stride.c;
    at_grad_target += b.grad_target.stride.c;
  }
}

}  // namespace
}  // namespace srk::cuda
