// The three loops over a run: elements that lie side by side in both images, with their weights w.
//
//   for (i = 0; i < size; ++i) sum += w[i] * fabs(x[i] - t[i]);       // run_sum
//   for (i = 0; i < size; ++i) out[i] = fabs(x[i] - t[i]);            // run_difference
//   for (i = 0; i < size; ++i) {                                      // run_gradient
//     d = x[i] - t[i];
//     g[i] = d > 0 ? w[i] : d < 0 ? -w[i] : 0;
//   }
//
// 1. Take a vector of each image, converted to fp32 (or fp64) as it is loaded (simd.h).
// 2. Compute on all lanes at once. The sum goes into four vectors in turn: into one, each addition
//    would wait for the one before.
// 3. Finish what is less than a vector value by value.
//
// Each loop is compiled for every pair of types; runs() picks the pair when a call comes.
#pragma once
#include "operands.h"

namespace srk::SRK_ISA {
namespace {

constexpr int64_t kAhead = 4096;  // bytes of an image fetched ahead

// The sum of a vector's lanes, in the type of the second argument.
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

// The loops for one pair of types; F: the type that is computed in.
template <class F>
struct Runs {
  double (*sum)(const void*, const void*, const F*, int64_t);
  void (*difference)(const void*, const void*, F*, int64_t);
  void (*gradient)(const void*, const void*, const F*, F, void*, int64_t);
};

Runs<double> runs(DType, DType, double) {
  return {run_sum<double, double>, run_difference<double, double>, run_gradient<double, double>};
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

}  // namespace
}  // namespace srk::SRK_ISA
