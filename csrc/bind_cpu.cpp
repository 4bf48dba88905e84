// Python module srkernels._cpu. Nothing is allocated here.
#include <string>

#include "cpu/activation.h"
#include "cpu/amx/weight_gradient.h"
#include "cpu/haar.h"
#include "cpu/isa.h"
#include "cpu/weighted_l1.h"
#include "tensor.h"

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

void weighted_l1_forward(const Tensor& input, const Tensor& target, const Tensor& weight,
                         const Tensor& out, const Tensor& statistics, int reduction,
                         bool align_corners, const Tensor& signs, int threads) {
  auto a = srk::weighted_l1_arguments(input, target, weight, statistics, reduction, align_corners,
                                      {threads, nullptr});
  a.out = out.operand();
  a.signs = static_cast<uint32_t*>(signs.data());
  py::gil_scoped_release release;
  SRK_CALL(weighted_l1_forward, a);
}

void weighted_l1_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                          const Tensor& weight, const Tensor& statistics, const Tensor& grad_input,
                          const Tensor& grad_target, const Tensor& grad_weight, int reduction,
                          bool align_corners, const Tensor& signs, int threads) {
  auto a = srk::weighted_l1_arguments(input, target, weight, statistics, reduction, align_corners,
                                      {threads, nullptr});
  a.grad = grad.operand();
  a.grad_input = grad_input.operand();
  a.grad_target = grad_target.operand();
  a.grad_weight = grad_weight.operand();
  a.signs = static_cast<uint32_t*>(signs.data());
  py::gil_scoped_release release;
  SRK_CALL(weighted_l1_backward, a);
}

void activation_backward(const Tensor& grad, const Tensor& kept, const Tensor& out,
                         const Tensor& slopes, int activation, double negative_slope, double scale,
                         const Tensor& bias_sum, const Tensor& slope_sum, int threads) {
  srk::ActivationArguments a{};
  a.shape = grad.shape();
  a.grad = grad.operand();
  a.kept = kept.operand();
  a.out = out.operand();
  a.activation = srk::Activation(activation);
  a.slopes = slopes.data();
  a.slope_step = slopes.given() && slopes.raw.shape[0] > 1;
  a.negative_slope = negative_slope;
  a.scale = scale;
  a.bias_sum = static_cast<double*>(bias_sum.data());
  a.slope_sum = static_cast<double*>(slope_sum.data());
  a.launch = {threads, nullptr};
  py::gil_scoped_release release;
  SRK_CALL(activation_backward, a);
}

void relu_in_place(const Tensor& x, int threads) {
  const srk::Shape s = x.shape();
  const srk::ReluArguments a{x.operand(), s.n * s.c * s.h * s.w, {threads, nullptr}};
  py::gil_scoped_release release;
  SRK_CALL(relu_in_place, a);
}

// x, grad: dense channels_last, or slices of the channels of such; out: (co, ci, 3, 3).
void amx_weight_gradient(const Tensor& x, const Tensor& grad, const Tensor& out, float scale,
                         int threads) {
  const srk::Shape shape = x.shape(), like = grad.shape();
  const srk::Strides sx = x.strides(), sg = grad.strides();
  const bool bf16 = x.dtype() == srk::DType::bf16 && grad.dtype() == srk::DType::bf16;
  const auto pixels = [&](const srk::Strides& s) {
    return s.c == 1 && s.h == shape.w * s.w && s.n == shape.h * s.h;
  };
  if (!srk::amx::available() || like.n != shape.n || like.h != shape.h || like.w != shape.w)
    throw py::value_error("no AMX on this machine, or a gradient of another size");
  if (!bf16 || shape.c % 32 || like.c % 32 || shape.w < 2 || !pixels(sx) || !pixels(sg))
    throw py::value_error("the AMX weight gradient takes bf16 pixels of multiples of 32 channels");
  const srk::WeightGradientArguments a{shape.n,
                                       shape.h,
                                       shape.w,
                                       shape.c,
                                       like.c,
                                       static_cast<const uint16_t*>(x.data()),
                                       static_cast<const uint16_t*>(grad.data()),
                                       sx.w,
                                       sg.w,
                                       static_cast<uint16_t*>(out.data()),
                                       scale,
                                       threads};
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
  m.def("weighted_l1_forward", &weighted_l1_forward);
  m.def("weighted_l1_backward", &weighted_l1_backward);
  m.def("activation_backward", &activation_backward);
  m.def("relu_in_place", &relu_in_place);
  m.def("amx_available", &srk::amx::available);
  m.def("amx_weight_gradient", &amx_weight_gradient);
  m.def("isa", [] { return kIsaNames[int(srk::current_isa())]; });
  m.def("set_isa", &set_isa, "Use a lesser instruction set (tests).");
}
