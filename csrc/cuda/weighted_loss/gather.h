// Weighted losses on CUDA, backward to the map: the adjoint of its resize. With g the loss's
// cotangent over its divisor it computes, for each cell of the map,
//
//   for (n and c that share the map; y, x that read the cell) {
//     b = share of the cell in the row y * share of the cell in the column x;
//     grad[cell] += g * b * (rho(input[n][c][y][x] - target[n][c][y][x]) - mean);
//   }
//
// where `mean` is the loss if the sum of weights is its divisor (that sum depends on the weights
// too), and 0 otherwise.
//
// Adding from the image's side would need atomics, whose order changes from run to run. So each
// cell gathers:
//
// 1. footprint: the rows and columns that can read the cell.
// 2. lane_sum: the cell's lanes share these out, and each sums its part.
// 3. gather_cells: the lanes' sums are added in a fixed order; where a cell has more lanes than a
//    block has threads, by the block that finishes last.
#pragma once
#include "chunks.h"
#include "plan.h"

namespace srk::cuda {
namespace {

// What the backward kernel takes.
template <class A>
struct Backward {
  Operand grad, input, target, grad_input, grad_target, grad_weight;
  Map<A> map;
  Tiling tiling;
  Gather gather;
  Reduction reduction;
  Kind kind;
  A parameter;
  const A* statistics;
  unsigned* ticket;
  double* partial;  // (cells, slices)
};

// What multiplies sign and residual; for Reduction::none grad differs by element and stays out.
template <class A>
__device__ __forceinline__ A scale_of(const Backward<A>& b) {
  const Shape& s = b.tiling.shape;
  if (s.n * s.c == 0) return A(0);  // the map's gradient of nothing is 0, whatever the divisor
  if (b.reduction == Reduction::none) return A(1);
  A grad[1];
  load<1>(b.grad.data, b.grad.dtype, 0, grad);
  if (b.statistics) return grad[0] / b.statistics[1];
  if (b.reduction == Reduction::sum) return grad[0];
  return grad[0] / A(double(s.n) * double(s.c) * double(s.h) * double(s.w));
}

// Outputs that read cell i along one axis, widened by rounding's worth: first <= y < last. Samples
// before the first map sample are clamped to it and read cells 0 and 1.
template <class A>
__device__ __forceinline__ void footprint(const Resize<A, int32_t>& resize, double inverse_scale,
                                          int32_t i, int32_t size, int32_t& first, int32_t& last) {
  first = 0, last = size;
  const bool nearest = resize.mode == Interpolation::nearest;
  const double shift = resize.mode == Interpolation::bilinear ? 0.5 : 0.0;
  const double low = (i - (nearest ? 0 : 1) + shift) * inverse_scale - shift - 2;
  const double high = (i + 1 + shift) * inverse_scale - shift + 3;
  if (i > 1 && low > 0) first = low < size ? int32_t(low) : size;
  if (i < resize.in - 1 && high < size) last = int32_t(high);
}

// b(cell i, output y) along one axis; false if y does not read the cell. A share of zero is read:
// PyTorch lets NaN through there.
template <class A>
__device__ __forceinline__ bool share_of(const Map<A>& map, const Resize<A, int32_t>& resize,
                                         int32_t i, int32_t y, A& share) {
  if (map.same_size) {
    share = A(1);
    return y == i;
  }
  int32_t low, high;
  A above;
  resize.source(y, low, high, above);
  share = (low == i ? A(1) - above : A(0)) + (high == i ? above : A(0));
  return low == i || high == i;
}

// Which cell of the map, by its place in (n, c, row, column) order.
struct Cell {
  int32_t n, c, i, j;
};
__device__ __forceinline__ Cell cell_at(int64_t index, const Shape& map) {
  int64_t c, i, j;
  index = divide(index, map.w, j);
  index = divide(index, map.h, i);
  const int64_t n = divide(index, map.c, c);
  return {int32_t(n), int32_t(c), int32_t(i), int32_t(j)};
}

// What one lane adds to its cell, before the scale.
template <class T, class A, bool Pixels>
__device__ __forceinline__ double lane_sum(const Backward<A>& b, const Cell& cell, int32_t lane) {
  const Gather& g = b.gather;
  const Shape& shape = b.tiling.shape;
  const auto deal = [&lane](int32_t log) {
    const int32_t mine = lane & ((1 << log) - 1);
    lane >>= log;
    return mine;
  };
  int32_t lane_x, lane_y, lane_c;
  if (Pixels) {
    lane_c = deal(g.log_channels), lane_x = deal(g.log_columns), lane_y = deal(g.log_rows);
  } else {
    lane_x = deal(g.log_columns), lane_y = deal(g.log_rows), lane_c = deal(g.log_channels);
  }

  int32_t y_first, y_last, x_first, x_last;
  footprint(b.map.rows, g.inverse_rows, cell.i, int32_t(shape.h), y_first, y_last);
  footprint(b.map.columns, g.inverse_columns, cell.j, int32_t(shape.w), x_first, x_last);
  const bool every_n = g.map.n == 1, every_c = g.map.c == 1;
  const int32_t n_first = every_n ? 0 : cell.n, n_last = every_n ? int32_t(shape.n) : cell.n + 1;
  const int32_t c_first = (every_c ? 0 : cell.c) + lane_c;
  const int32_t c_last = every_c ? int32_t(shape.c) : cell.c + 1;
  const int32_t step_c = 1 << g.log_channels;
  const A mean = b.statistics ? b.statistics[0] : A(0);

  double total = 0;
  for (int32_t x = x_first + lane_x; x < x_last; x += 1 << g.log_columns) {
    A across, along;
    if (!share_of(b.map, b.map.columns, cell.j, x, across)) continue;
    for (int32_t y = y_first + lane_y; y < y_last; y += 1 << g.log_rows) {
      if (!share_of(b.map, b.map.rows, cell.i, y, along)) continue;
#pragma unroll 1
      for (int32_t n = n_first; n < n_last; ++n) {
        const Item item{n, c_first, 1, y, x, 0};
        int64_t at_input = offset_of(b.input.stride, item);
        int64_t at_target = offset_of(b.target.stride, item);
        int64_t at_grad = offset_of(b.grad.stride, item);
        A sum = A(0);
#pragma unroll 1
        for (int32_t c = c_first; c < c_last; c += step_c) {
          A u[1], t[1], grad[1] = {A(1)};
          load_chunk<T>(b.input, at_input, u);
          load_chunk<T>(b.target, at_target, t);
          if (b.reduction == Reduction::none) load<1>(b.grad.data, b.grad.dtype, at_grad, grad);
          with_penalty(b.kind, b.parameter,
                       [&](auto penalty) { u[0] = penalty.value(u[0] - t[0]); });
          sum += grad[0] * (u[0] - mean);
          at_input += step_c * b.input.stride.c;
          at_target += step_c * b.target.stride.c;
          at_grad += step_c * b.grad.stride.c;
        }
        total += double(along * across) * double(sum);
      }
    }
  }
  return total;
}

template <class T, class A, bool Pixels>
__device__ __forceinline__ void gather_cells(const Backward<A>& b) {
  __shared__ double scratch[kThreads / 32];
  const Gather& g = b.gather;
  int64_t lane;
  int64_t cell = divide(thread_index(), g.lanes, lane);
  double total = 0;
  if (cell < g.cells) total = lane_sum<T, A, Pixels>(b, cell_at(cell, g.map), int32_t(lane));
  total = g.lanes <= 32 ? group_sum(total, g.lanes) : block_sum(total, scratch);

  // One thread writes one cell; of sliced cells, the threads of the last block write all.
  int64_t last_cell = lane == 0 ? cell : -1;
  if (g.slices > 1) {
    if (threadIdx.x == 0) b.partial[blockIdx.x] = total;
    if (!is_last_block(b.ticket, unsigned(g.blocks))) return;
    cell = threadIdx.x;
    last_cell = g.cells - 1;
  }
  const volatile double* partial = b.partial;
  for (; cell <= last_cell && cell < g.cells; cell += kThreads) {
    if (g.slices > 1) {
      total = 0;
      for (int32_t i = 0; i < g.slices; ++i) total += partial[cell * g.slices + i];
    }
    const Cell at = cell_at(cell, g.map);
    const Strides& s = b.grad_weight.stride;
    const double scaled[1] = {total * double(scale_of(b))};
    store<1>(b.grad_weight.data, b.grad_weight.dtype,
             at.n * s.n + at.c * s.c + at.i * s.h + at.j * s.w, scaled);
  }
}

}  // namespace
}  // namespace srk::cuda
