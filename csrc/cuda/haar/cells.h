// What the kernels of all layouts share: where a cell lies, and the transform of one.
#pragma once
#include "../../common/haar.h"
#include "../device.h"

namespace srk::cuda {
namespace {

// Elements of an access of 16 bytes.
template <class T>
constexpr int kVector = 16 / int(sizeof(T));

// An image, or the low band: an image of half the size.
template <class T>
struct Image {
  T* data;
  Strides stride;

  __device__ __forceinline__ T* at(int64_t n, int64_t c, int64_t row, int64_t column) const {
    return data + n * stride.n + c * stride.c + row * stride.h + column * stride.w;
  }
};

// The high bands; at() gives the first, the others lie stride.band apart.
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

// Where cell `index` is, the columns counting first; rows.h counts V columns as one.
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

}  // namespace
}  // namespace srk::cuda
