// Python module srkernels._cpu: each function reads its arguments, lets go of the GIL and calls the
// op for the instruction set in use. Nothing is allocated here.
#include <string>
#include <vector>

#include "activation.h"
#include "amx.h"
#include "cpu/activation.h"
#include "cpu/haar/haar.h"
#include "cpu/isa.h"
#include "cpu/weighted_loss/weighted_loss.h"
#include "haar.h"
#include "tensor.h"
#include "weighted_loss.h"

namespace py = pybind11;
using srk::Tensor;

namespace {

void haar_analysis(const Tensor& x, const Tensor& low, const Tensor& high,
                   const srk::HaarPlan& plan, int layout, int pad, int threads) {
  const auto a = srk::haar_arguments(x, low, high, plan, layout, pad, {threads, nullptr});
  py::gil_scoped_release release;
  SRK_CALL(haar_analysis, a);
}

void haar_synthesis(const Tensor& x, const Tensor& low, const Tensor& high,
                    const srk::HaarPlan& plan, int layout, int pad, int threads) {
  const auto a = srk::haar_arguments(x, low, high, plan, layout, pad, {threads, nullptr});
  py::gil_scoped_release release;
  SRK_CALL(haar_synthesis, a);
}

void weighted_loss_forward(const Tensor& input, const Tensor& target, const Tensor& weight,
                           const Tensor& out, const Tensor& statistics,
                           const srk::WeightedLossSettings& settings, const Tensor& signs,
                           int threads) {
  srk::checked_sums(input, target, weight, statistics, signs);
  auto a =
      srk::weighted_loss_arguments(input, target, weight, statistics, settings, {threads, nullptr});
  a.out = out.operand();
  a.signs = static_cast<uint32_t*>(signs.data());
  py::gil_scoped_release release;
  SRK_CALL(weighted_loss_forward, a);
}

void weighted_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                            const Tensor& weight, const Tensor& statistics,
                            const Tensor& grad_input, const Tensor& grad_target,
                            const Tensor& grad_weight, const srk::WeightedLossSettings& settings,
                            const Tensor& signs, int threads) {
  const srk::DType sums = srk::checked_sums(input, target, weight, statistics, signs);
  srk::check_gradients(sums, input, target, grad_input, grad_target, grad_weight);
  auto a =
      srk::weighted_loss_arguments(input, target, weight, statistics, settings, {threads, nullptr});
  a.grad = grad.operand();
  a.grad_input = grad_input.operand();
  a.grad_target = grad_target.operand();
  a.grad_weight = grad_weight.operand();
  a.signs = static_cast<uint32_t*>(signs.data());
  py::gil_scoped_release release;
  SRK_CALL(weighted_loss_backward, a);
}

void activation_backward(const Tensor& grad, const Tensor& kept, const Tensor& out,
                         const Tensor& slopes, int activation, double negative_slope, double scale,
                         const Tensor& bias_sum, const Tensor& slope_sum, int threads) {
  const auto a = srk::activation_arguments(grad, kept, out, slopes, activation, negative_slope,
                                           scale, bias_sum, slope_sum, {threads, nullptr});
  py::gil_scoped_release release;
  SRK_CALL(activation_backward, a);
}

void relu_in_place(const Tensor& x, int threads) {
  const auto a = srk::relu_arguments(x, {threads, nullptr});
  py::gil_scoped_release release;
  SRK_CALL(relu_in_place, a);
}

void amx_convolution(const Tensor& x, const Tensor& weight, bool adjoint, const Tensor& bias,
                     const Tensor& y, int activation, double negative_slope, double scale,
                     const Tensor& kept, const Tensor& residual, const Tensor& sums, int threads) {
  const auto a = srk::convolution_arguments(x, weight, adjoint, bias, y, activation, negative_slope,
                                            scale, kept, residual, sums, threads);
  py::gil_scoped_release release;
  srk::amx::convolution(a);
}

void amx_weight_gradient(const Tensor& x, const Tensor& grad, const py::list& outs,
                         const py::list& scales, int threads) {
  std::vector<srk::FilterGradient> filters;
  const auto a = srk::weight_gradient_arguments(x, grad, outs, scales, threads, filters);
  py::gil_scoped_release release;
  srk::amx::weight_gradient(a);
}

const char* const kIsaNames[] = {"baseline", "avx2", "avx512"};

void set_isa(const std::string& name) {
  for (int i = 0; i <= int(srk::best_isa()); ++i) {
    if (name == kIsaNames[i]) {
      srk::current_isa() = srk::Isa(i);
      return;
    }
  }
  throw py::value_error("instruction set " + name + " is unknown or not on this processor");
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  py::class_<srk::HaarPlan>(m, "HaarPlan")
      .def(py::init<double, double, double, double, int, int, int, double, bool>());
  m.def("haar_analysis", &haar_analysis);
  m.def("haar_synthesis", &haar_synthesis);
  m.def("weighted_loss_forward", &weighted_loss_forward);
  m.def("weighted_loss_backward", &weighted_loss_backward);
  m.def("activation_backward", &activation_backward);
  m.def("relu_in_place", &relu_in_place);
  m.def("amx_available", &srk::amx::available);
  m.def("amx_convolution", &amx_convolution);
  m.def("amx_weight_gradient", &amx_weight_gradient);
  m.def("isa", [] { return kIsaNames[int(srk::current_isa())]; });
  m.def("set_isa", &set_isa, "Use a lesser instruction set (tests).");
}
