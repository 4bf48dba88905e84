// Arguments of the weighted losses, read from tensors. Both cores take them; the checks of types
// are the CPU core's, since the CUDA core takes any.
#pragma once
#include <tuple>

#include "common/weighted_loss.h"
#include "tensor.h"

namespace srk {

using WeightedLossSettings =
    std::tuple<int, int, int, double>;  // reduction, resize, kind, parameter

inline WeightedLossArguments weighted_loss_arguments(const Tensor& input, const Tensor& target,
                                                     const Tensor& weight, const Tensor& statistics,
                                                     const WeightedLossSettings& settings,
                                                     Launch launch) {
  WeightedLossArguments a{};
  a.shape = input.shape();
  a.input = input.operand();
  a.target = target.operand();
  a.weight = weight.operand();
  a.weight_shape = weight.given() ? weight.shape() : Shape{1, 1, 1, 1};
  a.statistics = statistics.data();
  int reduction, resize, kind;
  std::tie(reduction, resize, kind, a.parameter) = settings;
  a.reduction = Reduction(reduction);
  a.resize = Interpolation(resize);
  a.kind = Kind(kind);
  a.launch = launch;
  return a;
}

// The type that the CPU core sums in, and the weight has: fp64 if both images have it, fp32 if
// neither does. Signs are kept in the latter case only.
inline DType checked_sums(const Tensor& input, const Tensor& target, const Tensor& weight,
                          const Tensor& statistics, const Tensor& signs) {
  const bool wide = input.dtype() == DType::f64;
  const DType sums = wide ? DType::f64 : DType::f32;
  if (wide != (target.dtype() == DType::f64) || (weight.given() && weight.dtype() != sums) ||
      (statistics.given() && statistics.dtype() != sums) || (wide && signs.given()))
    throw pybind11::value_error("weighted losses sum in fp64 or in fp32, without fp64 operands");
  return sums;
}

inline void check_gradients(DType sums, const Tensor& input, const Tensor& target,
                            const Tensor& grad_input, const Tensor& grad_target,
                            const Tensor& grad_weight) {
  if ((grad_input.given() && grad_input.dtype() != input.dtype()) ||
      (grad_target.given() && grad_target.dtype() != target.dtype()) ||
      (grad_weight.given() && grad_weight.dtype() != sums))
    throw pybind11::value_error(
        "weighted losses write images' gradients in their types, a map's in the sums'");
}

}  // namespace srk
