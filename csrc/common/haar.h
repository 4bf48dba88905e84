// Arithmetic of the Haar transform, written once for scalar CPU, SIMD CPU and CUDA.
//
// For each 2x2 cell a b / c d:  S = a+b+c+d, V = a+b-c-d, H = a-b+c-d, D = a-b-c+d.
// The 4x4 matrix is symmetric and its square is 4 I: the same butterfly is analysis, adjoint and
// (over 4) inverse.
#pragma once
#include "types.h"

namespace srk {

// Factors of S, V, H, D, position of V, H, D among the high bands, and the constant added to every
// high band.
struct HaarPlan {
  double low, v, h, d;
  int slot_v, slot_h, slot_d;
  double shift;
  bool sum;  // the high bands are added into one
};

// Strides of the high bands, in elements; the band stride is 0 where the bands are summed.
struct BandStrides {
  int64_t n, band, c, h, w;
};

// What an odd size appends. With floor it appends nothing: the core is given whole cells.
enum class Pad : int { reflect, zero, symmetric, periodization, periodic, floor };

// Both directions take the shape of the image x. Analysis reads x and writes the bands, synthesis
// the reverse; a null band is not wanted, or zero.
struct HaarArguments {
  DType dtype;
  Shape shape;
  void* x;
  Strides x_stride;
  void* low;
  Strides low_stride;
  void* high;
  BandStrides high_stride;
  HaarPlan plan;
  Pad pad;
  Launch launch;
};

template <class T>
SRK_HD void butterfly(T a, T b, T c, T d, T& s, T& v, T& h, T& x) {
  const T top = a + b, bottom = c + d, left = a - b, right = c - d;
  s = top + bottom;
  v = top - bottom;
  h = left + right;
  x = left - right;
}

// Which sample the one appended to an odd size n repeats; -1: it is zero. One sample reflects onto
// itself.
SRK_HD int64_t appended_source(int64_t n, Pad pad) {
  if (pad == Pad::zero) return -1;
  if (pad == Pad::periodic) return 0;
  return pad == Pad::reflect && n > 1 ? n - 2 : n - 1;
}

// Index that position i of the even-sized signal reads, -1 for zero.
SRK_HD int64_t padded_index(int64_t i, int64_t n, Pad pad) {
  return i < n ? i : appended_source(n, pad);
}

}  // namespace srk
