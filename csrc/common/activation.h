// The activations of a convolution's epilogue, and what the backward pass through one takes.
#pragma once
#include "types.h"

namespace srk {

enum class Activation : int { none, relu, leaky_relu, prelu };

// out = scale * grad * act'(kept), with the sums over images and pixels of `out` and of the slopes'
// gradients. grad, kept and out are dense, all in planes or all in pixels (channels_last); out may
// be grad itself.
struct ActivationArguments {
  Shape shape;
  Operand grad;
  Operand kept;  // what went into the activation, or anything of its sign; absent for none
  Operand out;   // absent: only the sums are wanted
  Activation activation;
  const void* slopes;  // prelu: one, or one for each channel, fp32 (fp64 for fp64)
  int64_t slope_step;  // 0 or 1
  double negative_slope;
  double scale;
  double *bias_sum, *slope_sum;  // one for each channel; null: not wanted
  Launch launch;
};

// x = x where above zero or NaN, 0 elsewhere; x is dense.
struct ReluArguments {
  Operand x;
  int64_t size;
  Launch launch;
};

}  // namespace srk
