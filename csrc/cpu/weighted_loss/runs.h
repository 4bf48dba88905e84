// The three loops over a run: elements that lie side by side in both images, with their weights w.
//
//   for (i = 0; i < size; ++i) sum += w[i] * rho(x[i] - t[i]);        // run_sum
//   for (i = 0; i < size; ++i) out[i] = rho(x[i] - t[i]);             // run_penalty
//   for (i = 0; i < size; ++i) g[i] = w[i] * rho'(x[i] - t[i]);       // run_gradient
//
// with rho the absolute value or another penalty (common/penalty.h).
//
// 1. Take a vector of each image, converted to fp32 (or fp64) as it is loaded (simd.h).
// 2. Compute on all lanes at once. The sum goes into four vectors in turn: into one, each addition
//    would wait for the one before.
// 3. Finish what is less than a vector value by value.
//
// Each loop is compiled for every penalty and pair of types; runs() picks them when a call comes.
#pragma once
#include "../../common/penalty.h"
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

// sum of w rho(x - t); w null: of rho(x - t)
template <class X, class T, template <class> class Penalty>
double run_sum(const void* xp, const void* tp, const typename Simd<X>::Scalar* w, int64_t size,
               typename Simd<X>::Scalar parameter) {
  using F = typename Simd<X>::Scalar;
  using V = typename Simd<X>::Vector;
  constexpr int N = lanes<V>();
  const X* x = static_cast<const X*>(xp);
  const T* t = static_cast<const T*>(tp);
  const Penalty<F> penalty(parameter);
  V total[4] = {};
  int64_t i = 0;
  for (; i + 4 * N <= size; i += 4 * N) {
    fetch_ahead<4 * N * sizeof(X)>(x + i + kAhead / sizeof(X));
    fetch_ahead<4 * N * sizeof(T)>(t + i + kAhead / sizeof(T));
    for (int j = 0; j < 4; ++j) {
      const V d = penalty.value(Simd<X>::load(x + i + j * N) - Simd<T>::load(t + i + j * N));
      total[j] += w ? d * Simd<F>::load(w + i + j * N) : d;
    }
  }
  for (; i + N <= size; i += N) {
    const V d = penalty.value(Simd<X>::load(x + i) - Simd<T>::load(t + i));
    total[0] += w ? d * Simd<F>::load(w + i) : d;
  }
  F rest = 0;
  for (; i < size; ++i) {
    const F d = penalty.value(Simd<X>::get(x + i) - Simd<T>::get(t + i));
    rest += w ? d * w[i] : d;
  }
  return double(horizontal((total[0] + total[1]) + (total[2] + total[3]), F(0))) + double(rest);
}

// out = rho(x - t)
template <class X, class T, template <class> class Penalty>
void run_penalty(const void* xp, const void* tp, typename Simd<X>::Scalar* out, int64_t size,
                 typename Simd<X>::Scalar parameter) {
  using F = typename Simd<X>::Scalar;
  using V = typename Simd<X>::Vector;
  constexpr int N = lanes<V>();
  const X* x = static_cast<const X*>(xp);
  const T* t = static_cast<const T*>(tp);
  const Penalty<F> penalty(parameter);
  int64_t i = 0;
  for (; i + N <= size; i += N)
    Simd<F>::store(out + i, penalty.value(Simd<X>::load(x + i) - Simd<T>::load(t + i)));
  for (; i < size; ++i) out[i] = penalty.value(Simd<X>::get(x + i) - Simd<T>::get(t + i));
}

// g = w rho'(x - t); w null: times `constant`
template <class X, class T, template <class> class Penalty>
void run_gradient(const void* xp, const void* tp, const typename Simd<X>::Scalar* w,
                  typename Simd<X>::Scalar constant, void* gp, int64_t size,
                  typename Simd<X>::Scalar parameter) {
  using F = typename Simd<X>::Scalar;
  using V = typename Simd<X>::Vector;
  constexpr int N = lanes<V>();
  const X* x = static_cast<const X*>(xp);
  const T* t = static_cast<const T*>(tp);
  const Penalty<F> penalty(parameter);
  X* g = static_cast<X*>(gp);
  const V flat = broadcast(constant, V{});
  int64_t i = 0;
  for (; i + N <= size; i += N) {
    const V d = Simd<X>::load(x + i) - Simd<T>::load(t + i);
    const V slope = w ? Simd<F>::load(w + i) : flat;
    Simd<X>::store(g + i, penalty.slope(d, slope));
  }
  for (; i < size; ++i) {
    const F d = Simd<X>::get(x + i) - Simd<T>::get(t + i);
    const F slope = w ? w[i] : constant;
    Simd<X>::put(g + i, penalty.slope(d, slope));
  }
}

// The loops for one penalty and pair of types; F: the type that is computed in.
template <class F>
struct Runs {
  double (*sum)(const void*, const void*, const F*, int64_t, F);
  void (*penalty)(const void*, const void*, F*, int64_t, F);
  void (*gradient)(const void*, const void*, const F*, F, void*, int64_t, F);
};

template <class X, class T, class F>
Runs<F> runs_of(Kind kind) {
  switch (kind) {
    case Kind::charbonnier:
      return {run_sum<X, T, Charbonnier>, run_penalty<X, T, Charbonnier>,
              run_gradient<X, T, Charbonnier>};
    case Kind::mse:
      return {run_sum<X, T, Mse>, run_penalty<X, T, Mse>, run_gradient<X, T, Mse>};
    case Kind::huber:
      return {run_sum<X, T, Huber>, run_penalty<X, T, Huber>, run_gradient<X, T, Huber>};
    default:
      return {run_sum<X, T, L1>, run_penalty<X, T, L1>, run_gradient<X, T, L1>};
  }
}

Runs<double> runs(Kind kind, DType, DType, double) { return runs_of<double, double, double>(kind); }

Runs<float> runs(Kind kind, DType x, DType t, float) {
  return with_type(x, [=](auto one) {
    return with_type(
        t, [=](auto other) { return runs_of<decltype(one), decltype(other), float>(kind); });
  });
}

}  // namespace
}  // namespace srk::SRK_ISA
