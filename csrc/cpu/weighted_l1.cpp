// Weighted L1 loss on CPU.
//
//   loss        = sum w |x - t| / norm           w: the map, resized bilinearly to the image
//   d loss / dx = w sign(x - t) grad / norm      d loss / dt = -d loss / dx
//   d loss / dw = |x - t| grad / norm            carried back through the resize (its adjoint)
// and, where norm is the sum of w, d loss / dw = (|x - t| - loss) grad / norm.
//
// The image is walked in tiles, runs of elements that are contiguous in both operands: some rows of
// a plane, or some rows of channels_last pixels. For each tile the resized weight is made once, in
// cache, and used by all channels. Tiles do not depend on the number of threads and their sums are
// added in order: the result is deterministic.
#include "weighted_l1.h"

#include "buffer.h"
#include "parallel.h"
#include "simd.h"
#include "streaming.h"

namespace srk::SRK_ISA {
namespace {

constexpr int64_t kTileElements =
    4096;  // of weights: 16 KiB, so that weights and operands share the first cache
constexpr int kSignGroup = 16;             // elements whose signs share a word
constexpr int64_t kGrainElements = 16384;  // fewest elements worth a second thread
constexpr int64_t kAhead = 4096;           // bytes of an image fetched ahead

int64_t element_size(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

const void* address(const Operand& o, int64_t offset) {
  return static_cast<const char*>(o.data) + offset * element_size(o.dtype);
}

// Runs of contiguous elements

template <class V>
SRK_HD typename Simd<float>::Scalar horizontal(V v, float) {
  float total = 0;
  for (int i = 0; i < lanes<V>(); ++i) total += v[i];
  return total;
}
template <class V>
SRK_HD double horizontal(V v, double) {
  double total = 0;
  for (int i = 0; i < lanes<V>(); ++i) total += v[i];
  return total;
}

// sum of w |x - t|; w null: of |x - t|
template <class X, class T>
double run_sum(const void* xp, const void* tp, const typename Simd<X>::Scalar* w, int64_t size) {
  using F = typename Simd<X>::Scalar;
  using V = typename Simd<X>::Vector;
  constexpr int N = lanes<V>();
  const X* x = static_cast<const X*>(xp);
  const T* t = static_cast<const T*>(tp);
  V total[4] = {};
  int64_t i = 0;
  for (; i + 4 * N <= size; i += 4 * N) {
    fetch_ahead<4 * N * sizeof(X)>(x + i + kAhead / sizeof(X));
    fetch_ahead<4 * N * sizeof(T)>(t + i + kAhead / sizeof(T));
    for (int j = 0; j < 4; ++j) {
      const V d = absolute(Simd<X>::load(x + i + j * N) - Simd<T>::load(t + i + j * N));
      total[j] += w ? d * Simd<F>::load(w + i + j * N) : d;
    }
  }
  for (; i + N <= size; i += N) {
    const V d = absolute(Simd<X>::load(x + i) - Simd<T>::load(t + i));
    total[0] += w ? d * Simd<F>::load(w + i) : d;
  }
  F rest = 0;
  for (; i < size; ++i) {
    const F d = absolute(Simd<X>::get(x + i) - Simd<T>::get(t + i));
    rest += w ? d * w[i] : d;
  }
  return double(horizontal((total[0] + total[1]) + (total[2] + total[3]), F(0))) + double(rest);
}

// out = |x - t|
template <class X, class T>
void run_difference(const void* xp, const void* tp, typename Simd<X>::Scalar* out, int64_t size) {
  using F = typename Simd<X>::Scalar;
  using V = typename Simd<X>::Vector;
  constexpr int N = lanes<V>();
  const X* x = static_cast<const X*>(xp);
  const T* t = static_cast<const T*>(tp);
  int64_t i = 0;
  for (; i + N <= size; i += N)
    Simd<F>::store(out + i, absolute(Simd<X>::load(x + i) - Simd<T>::load(t + i)));
  for (; i < size; ++i) out[i] = absolute(Simd<X>::get(x + i) - Simd<T>::get(t + i));
}

// g = sign(x - t) w; w null: times `constant`
template <class X, class T>
void run_gradient(const void* xp, const void* tp, const typename Simd<X>::Scalar* w,
                  typename Simd<X>::Scalar constant, void* gp, int64_t size) {
  using F = typename Simd<X>::Scalar;
  using V = typename Simd<X>::Vector;
  constexpr int N = lanes<V>();
  const X* x = static_cast<const X*>(xp);
  const T* t = static_cast<const T*>(tp);
  X* g = static_cast<X*>(gp);
  const V flat = broadcast(constant, V{});
  int64_t i = 0;
  for (; i + N <= size; i += N) {
    const V d = Simd<X>::load(x + i) - Simd<T>::load(t + i);
    const V slope = w ? Simd<F>::load(w + i) : flat;
    Simd<X>::store(g + i, d > F(0) ? slope : (d < F(0) ? -slope : V{}));
  }
  for (; i < size; ++i) {
    const F d = Simd<X>::get(x + i) - Simd<T>::get(t + i);
    const F slope = w ? w[i] : constant;
    Simd<X>::put(g + i, d > F(0) ? slope : (d < F(0) ? -slope : F(0)));
  }
}

// run_sum, which also leaves the signs; `size` is a multiple of kSignGroup. fp32 lanes only.
template <class X, class T>
double run_sum_signs(const void* xp, const void* tp, const float* w, int64_t size,
                     uint32_t* signs) {
  const X* x = static_cast<const X*>(xp);
  const T* t = static_cast<const T*>(tp);
  vfloat total[kSignGroup / kFloats] = {};
  for (int64_t i = 0; i < size; i += kSignGroup) {
    fetch_ahead<kSignGroup * sizeof(X)>(x + i + kAhead / sizeof(X));
    fetch_ahead<kSignGroup * sizeof(T)>(t + i + kAhead / sizeof(T));
    uint32_t plus = 0, minus = 0;
    for (int j = 0; j < kSignGroup / kFloats; ++j) {
      const vfloat d = Simd<X>::load(x + i + j * kFloats) - Simd<T>::load(t + i + j * kFloats);
      plus |= greater_bits(d, vfloat{}) << (j * kFloats);
      minus |= greater_bits(vfloat{}, d) << (j * kFloats);
      total[j] += w ? absolute(d) * Simd<float>::load(w + i + j * kFloats) : absolute(d);
    }
    signs[i / kSignGroup] = plus | minus << 16;
  }
  double sum = 0;
  for (const vfloat& v : total) sum += double(horizontal(v, 0.0f));
  return sum;
}

// A vector of values as they are stored.
template <class S>
struct Stored {
  using Vector = vhalves;
};
template <>
struct Stored<float> {
  using Vector = vfloat;
};

// run_gradient from signs; `target`: the gradient of the target, of the opposite sign. The slopes
// are already in the gradient's type, one rounding serving all channels; a vector of them may be
// read past the run's end.
template <class X, bool kStream>
void run_signed(const uint32_t* signs, bool target, const void* slopes, float constant, void* gp,
                int64_t size) {
  using V = typename Stored<X>::Vector;
  constexpr int N = sizeof(V) / sizeof(X), kStep = N > kSignGroup ? N : kSignGroup;
  const X* w = static_cast<const X*>(slopes);
  X* g = static_cast<X*>(gp);
  X same[N];
  for (X& x : same) Simd<X>::put(&x, constant);
  const V flat = load_unaligned<V>(same);
  for (int64_t i = 0; i < size; i += kStep) {
    uint32_t plus = signs[i / kSignGroup] & 0xffffu, minus = signs[i / kSignGroup] >> 16;
    const bool whole = i + kStep <= size;
    if (N > kSignGroup && whole) {
      plus |= signs[i / kSignGroup + 1] << 16;
      minus |= signs[i / kSignGroup + 1] & 0xffff0000u;
    }
    if (target) {
      const uint32_t swapped = plus;
      plus = minus;
      minus = swapped;
    }
    for (int j = 0; j < kStep; j += N) {
      const V slope = w ? load_unaligned<V>(w + i + j) : flat;
      const V value = signed_by(plus >> j, minus >> j, slope);
      if constexpr (N > kSignGroup) {
        if (!whole) {
          __builtin_memcpy(g + i, &value, kSignGroup * sizeof(X));
          return;
        }
      }
      kStream ? store_streaming(g + i + j, value) : store_unaligned(g + i + j, value);
    }
  }
}

// out[at...] = from * upper + to * lower, in a storage type; from * upper if they are one row
template <class S>
void run_blend(const typename Simd<S>::Scalar* from, const typename Simd<S>::Scalar* to,
               typename Simd<S>::Scalar upper, typename Simd<S>::Scalar lower, void* out,
               int64_t at, int64_t size) {
  using F = typename Simd<S>::Scalar;
  using V = typename Simd<S>::Vector;
  constexpr int N = lanes<V>();
  S* y = static_cast<S*>(out) + at;
  const auto blend = [&](int64_t i) {
    const V v = Simd<F>::load(from + i) * upper;
    return from == to ? v : v + Simd<F>::load(to + i) * lower;
  };
  int64_t i = 0;
  for (; i + 2 * N <= size; i += 2 * N) Simd<S>::store_two(y + i, blend(i), blend(i + N));
  for (; i < size; ++i)
    Simd<S>::put(y + i, from == to ? from[i] * upper : from[i] * upper + to[i] * lower);
}

template <class F>
struct Runs {
  double (*sum)(const void*, const void*, const F*, int64_t);
  void (*difference)(const void*, const void*, F*, int64_t);
  void (*gradient)(const void*, const void*, const F*, F, void*, int64_t);
};

template <class F>
using BlendOf = void (*)(const F*, const F*, F, F, void*, int64_t, int64_t);
using SignedSum = double (*)(const void*, const void*, const float*, int64_t, uint32_t*);

// From signs, which are kept where sums are in fp32: by the gradient's type.
struct SignedRuns {
  void (*gradient)(const uint32_t*, bool, const void*, float, void*, int64_t);
  void (*streaming)(const uint32_t*, bool, const void*, float, void*, int64_t);
  BlendOf<float> blend;
};

Runs<double> runs(DType, DType, double) {
  return {run_sum<double, double>, run_difference<double, double>, run_gradient<double, double>};
}

// `call` with a value of the type that is read into fp32.
template <class Call>
auto with_type(DType t, Call call) {
  return t == DType::f32 ? call(0.0f) : t == DType::bf16 ? call(bf16{}) : call(f16{});
}

Runs<float> runs(DType x, DType t, float) {
  return with_type(x, [t](auto one) {
    return with_type(t, [](auto other) {
      using X = decltype(one);
      using T = decltype(other);
      return Runs<float>{run_sum<X, T>, run_difference<X, T>, run_gradient<X, T>};
    });
  });
}

SignedSum signed_sum(DType x, DType t) {
  return with_type(x, [t](auto one) {
    return with_type(
        t, [](auto other) -> SignedSum { return run_sum_signs<decltype(one), decltype(other)>; });
  });
}

SignedRuns signed_runs(DType gradient) {
  return with_type(gradient, [](auto one) {
    using X = decltype(one);
    return SignedRuns{run_signed<X, false>, run_signed<X, true>, run_blend<X>};
  });
}

template <class F, class S>
void convert_in(const S* from, F* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) to[i] = F(Simd<S>::get(from + i));
}

template <class F, class S>
void convert_out(const F* from, S* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) Simd<S>::put(to + i, typename Simd<S>::Scalar(from[i]));
}

template <class F>
void read(DType t, const void* from, F* to, int64_t size) {
  switch (t) {
    case DType::f32:
      return convert_in(static_cast<const float*>(from), to, size);
    case DType::bf16:
      return convert_in(static_cast<const bf16*>(from), to, size);
    case DType::f16:
      return convert_in(static_cast<const f16*>(from), to, size);
    case DType::f64:
      return convert_in(static_cast<const double*>(from), to, size);
  }
}

template <class F>
void write(DType t, void* to, const F* from, int64_t size) {
  switch (t) {
    case DType::f32:
      return convert_out(from, static_cast<float*>(to), size);
    case DType::bf16:
      return convert_out(from, static_cast<bf16*>(to), size);
    case DType::f16:
      return convert_out(from, static_cast<f16*>(to), size);
    case DType::f64:
      return convert_out(from, static_cast<double*>(to), size);
  }
}

// Tiles

// How an image is cut. A tile is `rows` image rows of one image and, in planes, of a block of
// channels.
struct Tiling {
  bool pixels;  // channels_last runs; otherwise runs within one channel's plane
  bool joined;  // neighbouring rows are contiguous: a tile is one run (per channel)
  int64_t rows, channels;
  int64_t row_elements;  // of a run: w, or w * c
  int64_t row_blocks, channel_blocks, tiles;
};

bool rows_joined(const Operand& o, bool pixels, int64_t w, int64_t c) {
  return !o.data || (pixels ? o.stride.h == w * c : o.stride.h == w);
}

Tiling tiling(const WeightedL1Arguments& a) {
  Tiling t;
  t.pixels = !(a.input.stride.w == 1 && a.target.stride.w == 1);
  t.row_elements = t.pixels && a.shape.c > 0 ? a.shape.w * a.shape.c : a.shape.w;
  t.joined = true;
  const Operand* const images[] = {&a.input, &a.target, &a.grad_input, &a.grad_target};
  for (const Operand* o : images)
    t.joined = t.joined && rows_joined(*o, t.pixels, a.shape.w, a.shape.c);
  if (a.reduction == Reduction::none) {
    t.joined = t.joined && rows_joined(a.out, t.pixels, a.shape.w, a.shape.c) &&
               rows_joined(a.grad, t.pixels, a.shape.w, a.shape.c);
  }
  t.rows = kTileElements / t.row_elements;
  if (a.signs) {  // tiles of whole sign words: at most 16 rows join into some
    int64_t step = kSignGroup;
    while (step > 1 && t.row_elements * (step / 2) % kSignGroup == 0) step /= 2;
    t.rows = t.rows / step * step;
    if (t.rows < step) t.rows = step;
  }
  if (t.rows < 1) t.rows = 1;
  if (t.rows > a.shape.h) t.rows = a.shape.h;
  t.channels = t.pixels ? a.shape.c : 4 * kGrainElements / (t.rows * t.row_elements);
  if (t.channels < 1) t.channels = 1;
  if (t.channels > a.shape.c) t.channels = a.shape.c;
  t.row_blocks = (a.shape.h + t.rows - 1) / t.rows;
  t.channel_blocks = t.channels > 0 ? (a.shape.c + t.channels - 1) / t.channels : 0;
  t.tiles = a.shape.n * t.row_blocks * t.channel_blocks;
  return t;
}

// The resized weight of tiles. Along a row the two source cells and their share are the same for
// every row, so each low-resolution row is stretched once and kept while neighbouring image rows
// lie between the same two.
template <class F>
struct ResizedWeight {
  using Blend = BlendOf<F>;

  const WeightedL1Arguments& a;
  const Tiling& t;
  const bool per_channel;  // in a run of pixels each channel has its own weight
  const Resize<F> vertical;
  const Resize<F, int32_t> horizontal;
  Buffer<int32_t> left, right;
  Buffer<F> share, row_values;
  Buffer<F> stretched[2], values[2];
  bool near = true;  // what a vector of outputs is made of fits one vector
  int64_t cached_row[2] = {-1, -1}, cached_n = -1, cached_c = -1;

  // `buffers`: how many tiles are asked for at a time.
  ResizedWeight(const WeightedL1Arguments& args, const Tiling& tiles, int buffers = 1)
      : a(args),
        t(tiles),
        per_channel(tiles.pixels && args.weight_shape.c > 1),
        vertical(args.weight_shape.h, args.shape.h, args.align_corners),
        horizontal(args.weight_shape.w, args.shape.w, args.align_corners),
        left(args.weight.data ? args.shape.w : 0),
        right(args.weight.data ? args.shape.w : 0),
        share(args.weight.data ? args.shape.w : 0),
        row_values(args.weight.data ? args.weight_shape.w + kFloats : 0),
        stretched{Buffer<F>(args.weight.data ? tiles.row_elements : 0),
                  Buffer<F>(args.weight.data ? tiles.row_elements : 0)},
        values{Buffer<F>(args.weight.data ? tiles.rows * tiles.row_elements + 2 * kFloats : 0),
               Buffer<F>(args.weight.data && buffers > 1
                             ? tiles.rows * tiles.row_elements + 2 * kFloats
                             : 0)} {
    if (!a.weight.data) return;
    for (int64_t x = 0; x < a.shape.w; ++x)
      horizontal.source(int32_t(x), left[x], right[x], share[x]);
    for (int64_t x = kFloats - 1; x < a.shape.w; x += kFloats)
      near = near && right[x] - left[x - kFloats + 1] < kFloats;
    for (int i = 0; i < kFloats; ++i) row_values[a.weight_shape.w + i] = F(0);
  }

  // Not from + share * (to - from), which makes NaN of two infinities.
  static F between(F from, F to, bool one, F share) {
    return one ? from : (F(1) - share) * from + share * to;
  }

  // A whole row of weights, `row`, as wide as the image.
  void stretch_plane(const F* row, F* out) const {
    int64_t x = 0;
    if constexpr (sizeof(F) == sizeof(float)) {
      for (; near && x + kFloats <= a.shape.w; x += kFloats) {
        const uint32_t first = uint32_t(left[x]);
        const vfloat sources = load_unaligned<vfloat>(row + first);
        const vuint from = load_unaligned<vuint>(left.data + x) - first;
        const vuint to = load_unaligned<vuint>(right.data + x) - first;
        const vfloat a = picked(sources, from), b = picked(sources, to);
        const vfloat part = load_unaligned<vfloat>(share.data + x);
        store_unaligned(out + x, from == to ? a : (1.0f - part) * a + part * b);
      }
    }
    for (; x < a.shape.w; ++x)
      out[x] = between(row[left[x]], row[right[x]], left[x] == right[x], share[x]);
  }

  const F* stretch(int64_t n, int64_t c, int64_t row) {
    if (n != cached_n || c != cached_c) {
      cached_row[0] = cached_row[1] = -1;
      cached_n = n;
      cached_c = c;
    }
    const int slot = int(row & 1);
    F* out = stretched[slot].data;
    if (cached_row[slot] == row) return out;
    cached_row[slot] = row;
    const Strides& s = a.weight.stride;
    const F* w = static_cast<const F*>(a.weight.data) + n * s.n + c * s.c + row * s.h;
    if (!t.pixels) {
      for (int64_t x = 0; x < a.weight_shape.w; ++x) row_values[x] = w[x * s.w];
      stretch_plane(row_values.data, out);
      return out;
    }
    for (int64_t x = 0; x < a.shape.w; ++x) {
      for (int64_t k = 0; k < a.shape.c; ++k) {
        const F* v = w + (per_channel ? k * s.c : 0);
        out[x * a.shape.c + k] =
            between(v[left[x] * s.w], v[right[x] * s.w], left[x] == right[x], share[x]);
      }
    }
    return out;
  }

  // scale * weight for image rows [first, first + rows) of image n and channel c, by `blend` in its
  // storage type, in one of two buffers.
  const void* tile(int64_t n, int64_t c, int64_t first, int64_t rows, F scale, Blend blend,
                   int buffer = 0) {
    n = a.weight_shape.n > 1 ? n : 0;
    c = a.weight_shape.c > 1 && !t.pixels ? c : 0;
    for (int64_t i = 0; i < rows; ++i) {
      int64_t low, high;
      F lambda;
      vertical.source(first + i, low, high, lambda);
      const F *from = stretch(n, c, low), *to = stretch(n, c, high);
      blend(from, to, low == high ? scale : scale * (F(1) - lambda), scale * lambda,
            values[buffer].data, i * t.row_elements, t.row_elements);
    }
    return values[buffer].data;
  }
};

int64_t offset(const Operand& o, int64_t n, int64_t c, int64_t row) {
  return n * o.stride.n + c * o.stride.c + row * o.stride.h;
}

// Start of a row of an output; null if it is not wanted.
void* row_of(const Operand& o, int64_t n, int64_t c, int64_t row) {
  return o.data ? const_cast<void*>(address(o, offset(o, n, c, row))) : nullptr;
}

// The word with the signs of a run's first element.
uint32_t* signs_of(const WeightedL1Arguments& a, bool pixels, int64_t n, int64_t c, int64_t row) {
  const int64_t element = pixels ? (n * a.shape.h + row) * a.shape.w * a.shape.c
                                 : ((n * a.shape.c + c) * a.shape.h + row) * a.shape.w;
  return a.signs + element / kSignGroup;
}

struct Tile {
  int64_t n, first_channel, last_channel, first_row, rows;
};

Tile tile_at(const WeightedL1Arguments& a, const Tiling& t, int64_t index) {
  Tile tile;
  const int64_t block = index % t.channel_blocks, rest = index / t.channel_blocks;
  tile.n = rest / t.row_blocks;
  tile.first_row = rest % t.row_blocks * t.rows;
  tile.rows = a.shape.h - tile.first_row < t.rows ? a.shape.h - tile.first_row : t.rows;
  tile.first_channel = t.pixels ? 0 : block * t.channels;
  tile.last_channel = t.pixels ? 1
                      : tile.first_channel + t.channels < a.shape.c
                          ? tile.first_channel + t.channels
                          : a.shape.c;
  return tile;
}

// body(channel, image row, offset of its weights in the tile, elements) for each run of a tile.
template <class Body>
SRK_HD void for_each_run(const Tiling& t, const Tile& tile, int64_t channel, const Body& body) {
  if (t.joined) {
    body(channel, tile.first_row, int64_t(0), tile.rows * t.row_elements);
  } else {
    for (int64_t i = 0; i < tile.rows; ++i)
      body(channel, tile.first_row + i, i * t.row_elements, t.row_elements);
  }
}

template <class F>
double total(const F* values, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += double(values[i]);
  return sum;
}

int64_t grain(const Tiling& t) {
  const int64_t elements = t.rows * t.row_elements * (t.pixels ? 1 : t.channels);
  return 1 + kGrainElements / (elements > 0 ? elements : 1);
}

template <class F>
void forward(const WeightedL1Arguments& a) {
  const Tiling t = tiling(a);
  const Runs<F> run = runs(a.input.dtype, a.target.dtype, F(0));
  const bool none = a.reduction == Reduction::none;
  Buffer<double> losses(t.tiles), weights(a.statistics ? t.tiles : 1);
  parallel_ranges(t.tiles, grain(t), a.launch.threads, [&](int64_t begin, int64_t end) {
    Buffer<F> scratch(none ? t.rows * t.row_elements : 1);
    ResizedWeight<F> resized(a, t);
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = tile_at(a, t, index);
      double loss = 0, weight = 0;
      const F* w = nullptr;
      for (int64_t c = tile.first_channel; c < tile.last_channel; ++c) {
        if (a.weight.data && (c == tile.first_channel || a.weight_shape.c > 1)) {
          w = static_cast<const F*>(
              resized.tile(tile.n, c, tile.first_row, tile.rows, F(1), run_blend<F>));
          if (a.statistics) {
            const int64_t sharing =
                a.weight_shape.c > 1 || t.pixels ? 1 : tile.last_channel - tile.first_channel;
            weight += double(sharing) * total(w, tile.rows * t.row_elements);
          }
        }
        for_each_run(t, tile, c, [&](int64_t channel, int64_t row, int64_t from, int64_t size) {
          const void* x = address(a.input, offset(a.input, tile.n, channel, row));
          const void* y = address(a.target, offset(a.target, tile.n, channel, row));
          if (!none) {
            const F* weights = w ? w + from : nullptr;
            if constexpr (sizeof(F) == sizeof(float)) {
              if (a.signs) {
                uint32_t* signs = signs_of(a, t.pixels, tile.n, channel, row);
                loss += signed_sum(a.input.dtype, a.target.dtype)(x, y, weights, size, signs);
                return;
              }
            }
            loss += run.sum(x, y, weights, size);
            return;
          }
          run.difference(x, y, scratch.data, size);
          if (w)
            for (int64_t i = 0; i < size; ++i) scratch[i] *= w[from + i];
          write(a.out.dtype, const_cast<void*>(address(a.out, offset(a.out, tile.n, channel, row))),
                scratch.data, size);
        });
      }
      losses[index] = loss;
      if (a.statistics) weights[index] = weight;
    }
  });
  if (none) return;
  double value = total(losses.data, t.tiles);
  if (a.statistics) {
    const double sum = total(weights.data, t.tiles);
    value /= sum;
    F* statistics = static_cast<F*>(a.statistics);
    statistics[0] = F(value);
    statistics[1] = F(sum);
  } else if (a.reduction == Reduction::mean) {
    value /= double(a.shape.n * a.shape.c * a.shape.h * a.shape.w);
  }
  write(a.out.dtype, a.out.data, &value, 1);
}

template <class F>
void gradient_of_operands(const WeightedL1Arguments& a, F scale) {
  const Tiling t = tiling(a);
  const Runs<F> by_input = runs(a.input.dtype, a.target.dtype, F(0));
  const Runs<F> by_target = runs(a.target.dtype, a.input.dtype, F(0));
  const bool none = a.reduction == Reduction::none;
  parallel_ranges(t.tiles, grain(t), a.launch.threads, [&](int64_t begin, int64_t end) {
    Buffer<F> scratch(none ? t.rows * t.row_elements : 1);
    ResizedWeight<F> resized(a, t);
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = tile_at(a, t, index);
      const F* w = nullptr;
      for (int64_t c = tile.first_channel; c < tile.last_channel; ++c) {
        if (a.weight.data && (c == tile.first_channel || a.weight_shape.c > 1))
          w = static_cast<const F*>(
              resized.tile(tile.n, c, tile.first_row, tile.rows, scale, run_blend<F>));
        for_each_run(t, tile, c, [&](int64_t channel, int64_t row, int64_t from, int64_t size) {
          const F* slope = w ? w + from : nullptr;
          if (none) {
            read(a.grad.dtype, address(a.grad, offset(a.grad, tile.n, channel, row)), scratch.data,
                 size);
            if (w)
              for (int64_t i = 0; i < size; ++i) scratch[i] *= w[from + i];
            slope = scratch.data;
          }
          void* to_input = row_of(a.grad_input, tile.n, channel, row);
          void* to_target = row_of(a.grad_target, tile.n, channel, row);
          const void* x = address(a.input, offset(a.input, tile.n, channel, row));
          const void* y = address(a.target, offset(a.target, tile.n, channel, row));
          if (to_input) by_input.gradient(x, y, slope, scale, to_input, size);
          if (to_target) by_target.gradient(y, x, slope, scale, to_target, size);
        });
      }
    }
  });
}

// The same from sign words, without a look at the images.
void gradient_from_signs(const WeightedL1Arguments& a, float scale) {
  const Tiling t = tiling(a);
  const Operand* const outputs[] = {&a.grad_input, &a.grad_target};
  SignedRuns run[2];
  bool stream[2];
  for (int i = 0; i < 2; ++i) {
    const Operand& g = *outputs[i];
    run[i] = signed_runs(g.dtype);
    const int64_t elements = a.shape.n * a.shape.c * a.shape.h * a.shape.w;
    stream[i] = g.data && worth_streaming(g.data, elements * element_size(g.dtype));
  }
  parallel_ranges(t.tiles, grain(t), a.launch.threads, [&](int64_t begin, int64_t end) {
    ResizedWeight<float> resized(a, t, 2);
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = tile_at(a, t, index);
      const void* slopes[2] = {};
      for (int64_t c = tile.first_channel; c < tile.last_channel; ++c) {
        if (a.weight.data && (c == tile.first_channel || a.weight_shape.c > 1)) {
          for (int i = 0; i < 2; ++i)
            if (outputs[i]->data)
              slopes[i] =
                  resized.tile(tile.n, c, tile.first_row, tile.rows, scale, run[i].blend, i);
        }
        for_each_run(t, tile, c, [&](int64_t channel, int64_t row, int64_t from, int64_t size) {
          const uint32_t* signs = signs_of(a, t.pixels, tile.n, channel, row);
          for (int i = 0; i < 2; ++i) {
            const Operand& g = *outputs[i];
            if (!g.data) continue;
            const void* slope = slopes[i];
            if (slope) slope = static_cast<const char*>(slope) + from * element_size(g.dtype);
            void* to = row_of(g, tile.n, channel, row);
            const bool past_caches = stream[i] && aligned_for_streaming(to, 0);
            const auto kernel = past_caches ? run[i].streaming : run[i].gradient;
            kernel(signs, i == 1, slope, scale, to, size);
          }
        });
      }
    }
    drain_streams();
  });
}

// Adjoint of the resize, by gathering: a task owns a band of weight rows and reads every image row
// that reaches it. Rows at the edge of a band are read by two tasks; no result is shared, so no
// atomics and one fixed order.
template <class F>
void gradient_of_weight(const WeightedL1Arguments& a, F scale) {
  const Tiling t = tiling(a);
  const Runs<F> run = runs(a.input.dtype, a.target.dtype, F(0));
  const Resize<F> vertical(a.weight_shape.h, a.shape.h, a.align_corners),
      horizontal(a.weight_shape.w, a.shape.w, a.align_corners);
  const bool none = a.reduction == Reduction::none;
  const F mean = a.statistics ? static_cast<const F*>(a.statistics)[0] : F(0);
  const int64_t band = a.weight_shape.h < 8 ? a.weight_shape.h : 8;
  const int64_t bands = (a.weight_shape.h + band - 1) / band;
  // An image of no elements has no address to read; its sums are empty.
  const bool empty = a.shape.n * a.shape.c == 0;
  const int64_t n_each = empty                  ? 0
                         : a.weight_shape.n > 1 ? 1
                                                : a.shape.n,
                c_each = a.weight_shape.c > 1 ? 1 : a.shape.c;

  parallel_ranges(
      a.weight_shape.n * a.weight_shape.c * bands, 1, a.launch.threads,
      [&](int64_t begin, int64_t end) {
        Buffer<int64_t> left(a.shape.w), right(a.shape.w);
        Buffer<F> share(a.shape.w), run_values(t.row_elements), run_grad(t.row_elements);
        Buffer<double> row_sum(a.shape.w), sums(band * a.weight_shape.w),
            gathered(a.weight_shape.w);
        Buffer<F> out_row(a.weight_shape.w);
        for (int64_t x = 0; x < a.shape.w; ++x) horizontal.source(x, left[x], right[x], share[x]);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t first = task % bands * band, plane = task / bands;
          const int64_t wc = plane % a.weight_shape.c, wn = plane / a.weight_shape.c;
          const int64_t last = first + band < a.weight_shape.h ? first + band : a.weight_shape.h;
          for (int64_t i = 0; i < (last - first) * a.weight_shape.w; ++i) sums[i] = 0;
          for (int64_t y = 0; y < a.shape.h; ++y) {
            int64_t low, high;
            F lambda;
            vertical.source(y, low, high, lambda);
            if (high < first) continue;
            if (low >= last) break;
            for (int64_t x = 0; x < a.shape.w; ++x) row_sum[x] = 0;
            for (int64_t n = wn; n < wn + n_each; ++n) {
              // In planes a run is one channel's row; in pixels it is a row of all channels.
              const int64_t first_run = t.pixels ? 0 : wc, runs_here = t.pixels ? 1 : c_each;
              for (int64_t c = first_run; c < first_run + runs_here; ++c) {
                run.difference(address(a.input, offset(a.input, n, c, y)),
                               address(a.target, offset(a.target, n, c, y)), run_values.data,
                               t.row_elements);
                if (a.statistics)
                  for (int64_t i = 0; i < t.row_elements; ++i) run_values[i] -= mean;
                if (none) {
                  read(a.grad.dtype, address(a.grad, offset(a.grad, n, c, y)), run_grad.data,
                       t.row_elements);
                  for (int64_t i = 0; i < t.row_elements; ++i) run_values[i] *= run_grad[i];
                }
                if (!t.pixels) {
                  for (int64_t x = 0; x < a.shape.w; ++x) row_sum[x] += double(run_values[x]);
                } else {
                  for (int64_t x = 0; x < a.shape.w; ++x)
                    for (int64_t k = 0; k < c_each; ++k)
                      row_sum[x] +=
                          double(run_values[x * a.shape.c + (a.weight_shape.c > 1 ? wc : k)]);
                }
              }
            }
            for (int64_t i = 0; i < a.weight_shape.w; ++i) gathered[i] = 0;
            for (int64_t x = 0; x < a.shape.w; ++x) {
              const bool one = left[x] == right[x];
              gathered[left[x]] += one ? row_sum[x] : double(F(1) - share[x]) * row_sum[x];
              if (!one) gathered[right[x]] += double(share[x]) * row_sum[x];
            }
            for (int64_t i = 0; i < a.weight_shape.w; ++i) {
              if (low >= first)
                sums[(low - first) * a.weight_shape.w + i] +=
                    low == high ? gathered[i] : double(F(1) - lambda) * gathered[i];
              if (high < last && low != high)
                sums[(high - first) * a.weight_shape.w + i] += double(lambda) * gathered[i];
            }
          }
          for (int64_t row = first; row < last; ++row)
            for (int64_t i = 0; i < a.weight_shape.w; ++i)
              static_cast<F*>(a.grad_weight.data)[offset(a.grad_weight, wn, wc, row) +
                                                  i * a.grad_weight.stride.w] =
                  F(double(scale) * sums[(row - first) * a.weight_shape.w + i]);
        }
      });
}

template <class F>
void backward(const WeightedL1Arguments& a) {
  double scale = 1;
  if (a.reduction != Reduction::none) read(a.grad.dtype, a.grad.data, &scale, 1);
  const int64_t size = a.shape.n * a.shape.c * a.shape.h * a.shape.w;
  if (size == 0) {
    scale =
        0;  // no element, so no slope: not the 0 * inf that dividing by nothing would make of it
  } else if (a.statistics) {
    scale /= double(static_cast<const F*>(a.statistics)[1]);
  } else if (a.reduction == Reduction::mean) {
    scale /= double(size);
  }
  if (a.grad_input.data || a.grad_target.data)
    a.signs ? gradient_from_signs(a, float(scale)) : gradient_of_operands(a, F(scale));
  if (a.grad_weight.data) gradient_of_weight(a, F(scale));
}

}  // namespace

void weighted_l1_forward(const WeightedL1Arguments& args) {
  args.input.dtype == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void weighted_l1_backward(const WeightedL1Arguments& args) {
  args.input.dtype == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace srk::SRK_ISA
