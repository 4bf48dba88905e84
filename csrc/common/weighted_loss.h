// Arithmetic of the weighted losses, written once for CPU and CUDA.
#pragma once
#include "types.h"

namespace srk {

// In the order of srkernels/ops/weighted_loss/arguments.py.
enum class Reduction : int { none, mean, sum };
enum class Interpolation : int { bilinear, bilinear_corners, nearest };
enum class Kind : int { l1, charbonnier, mse, huber };

struct WeightedLossArguments {
  Shape shape;
  Operand input, target, weight;
  Shape weight_shape;
  Reduction reduction;
  Interpolation resize;
  Kind kind;
  double parameter;  // eps of Charbonnier, delta of Huber
  Operand out;       // forward: one value, or the map for Reduction::none
  Operand grad;      // backward: the cotangent of out
  void* statistics;  // given where the mean is over the weights: loss and their sum, compute type
  Operand grad_input, grad_target, grad_weight;
  // CPU: sign(x - t), two bits an element: for each 16 in order of memory a word with the positive
  // ones in its lower half and the negative ones in its upper. Forward writes it if given; backward
  // then reads it instead of both images.
  uint32_t* signs;
  void* workspace;  // CUDA: see weighted_loss_workspace()
  Launch launch;
};

// One axis of PyTorch's resize from `in` to `out` samples. Index: of both; 32 bits where
// 64-bit conversions are slow.
template <class T, class Index = int64_t>
struct Resize {
  Index in;
  T scale;
  Interpolation mode;
  bool same;  // same: as many samples out as in, which are copied

  SRK_HD Resize(int64_t in_size, int64_t out_size, Interpolation interpolation)
      : in(Index(in_size)),
        scale(interpolation == Interpolation::bilinear_corners
                  ? (out_size > 1 ? T(in_size - 1) / T(out_size - 1) : T(0))
                  : T(in_size) / T(out_size)),
        mode(interpolation),
        same(in_size == out_size) {}

  // Output i is (1 - weight) * input[low] + weight * input[high]; input[low] alone where they are
  // one sample, so that a neighbour's NaN or inf stays where it is.
  SRK_HD void source(Index i, Index& low, Index& high, T& weight) const {
    if (mode == Interpolation::nearest) {  // rounded to fp32 before it is cut, as in PyTorch
      low = high = Index(float(scale * T(i)));
      if (low > in - 1) low = high = in - 1;
      weight = T(0);
      return;
    }
    T at =
        mode == Interpolation::bilinear_corners ? scale * T(i) : scale * (T(i) + T(0.5)) - T(0.5);
    if (at < T(0)) at = T(0);
    low = Index(at);
    if (low > in - 1) low = in - 1;
    high = low + (low < in - 1 && !same ? 1 : 0);
    weight = at - T(low);
    if (weight > T(1)) weight = T(1);
  }
};

}  // namespace srk
