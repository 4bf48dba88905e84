// The signs of x - t, which forward keeps so that backward need not read two images again: two bits
// an element, in a word for each 16.
//
//   for (i = 0; i < size; ++i) {                                      // run_sum_signs
//     sum += w[i] * fabs(x[i] - t[i]);
//     word[i / 16] |= (x[i] > t[i]) << i % 16 | (x[i] < t[i]) << (16 + i % 16);
//   }
//   for (i = 0; i < size; ++i) {                                      // run_signed
//     plus = word[i / 16] >> i % 16 & 1, minus = word[i / 16] >> (16 + i % 16) & 1;
//     g[i] = plus ? w[i] : minus ? -w[i] : 0;
//   }
//
// 1. Comparing two vectors gives one bit for each lane: a few comparisons make a word.
// 2. Reading it back, one bit for each lane chooses between the slope, its negative and zero.
// 3. The slopes come already rounded to the gradient's type, so 16-bit gradients are moved as
//    integers, twice as many lanes to a vector, and rounded once for all channels.
#pragma once
#include "resize.h"
#include "runs.h"
#include "tiles.h"

namespace srk::SRK_ISA {
namespace {

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

// run_gradient from signs; `target`: the gradient of the target, of the opposite sign. A whole
// vector of slopes may be read past the run's end.
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

// The word with the signs of a run's first element.
uint32_t* signs_of(const WeightedLossArguments& a, bool pixels, int64_t n, int64_t c, int64_t row) {
  const int64_t element = pixels ? (n * a.shape.h + row) * a.shape.w * a.shape.c
                                 : ((n * a.shape.c + c) * a.shape.h + row) * a.shape.w;
  return a.signs + element / kSignGroup;
}

using SignedSum = double (*)(const void*, const void*, const float*, int64_t, uint32_t*);

// The loops for one type of gradient. Signs are kept only where sums are in fp32.
struct SignedRuns {
  void (*gradient)(const uint32_t*, bool, const void*, float, void*, int64_t);
  void (*streaming)(const uint32_t*, bool, const void*, float, void*, int64_t);
  BlendOf<float> blend;
};

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

}  // namespace
}  // namespace srk::SRK_ISA
