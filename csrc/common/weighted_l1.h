// Arithmetic of the weighted L1 loss, written once for CPU and CUDA.
#pragma once
#include "types.h"

namespace srk {

enum class Reduction : int { none = 0, mean = 1, sum = 2 };

// sign with sign(0) = sign(NaN) = 0, as torch.sgn.
template <class T>
SRK_HD T sign(T x) {
  return T(x > T(0)) - T(x < T(0));
}

// One axis of PyTorch's bilinear resize from `in` to `out` samples. Index: of both; 32 bits where
// 64-bit conversions are slow.
template <class T, class Index = int64_t>
struct Resize {
  Index in;
  T scale;
  bool align_corners, same;  // same: as many samples out as in, which are copied

  SRK_HD Resize(int64_t in_size, int64_t out_size, bool align)
      : in(Index(in_size)),
        scale(align ? (out_size > 1 ? T(in_size - 1) / T(out_size - 1) : T(0))
                    : T(in_size) / T(out_size)),
        align_corners(align),
        same(in_size == out_size) {}

  // Output i is (1 - weight) * input[low] + weight * input[high]; input[low] alone where they are
  // one sample, so that a neighbour's NaN or inf stays where it is.
  SRK_HD void source(Index i, Index& low, Index& high, T& weight) const {
    T at = align_corners ? scale * T(i) : scale * (T(i) + T(0.5)) - T(0.5);
    if (at < T(0)) at = T(0);
    low = Index(at);
    if (low > in - 1) low = in - 1;
    high = low + (low < in - 1 && !same ? 1 : 0);
    weight = at - T(low);
    if (weight > T(1)) weight = T(1);
  }
};

}  // namespace srk
