// Arithmetic of the weighted L1 loss, written once for CPU and CUDA.
#pragma once
#include "types.h"

namespace srk {

enum class Reduction : int { none, mean, sum };

struct WeightedL1Arguments {
  Shape shape;
  Operand input, target, weight;
  Shape weight_shape;
  Reduction reduction;
  bool align_corners;
  Operand out;       // forward: one value, or the map for Reduction::none
  Operand grad;      // backward: the cotangent of out
  void* statistics;  // given where the mean is over the weights: loss and their sum, compute type
  Operand grad_input, grad_target, grad_weight;
  // CPU: sign(x - t), two bits an element: for each 16 in order of memory a word with the positive
  // ones in its lower half and the negative ones in its upper. Forward writes it if given; backward
  // then reads it instead of both images.
  uint32_t* signs;
  void* workspace;  // CUDA: see weighted_l1_workspace()
  Launch launch;
};

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
