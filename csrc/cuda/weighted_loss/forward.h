// Weighted losses on CUDA, forward. It computes
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
// 1. A thread takes one chunk after another, each a whole grid further on. It resizes the map for
//    the chunk once (chunks.h) and uses that for the chunk's channels, summing in fp32 within a
//    chunk and in fp64 across.
// 2. A block adds up its threads' sums and writes them to the workspace.
// 3. The block that finishes last, which a ticket tells it, adds up all blocks' in order and writes
//    the loss: one launch, and the same bits every time.
#pragma once
#include "chunks.h"
#include "plan.h"

namespace srk::cuda {
namespace {

// What the kernel takes.
template <class A>
struct Forward {
  Operand input, target, out;
  Map<A> map;
  Tiling tiling;
  Reduction reduction;
  Kind kind;
  A parameter;
  bool by_weight;
  A* statistics;
  unsigned* ticket;
  double* partial;  // (blocks, 2)
};

template <class T, class A, int V, bool Pixels>
__global__ void __launch_bounds__(kThreads, kBlocks<A>) weighted_loss_forward_kernel(Forward<A> f) {
  // 1. This thread's chunks.
  double total = 0, weight_total = 0;
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t index = thread_index(); index < f.tiling.items; index += step) {
    const Item item = item_at<V, Pixels>(index, f.tiling);
    A w[V];
    resize_chunk<V, Pixels>(f.map, f.tiling, item, w);
    int64_t at_input = offset_of(f.input.stride, item);
    int64_t at_target = offset_of(f.target.stride, item);
    int64_t at_out = offset_of(f.out.stride, item);
    A sum = A(0);
#pragma unroll 2
    for (int32_t c = 0; c < item.channels; ++c) {
      A x[V], t[V];
      load_chunk<T>(f.input, at_input, x);
      load_chunk<T>(f.target, at_target, t);
      with_penalty(f.kind, f.parameter, [&](auto penalty) {
#pragma unroll
        for (int i = 0; i < V; ++i) x[i] = w[i] * penalty.value(x[i] - t[i]);
      });
#pragma unroll
      for (int i = 0; i < V; ++i) sum += x[i];
      if (f.reduction == Reduction::none) store<V>(f.out.data, f.out.dtype, at_out, x);
      at_input += f.input.stride.c;
      at_target += f.target.stride.c;
      at_out += f.out.stride.c;
    }
    total += double(sum);
    if (f.by_weight) {
      A weights = A(0);
#pragma unroll
      for (int i = 0; i < V; ++i) weights += w[i];
      weight_total += double(weights) * item.channels;
    }
  }
  if (f.reduction == Reduction::none) return;

  // 2. The sums of the block.
  __shared__ double scratch[2][kThreads / 32];
  total = block_sum(total, scratch[0]);
  if (f.by_weight) weight_total = block_sum(weight_total, scratch[1]);
  if (threadIdx.x == 0) {
    f.partial[2 * blockIdx.x] = total;
    f.partial[2 * blockIdx.x + 1] = weight_total;
  }
  if (!is_last_block(f.ticket, gridDim.x)) return;

  // 3. In the block that finishes last, the sums of all.
  const volatile double* partial = f.partial;
  total = weight_total = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) {
    total += partial[2 * i];
    weight_total += partial[2 * i + 1];
  }
  total = block_sum(total, scratch[0]);
  if (f.by_weight) weight_total = block_sum(weight_total, scratch[1]);
  if (threadIdx.x != 0) return;
  // Over nothing a mean is 0 / 0, NaN as in PyTorch.
  const Shape& s = f.tiling.shape;
  if (f.reduction == Reduction::mean)
    total /= f.by_weight ? weight_total : double(s.n) * double(s.c) * double(s.h) * double(s.w);
  const double loss[1] = {total};
  store<1>(f.out.data, f.out.dtype, 0, loss);
  if (f.statistics) {
    f.statistics[0] = A(total);
    f.statistics[1] = A(weight_total);
  }
}

}  // namespace
}  // namespace srk::cuda
