// Haar synthesis on CPU: bands to an image. Of one channel, of even sizes, it computes
//
//   for (i = 0; i < h / 2; ++i)
//     for (j = 0; j < w / 2; ++j) {
//       s = k.low * low[i][j];
//       v = k.v * (high_v[i][j] - k.shift);
//       h = k.h * (high_h[i][j] - k.shift);
//       d = k.d * (high_d[i][j] - k.shift);
//       x[2 * i][2 * j] = s + v + h + d, x[2 * i][2 * j + 1] = s + v - h - d;
//       x[2 * i + 1][2 * j] = s - v + h - d, x[2 * i + 1][2 * j + 1] = s - v - h + d;
//     }
//
// the adjoint of analysis and, with suitable factors, its inverse. Where analysis repeated a row or
// column to make a size even, the adjoint adds what the repeated one receives to the original.
//
// As in analysis.cpp memory sets the time, and the strides choose one of three ways:
//
//   rows    columns are side by side: the loop runs on vectors of cells, and store2 interleaves the
//           results into a b a b ... again, past the caches where the image is large;
//   pixels  channels are side by side: the loop runs on the channels of a pixel;
//   values  any strides, and the borders of odd sizes: each value of the image gathers its parts,
//           so that none is written twice.
#include <cstdint>

#include "../parallel.h"
#include "../streaming.h"
#include "cells.h"
#include "haar.h"

namespace srk::SRK_ISA {
namespace {

// The four sums of a cell, or of the cell's channels that L takes at a time; 0 for an absent band.
template <class L, class F, class T = typename L::T>
SRK_HD void read_bands(const HaarArguments& a, const Factors<F>& k, const Band& at,
                       int64_t step_low, int64_t step_high, T& s, T& v, T& h, T& d) {
  using S = typename L::S;
  const S *low = static_cast<const S*>(a.low), *high = static_cast<const S*>(a.high);
  const auto band = [&](int64_t offset) {
    return load_apart<L>(high + offset + step_high, a.high_stride.c) - k.shift;
  };
  s = low ? load_apart<L>(low + at.low + step_low, a.low_stride.c) * k.low : T{};
  v = high ? band(at.v) * k.v : T{};
  h = high ? band(at.h) * k.h : T{};
  d = high ? band(at.d) * k.d : T{};
}

// One output value, gathered from its own cell and, where the appended row or column was copied
// from it, from the last cells too: the adjoint of the padding.
template <class S>
void synthesis_value(const HaarArguments& a, const Factors<typename Simd<S>::Scalar>& k, int64_t n,
                     int64_t c, int64_t row, int64_t column) {
  using T = typename Simd<S>::Scalar;
  int64_t cell_row[2] = {row / 2, a.shape.h / 2}, cell_column[2] = {column / 2, a.shape.w / 2};
  int half_row[2] = {int(row % 2), 1}, half_column[2] = {int(column % 2), 1};
  const int from_rows = a.shape.h % 2 && appended_source(a.shape.h, a.pad) == row ? 2 : 1;
  const int from_columns = a.shape.w % 2 && appended_source(a.shape.w, a.pad) == column ? 2 : 1;
  T total = T(0);
  for (int i = 0; i < from_rows; ++i) {
    for (int j = 0; j < from_columns; ++j) {
      T s, v, h, d, x[4];
      read_bands<One<S>>(a, k, band_offset(a, n, c, cell_row[i]), cell_column[j] * a.low_stride.w,
                         cell_column[j] * a.high_stride.w, s, v, h, d);
      butterfly(s, v, h, d, x[0], x[1], x[2], x[3]);
      total += x[2 * half_row[i] + half_column[j]];
    }
  }
  Simd<S>::put(static_cast<S*>(a.x) + n * a.x_stride.n + c * a.x_stride.c + row * a.x_stride.h +
                   column * a.x_stride.w,
               total);
}

// One contiguous row of each band to two contiguous image rows.
template <class S, bool kLow, bool kHigh, bool kStream>
void synthesis_row(const HaarArguments& a, const Factors<typename Simd<S>::Scalar>& k, S* top,
                   S* bottom, int64_t cells, const Band& at) {
  using T = typename Simd<S>::Scalar;
  using V = typename Simd<S>::Vector;
  constexpr int N = lanes<V>();
  const S *low = static_cast<const S*>(a.low), *high = static_cast<const S*>(a.high);
  const int64_t next_low = a.low_stride.h, next_high = a.high_stride.h;
  int64_t i = 0;
  for (; i + N <= cells; i += N) {
    V s{}, v{}, h{}, d{}, p, q, r, t;
    if (kLow) {
      fetch_ahead<N * sizeof(S)>(low + at.low + i + next_low);
      s = Simd<S>::load(low + at.low + i) * k.low;
    }
    if (kHigh) {
      fetch_ahead<N * sizeof(S)>(high + at.v + i + next_high);
      fetch_ahead<N * sizeof(S)>(high + at.h + i + next_high);
      fetch_ahead<N * sizeof(S)>(high + at.d + i + next_high);
      v = (Simd<S>::load(high + at.v + i) - k.shift) * k.v;
      h = (Simd<S>::load(high + at.h + i) - k.shift) * k.h;
      d = (Simd<S>::load(high + at.d + i) - k.shift) * k.d;
    }
    butterfly(s, v, h, d, p, q, r, t);
    Simd<S>::template store2<kStream>(top + 2 * i, p, q);
    Simd<S>::template store2<kStream>(bottom + 2 * i, r, t);
  }
  for (; i < cells; ++i) {
    T s, v, h, d, p, q, r, t;
    read_bands<One<S>>(a, k, at, i, i, s, v, h, d);
    butterfly(s, v, h, d, p, q, r, t);
    Simd<S>::put(top + 2 * i, p);
    Simd<S>::put(top + 2 * i + 1, q);
    Simd<S>::put(bottom + 2 * i, r);
    Simd<S>::put(bottom + 2 * i + 1, t);
  }
}

// Cells of an axis that the padding leaves alone: all of them whole, and none the source of what is
// appended. The others' values are gathered one by one.
struct Range {
  int64_t begin, end;
};
Range plain_cells(int64_t size, Pad pad) {
  const int64_t whole = size / 2, source = size % 2 ? appended_source(size, pad) : -1;
  if (source < 0 || source / 2 == whole) return {0, whole};
  return pad == Pad::periodic ? Range{1, whole} : Range{0, source / 2};
}

// The row kernel for the bands wanted; streaming if the image is large and its rows aligned. (Bands
// are not: into memory that the allocator has just taken back, and the caches still hold, a forward
// pass alone takes 9 % longer and more, though forward and backward together take 3 to 12 % less.)
template <class S>
auto synthesis_kernel(const HaarArguments& a) {
  const int64_t size = sizeof(S);
  const bool stream =
      aligned_for_streaming(a.x, (a.x_stride.n | a.x_stride.c | a.x_stride.h) * size) &&
      worth_streaming(a.x, a.shape.n * a.shape.c * a.shape.h * a.shape.w * size);
  if (!a.low)
    return stream ? synthesis_row<S, false, true, true> : synthesis_row<S, false, true, false>;
  if (!a.high)
    return stream ? synthesis_row<S, true, false, true> : synthesis_row<S, true, false, false>;
  return stream ? synthesis_row<S, true, true, true> : synthesis_row<S, true, true, false>;
}

// One row of each band to two image rows, channels contiguous in the image.
template <class S>
void synthesis_pixels(const HaarArguments& a, const Factors<typename Simd<S>::Scalar>& k, S* top,
                      S* bottom, int64_t cells, const Band& at) {
  const int64_t right = a.x_stride.w;
  const bool apart = (!a.low || a.low_stride.w > 0) && (!a.high || a.high_stride.w > 0);
  for_each_channels<S>(cells, a.shape.c, apart, [&](auto some, int64_t i, int64_t c) {
    using L = decltype(some);
    const int64_t low = i * a.low_stride.w + c * a.low_stride.c,
                  high = i * a.high_stride.w + c * a.high_stride.c;
    if (L::kCount == 3 && a.high)
      fetch_ahead<1>(static_cast<const S*>(a.high) + at.v + high + a.high_stride.h);
    typename L::T s, v, h, d, x[4];
    read_bands<L>(a, k, at, low, high, s, v, h, d);
    butterfly(s, v, h, d, x[0], x[1], x[2], x[3]);
    S *p = top + 2 * i * right + c, *q = bottom + 2 * i * right + c;
    L::store(p, x[0]);
    L::store(p + right, x[1]);
    L::store(q, x[2]);
    L::store(q + right, x[3]);
  });
}

template <class S>
void synthesis(const HaarArguments& a) {
  const Factors<typename Simd<S>::Scalar> k(a.plan);
  const int64_t rows = (a.shape.h + 1) / 2;
  const Range plain_rows = plain_cells(a.shape.h, a.pad);
  const Range plain_columns = plain_cells(a.shape.w, a.pad);
  const int64_t first = plain_columns.begin, cells = plain_columns.end - first;
  S* x = static_cast<S*>(a.x);
  const bool contiguous_rows =
      a.x_stride.w == 1 && (!a.low || a.low_stride.w == 1) && (!a.high || a.high_stride.w == 1);
  const bool contiguous_pixels = a.x_stride.c == 1 && a.shape.c > 1;

  const auto plain_row = [&](int64_t row) {
    return row >= plain_rows.begin && row < plain_rows.end;
  };
  const auto top_left = [&](int64_t n, int64_t c, int64_t row) {
    return x + n * a.x_stride.n + c * a.x_stride.c + 2 * row * a.x_stride.h +
           2 * first * a.x_stride.w;
  };
  const auto border = [&](int64_t n, int64_t c, int64_t row, Range plain) {
    for (int64_t y = 2 * row; y < 2 * row + 2 && y < a.shape.h; ++y) {
      for (int64_t j = 0; j < 2 * plain.begin; ++j) synthesis_value<S>(a, k, n, c, y, j);
      for (int64_t j = 2 * plain.end; j < a.shape.w; ++j) synthesis_value<S>(a, k, n, c, y, j);
    }
  };
  if (contiguous_rows || !contiguous_pixels) {
    const auto row_kernel = synthesis_kernel<S>(a);
    parallel_ranges(a.shape.n * a.shape.c * rows, 1 + kGrainValues / (2 * (a.shape.w + 1)),
                    a.launch.threads, [&](int64_t begin, int64_t end) {
                      int64_t row = begin % rows, plane = begin / rows, c = plane % a.shape.c,
                              n = plane / a.shape.c;
                      for (int64_t i = begin; i < end; ++i) {
                        Range plain{0, 0};
                        if (contiguous_rows && plain_row(row)) {
                          S* top = top_left(n, c, row);
                          row_kernel(a, k, top, top + a.x_stride.h, cells,
                                     band_offset(a, n, c, row, first));
                          plain = plain_columns;
                        }
                        border(n, c, row, plain);
                        if (++row == rows) {
                          row = 0;
                          if (++c == a.shape.c) c = 0, ++n;
                        }
                      }
                      drain_streams();
                    });
    return;
  }
  parallel_ranges(a.shape.n * rows, 1 + kGrainValues / (2 * (a.shape.w + 1) * a.shape.c),
                  a.launch.threads, [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) {
                      const int64_t n = i / rows, row = i % rows;
                      Range plain{0, 0};
                      if (plain_row(row)) {
                        S* top = top_left(n, 0, row);
                        synthesis_pixels(a, k, top, top + a.x_stride.h, cells,
                                         band_offset(a, n, 0, row, first));
                        plain = plain_columns;
                      }
                      for (int64_t c = 0; c < a.shape.c; ++c) border(n, c, row, plain);
                    }
                  });
}

}  // namespace

void haar_synthesis(const HaarArguments& args) {
  switch (args.dtype) {
    case DType::f32:
      return synthesis<float>(args);
    case DType::bf16:
      return synthesis<bf16>(args);
    case DType::f16:
      return synthesis<f16>(args);
    case DType::f64:
      return synthesis<double>(args);
  }
}

}  // namespace srk::SRK_ISA
