// Haar transform on CUDA.
//
// Every 2x2 cell a b / c d of the image holds four sums,
//
//   S = a + b + c + d    V = a + b - c - d    H = a - b + c - d    D = a - b - c + d,
//
// and analysis writes low = k_S S and high = (k_V V, k_H H, k_D D) + shift, in the convention's
// order. The 4x4 matrix is symmetric, so synthesis, the adjoint, is the same butterfly:
//
//   (a, b, c, d) = butterfly(k_S low, k_V (v - shift), k_H (h - shift), k_D (d - shift)).
//
// An odd size appends one sample that repeats an earlier one (or is zero); the adjoint adds what
// synthesis gives for the appended sample to the sample it repeats.
//
// There is no reuse between cells: time is bytes moved, so all that matters is the shape of the
// accesses. Three kernels each way, by the layout of the tensors:
//
//   rows     NCHW, even, aligned: a thread reads 2 V columns of two rows and writes V cells of each
//            band, all in 16-byte accesses (V = 4 in fp32, 8 in bf16 and fp16, 2 in fp64);
//   pixels   channels_last, even, aligned: with 3 channels neither an image cell nor a band cell is
//            a whole number of 16-byte words, so a block moves a run of cells through shared
//            memory and only the copies in and out, which are contiguous, touch global memory;
//   strided  everything else: one cell and channel a thread, any strides, odd sizes.
//
// No streaming hints: at training sizes the next kernel finds the bands in L2.
#include "../common/haar.h"
#include "device.h"
#include "ops.h"

namespace srk::cuda {
namespace {

template <class T>
struct Image {
  T* data;
  Strides stride;

  __device__ __forceinline__ T* at(int64_t n, int64_t c, int64_t row, int64_t column) const {
    return data + n * stride.n + c * stride.c + row * stride.h + column * stride.w;
  }
};

template <class T>
struct High {
  T* data;
  BandStrides stride;

  __device__ __forceinline__ T* at(int64_t n, int64_t c, int64_t i, int64_t j) const {
    return data + n * stride.n + c * stride.c + i * stride.h + j * stride.w;
  }
};

// The plan in the compute type.
template <class A>
struct Factors {
  A low, v, h, d, shift;
  int slot_v, slot_h, slot_d;
  bool sum;

  explicit Factors(const HaarPlan& p)
      : low(A(p.low)),
        v(A(p.v)),
        h(A(p.h)),
        d(A(p.d)),
        shift(A(p.shift)),
        slot_v(p.slot_v),
        slot_h(p.slot_h),
        slot_d(p.slot_d),
        sum(p.sum) {}
};

// The transform itself: (a, b, c, d) becomes (low, v, h, d) as they are stored; where the bands are
// summed, v is the sum.
template <class A>
__device__ __forceinline__ void analyse(const Factors<A>& k, A& a, A& b, A& c, A& d) {
  A s, v, h, x;
  butterfly(a, b, c, d, s, v, h, x);
  a = k.low * s;
  if (k.sum) {
    b = k.v * v + k.h * h + k.d * x + k.shift;
  } else {
    b = k.v * v + k.shift;
    c = k.h * h + k.shift;
    d = k.d * x + k.shift;
  }
}

// Its adjoint: (low, v, h, d) as they are stored becomes (a, b, c, d).
template <class A>
__device__ __forceinline__ void synthesise(const Factors<A>& k, A& s, A& v, A& h, A& d) {
  A w, x, y, z;
  butterfly(k.low * s, k.v * (v - k.shift), k.h * (h - k.shift), k.d * (d - k.shift), w, x, y, z);
  s = w, v = x, h = y, d = z;
}

// What is absent counts as zero, before the shift is taken off.
template <class A>
__device__ __forceinline__ A missing_band(const Factors<A>& k) {
  return k.shift;
}

// Rows: NCHW in 16-byte accesses

template <class T>
constexpr int kVector = 16 / int(sizeof(T));

// Position of a thread's first cell; cells.w is in units of V cells here.
struct Position {
  int64_t n, c, i, j;
};
__device__ __forceinline__ Position position(int64_t index, const Shape& cells) {
  Position p;
  index = divide(index, cells.w, p.j);
  index = divide(index, cells.h, p.i);
  p.n = divide(index, cells.c, p.c);
  return p;
}

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

// Pixels: channels_last through shared memory

constexpr int kStageBytes = 16384;  // each of in and out: six blocks share an SM of 228 KB
template <class T>
constexpr int kStage = kStageBytes / int(sizeof(T)) / 4;  // cell-channels of a block, at most

// A run of cells of one row is a run of memory in the image's two rows and in each band. High bands
// packed into one pixel (3 C values a cell) are one run, bands of their own images are three.
struct Runs {
  int64_t segments;  // runs of a row
  int cells;         // of a run; the last one of a row may be shorter
  int channels;
  bool packed;
  int band, channel;  // strides inside a packed pixel
  int high_count;     // runs of the high bands: 0, 1 or 3
};

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

// Strided: any layout, odd sizes

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

// Which kernel

// PyTorch leaves the stride of a dimension of one element arbitrary; it must not decide anything.
Strides tidy(const Strides& s, int64_t n, int64_t c, int64_t h, int64_t w) {
  return {n > 1 ? s.n : 0, c > 1 ? s.c : 0, h > 1 ? s.h : 0, w > 1 ? s.w : 1};
}

// Rows (or pixels, where C channels interleave) can be cut into 16-byte words.
bool vectors(const void* data, const Strides& s, int64_t vector) {
  return data == nullptr ||
         (aligned(data, 16) && s.n % vector == 0 && s.c % vector == 0 && s.h % vector == 0);
}

struct Layout {
  Shape shape, cells;
  Strides x, low, high;  // high: without its band stride, which is `band`
  int64_t band;
  bool rows, pixels;
  Runs runs;
};

Layout layout_of(const HaarArguments& a, int64_t element_size) {
  Layout l{};
  l.shape = a.shape;
  l.cells = {a.shape.n, a.shape.c, (a.shape.h + 1) / 2, (a.shape.w + 1) / 2};
  const int64_t n = l.cells.n, c = l.cells.c, h = l.cells.h, w = l.cells.w;
  l.x = tidy(a.x_stride, n, c, a.shape.h, a.shape.w);
  l.low = tidy(a.low_stride, n, c, h, w);
  const BandStrides& b = a.high_stride;
  l.high = tidy({b.n, b.c, b.h, b.w}, n, c, h, w);
  l.band = b.band;

  const bool even = a.shape.h % 2 == 0 && a.shape.w % 2 == 0;
  const int64_t v = 16 / element_size;
  const bool bands = l.band % v == 0;
  l.rows = even && w % v == 0 && l.x.w == 1 && vectors(a.x, l.x, v) &&
           (!a.low || (l.low.w == 1 && vectors(a.low, l.low, v))) &&
           (!a.high || (l.high.w == 1 && bands && vectors(a.high, l.high, v)));

  // A run is a multiple of `step` cells, so that it starts and ends on a 16-byte boundary.
  const int64_t step = c % v == 0 ? 1 : v, room = kStageBytes / element_size / 4;
  const bool packed = a.high && !a.plan.sum && l.high.w == 3 * c;
  const bool packed_in_order =
      packed && ((l.high.c == 1 && l.band == c) || (l.high.c == 3 && l.band == 1));
  const bool separate = a.high && l.high.w == c && l.high.c == 1 && bands;
  const auto pixels = [&](const void* data, const Strides& s) {
    return s.c == 1 && s.w == c && vectors(data, {s.n, 0, s.h, 0}, v);
  };
  l.pixels = even && c > 1 && w > 1 && (w * c) % v == 0 && step * c <= room && pixels(a.x, l.x) &&
             (!a.low || pixels(a.low, l.low)) &&
             (!a.high ||
              ((packed_in_order || separate) && vectors(a.high, {l.high.n, 0, l.high.h, 0}, v)));
  if (l.pixels) {
    const int64_t most = room / (step * c) * step;
    const int64_t even_share = ceil_div(w, ceil_div(w, most));
    const int64_t cells = ceil_div(even_share, step) * step;
    l.runs = {ceil_div(w, cells),
              int(cells),
              int(c),
              packed,
              int(l.band),
              int(l.high.c),
              !a.high                ? 0
              : packed || a.plan.sum ? 1
                                     : 3};
  }
  return l;
}

// One launch of whichever kernel fits. `first` and `second` are the kernel's operands in order.
template <class A, class X, class Y, class Z, class Rows, class Pixels, class Strided>
void run(const char* name, const HaarArguments& a, const Layout& l, int vector, X first, Y second,
         Z third, Rows rows, Pixels pixels, Strided strided) {
  const Factors<A> k(a.plan);
  const auto& [n, c, h, w] = l.cells;
  if (l.rows) {
    const Shape groups{n, c, h, w / vector};
    launch(name, rows, ceil_div(n * c * h * groups.w, kThreads), a.launch.stream, first, second,
           third, groups, k);
  } else if (l.pixels) {
    launch(name, pixels, n * h * l.runs.segments, a.launch.stream, first, second, third, l.cells,
           l.runs, k);
  } else {
    launch(name, strided, ceil_div(n * c * h * w, kThreads), a.launch.stream, first, second, third,
           l.shape, l.cells, a.pad, l.x.c < l.x.w, k);
  }
}

}  // namespace

void haar_analysis(const HaarArguments& a) {
  if (a.shape.n * a.shape.c * a.shape.h * a.shape.w == 0 || (!a.low && !a.high)) return;
  dispatch(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    const Layout l = layout_of(a, sizeof(T));
    run<typename Compute<T>::type>(
        "haar_analysis", a, l, kVector<T>, Image<const T>{static_cast<const T*>(a.x), l.x},
        Image<T>{static_cast<T*>(a.low), l.low},
        High<T>{static_cast<T*>(a.high), {l.high.n, l.band, l.high.c, l.high.h, l.high.w}},
        haar_analysis_rows<T>, haar_analysis_pixels<T>, haar_analysis_strided<T>);
  });
}

void haar_synthesis(const HaarArguments& a) {
  if (a.shape.n * a.shape.c * a.shape.h * a.shape.w == 0) return;
  dispatch(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    const Layout l = layout_of(a, sizeof(T));
    run<typename Compute<T>::type>("haar_synthesis", a, l, kVector<T>,
                                   Image<const T>{static_cast<const T*>(a.low), l.low},
                                   High<const T>{static_cast<const T*>(a.high),
                                                 {l.high.n, l.band, l.high.c, l.high.h, l.high.w}},
                                   Image<T>{static_cast<T*>(a.x), l.x}, haar_synthesis_rows<T>,
                                   haar_synthesis_pixels<T>, haar_synthesis_strided<T>);
  });
}

}  // namespace srk::cuda
