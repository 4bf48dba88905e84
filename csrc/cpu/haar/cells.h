// What analysis and synthesis share. A cell is a 2x2 square of the image, or the four band values
// that stand for it; here is where a cell's bands lie and how many values are taken at a time.
#pragma once
#include "../../common/haar.h"
#include "../simd.h"

namespace srk::SRK_ISA {
namespace {

// Fewest output values that are worth a second thread.
constexpr int64_t kGrainValues = 16384;

// The plan's factors in the compute type.
template <class T>
struct Factors {
  T low, v, h, d, shift;
  explicit Factors(const HaarPlan& p)
      : low(T(p.low)), v(T(p.v)), h(T(p.h)), d(T(p.d)), shift(T(p.shift)) {}
};

// Element offsets of the bands of one (n, c) plane, one row or one cell.
struct Band {
  int64_t low, v, h, d;
};

SRK_HD Band band_offset(const HaarArguments& a, int64_t n, int64_t c, int64_t row,
                        int64_t column = 0) {
  const Strides& l = a.low_stride;
  const BandStrides& h = a.high_stride;
  const int64_t high = n * h.n + c * h.c + row * h.h + column * h.w;
  return {n * l.n + c * l.c + row * l.h + column * l.w, high + a.plan.slot_v * h.band,
          high + a.plan.slot_h * h.band, high + a.plan.slot_d * h.band};
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
    // A load of what has just been stored in pieces waits for the stores; that pays off only for
    // more than three values.
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

// body(L, cell, c) for the channels c and on of each cell of a row, as many as L takes at a time.
// `apart`: neighbouring pixels are distinct memory. Only then may a Three be used, which reads a
// fourth value: the first of the next pixel. Memory may end behind the last pixel, so that one goes
// value by value.
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

}  // namespace
}  // namespace srk::SRK_ISA
