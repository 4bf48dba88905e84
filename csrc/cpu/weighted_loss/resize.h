// The weight map resized to the image, in tiles. Of one row of the image, between the map's rows
// `low` and `high`, of which the second has the share `lambda`, it computes
//
//   for (x = 0; x < w; ++x) {
//     upper[x] = (1 - share[x]) * map[low][left[x]] + share[x] * map[low][right[x]];
//     lower[x] = (1 - share[x]) * map[high][left[x]] + share[x] * map[high][right[x]];
//   }
//   for (x = 0; x < w; ++x) out[x] = scale * ((1 - lambda) * upper[x] + lambda * lower[x]);
//
// 1. left, right and share are the same for every row: they are computed once.
// 2. stretch() makes upper and lower, and keeps both while the image's rows lie between the same
//    two rows of the map: for a map of an eighth of the image, one in eight is made anew. The
//    sources of a vector of outputs lie in one vector of the map, from which `picked` (simd.h)
//    takes each lane's.
// 3. run_blend() makes out, in the type that is asked for.
//
// Without a map there is nothing to do: all weights are one.
#pragma once
#include "../buffer.h"
#include "tiles.h"

namespace srk::SRK_ISA {
namespace {

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
using BlendOf = void (*)(const F*, const F*, F, F, void*, int64_t, int64_t);

// What one thread keeps between its tiles.
template <class F>
struct ResizedWeight {
  using Blend = BlendOf<F>;

  const WeightedLossArguments& a;
  const Tiling& t;
  const bool per_channel;  // in a run of pixels each channel has its own weight
  const Resize<F> vertical;
  const Resize<F, int32_t> horizontal;
  Buffer<int32_t> left, right;
  Buffer<F> share, row_values;
  Buffer<F> stretched[2], values[2];
  bool near = true;  // the sources of each vector of outputs fit one vector
  int64_t cached_row[2] = {-1, -1}, cached_n = -1, cached_c = -1;

  // `buffers`: how many tiles are asked for at a time.
  ResizedWeight(const WeightedLossArguments& args, const Tiling& tiles, int buffers = 1)
      : a(args),
        t(tiles),
        per_channel(tiles.pixels && args.weight_shape.c > 1),
        vertical(args.weight_shape.h, args.shape.h, args.resize),
        horizontal(args.weight_shape.w, args.shape.w, args.resize),
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

  // A row of weights, stretched; kept in one of two slots until another row needs it. (In a run of
  // pixels the channels of a pixel have one weight each, or share it.)
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

}  // namespace
}  // namespace srk::SRK_ISA
