// Arguments of the backward pass through an activation, read from tensors. CPU only.
#pragma once
#include "common/activation.h"
#include "tensor.h"

namespace srk {

inline ActivationArguments activation_arguments(const Tensor& grad, const Tensor& kept,
                                                const Tensor& out, const Tensor& slopes,
                                                int activation, double negative_slope, double scale,
                                                const Tensor& bias_sum, const Tensor& slope_sum,
                                                Launch launch) {
  ActivationArguments a{};
  a.shape = grad.shape();
  a.grad = grad.operand();
  a.kept = kept.operand();
  a.out = out.operand();
  a.activation = Activation(activation);
  a.slopes = slopes.vector();
  a.slope_step = slopes.given() && slopes.raw.shape[0] > 1;
  a.negative_slope = negative_slope;
  a.scale = scale;
  a.bias_sum = static_cast<double*>(bias_sum.vector());
  a.slope_sum = static_cast<double*>(slope_sum.vector());
  a.launch = launch;
  return a;
}

inline ReluArguments relu_arguments(const Tensor& x, Launch launch) {
  const Shape s = x.shape();
  return {x.operand(), s.n * s.c * s.h * s.w, launch};
}

}  // namespace srk
