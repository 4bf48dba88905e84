// Haar analysis and synthesis on CPU: bound by memory, one read and one write of everything.
//
// Three roads, by strides. Rows: columns are contiguous, two input rows are de-interleaved in
// registers. Pixels: channels are contiguous (channels_last). Cells: any strides, one value at a
// time; also the borders of odd sizes.
#include "haar.h"

#include "parallel.h"
#include "simd.h"
#include "streaming.h"

namespace srk::SRK_ISA {
namespace {

// Fewest output values that are worth a second thread.
constexpr int64_t kGrainValues = 16384;

template <class T>
struct Factors {
  T low, v, h, d, shift;
  explicit Factors(const HaarPlan& p)
      : low(T(p.low)), v(T(p.v)), h(T(p.h)), d(T(p.d)), shift(T(p.shift)) {}
};

// Element offsets of the bands of one (n, c) plane or one row.
struct Band {
  int64_t low, v, h, d;
};

SRK_HD Band band_offset(const HaarArguments& a, int64_t n, int64_t c, int64_t row) {
  const int64_t high = n * a.high_stride.n + c * a.high_stride.c + row * a.high_stride.h;
  return {n * a.low_stride.n + c * a.low_stride.c + row * a.low_stride.h,
          high + a.plan.slot_v * a.high_stride.band, high + a.plan.slot_h * a.high_stride.band,
          high + a.plan.slot_d * a.high_stride.band};
}

// How much is handled at a time: one value, a vector, or three channels in a vector of four.
template <class Storage>
struct One {
  using S = Storage;
  using T = typename Simd<S>::Scalar;
  static constexpr int kCount = 1;
  static SRK_HD T load(const S* p) { return Simd<S>::get(p); }
  static SRK_HD void store(S* p, T x) { Simd<S>::put(p, x); }
};
template <class Storage>
struct Many {
  using S = Storage;
  using T = typename Simd<S>::Vector;
  static constexpr int kCount = lanes<T>();
  static SRK_HD T load(const S* p) { return Simd<S>::load(p); }
  static SRK_HD void store(S* p, T x) { Simd<S>::store(p, x); }
};
template <class Storage>
struct Three {
  using S = Storage;
  using T = quad;
  static constexpr int kCount = 3;
  static SRK_HD T load(const S* p) { return load_quad(p); }
  static SRK_HD void store(S* p, T x) { store_three(p, x); }
};

// The same of elements `stride` apart.
template <class L>
SRK_HD typename L::T load_apart(const typename L::S* p, int64_t stride) {
  using S = typename L::S;
  if (L::kCount == 1 || stride == 1) return L::load(p);
  if constexpr (L::kCount == 3) {
    // Through memory the load would wait for the stores: more than three values save by it.
    return quad{Simd<S>::get(p), Simd<S>::get(p + stride), Simd<S>::get(p + 2 * stride)};
  } else {
    S near[L::kCount];
    for (int i = 0; i < L::kCount; ++i) near[i] = p[i * stride];
    return L::load(near);
  }
}
template <class L>
SRK_HD void store_apart(typename L::S* p, int64_t stride, typename L::T x) {
  if (L::kCount == 1 || stride == 1) return L::store(p, x);
  typename L::S near[L::kCount];
  L::store(near, x);
  for (int i = 0; i < L::kCount; ++i) p[i * stride] = near[i];
}

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

// Analysis

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

// body(L, cell, c) for the channels c and on of each cell of a row, as many as L takes at a time.
// `apart`: neighbouring pixels are not one. Then the fourth value that a Three reads lies in the
// next of them; behind the last memory may end.
template <class S, class Body>
SRK_HD void for_each_channels(int64_t cells, int64_t channels, bool apart, const Body& body) {
  int64_t i = 0;
  if constexpr (sizeof(typename Simd<S>::Scalar) == sizeof(float)) {
    for (; channels == 3 && apart && i + 1 < cells; ++i) body(Three<S>(), i, 0);
  }
  for (; i < cells; ++i) {
    int64_t c = 0;
    for (; c + Many<S>::kCount <= channels; c += Many<S>::kCount) body(Many<S>(), i, c);
    for (; c < channels; ++c) body(One<S>(), i, c);
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

// Synthesis

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
  // Values outside [0, plain) x [0, plain) take part in the padding and are gathered one by one.
  const int64_t fold_rows = a.shape.h % 2 ? (a.pad == Pad::reflect ? 3 : 1) : 0;
  const int64_t fold_columns = a.shape.w % 2 ? (a.pad == Pad::reflect ? 3 : 1) : 0;
  const int64_t plain_rows = a.shape.h > fold_rows ? (a.shape.h - fold_rows) / 2 : 0;
  const int64_t plain_columns = a.shape.w > fold_columns ? (a.shape.w - fold_columns) / 2 : 0;
  S* x = static_cast<S*>(a.x);
  const bool contiguous_rows =
      a.x_stride.w == 1 && (!a.low || a.low_stride.w == 1) && (!a.high || a.high_stride.w == 1);
  const bool contiguous_pixels = a.x_stride.c == 1 && a.shape.c > 1;

  auto border = [&](int64_t n, int64_t c, int64_t row, int64_t plain) {
    for (int64_t y = 2 * row; y < 2 * row + 2 && y < a.shape.h; ++y)
      for (int64_t j = 2 * plain; j < a.shape.w; ++j) synthesis_value<S>(a, k, n, c, y, j);
  };
  if (contiguous_rows || !contiguous_pixels) {
    const auto row_kernel = synthesis_kernel<S>(a);
    parallel_ranges(a.shape.n * a.shape.c * rows, 1 + kGrainValues / (2 * (a.shape.w + 1)),
                    a.launch.threads, [&](int64_t begin, int64_t end) {
                      int64_t row = begin % rows, plane = begin / rows, c = plane % a.shape.c,
                              n = plane / a.shape.c;
                      for (int64_t i = begin; i < end; ++i) {
                        int64_t plain = 0;
                        if (contiguous_rows && row < plain_rows) {
                          S* top = x + n * a.x_stride.n + c * a.x_stride.c + 2 * row * a.x_stride.h;
                          row_kernel(a, k, top, top + a.x_stride.h, plain_columns,
                                     band_offset(a, n, c, row));
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
                      int64_t plain = 0;
                      if (row < plain_rows) {
                        S* top = x + n * a.x_stride.n + 2 * row * a.x_stride.h;
                        synthesis_pixels(a, k, top, top + a.x_stride.h, plain_columns,
                                         band_offset(a, n, 0, row));
                        plain = plain_columns;
                      }
                      for (int64_t c = 0; c < a.shape.c; ++c) border(n, c, row, plain);
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
