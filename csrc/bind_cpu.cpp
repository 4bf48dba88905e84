// Python module srkernels._cpu. Nothing is allocated here.
#include <string>
#include <vector>

#include "cpu/activation.h"
#include "cpu/amx/convolution.h"
#include "cpu/amx/tiles.h"
#include "cpu/amx/weight_gradient.h"
#include "cpu/haar.h"
#include "cpu/isa.h"
#include "cpu/weighted_l1.h"
#include "signature.h"
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

// Sums are in one type, which the weight has: fp64 if the images have it, fp32 otherwise. Signs are
// kept of the latter.
srk::DType checked_sums(const Tensor& input, const Tensor& target, const Tensor& weight,
                        const Tensor& statistics, const Tensor& signs) {
  const bool wide = input.dtype() == srk::DType::f64;
  const srk::DType sums = wide ? srk::DType::f64 : srk::DType::f32;
  if (wide != (target.dtype() == srk::DType::f64) || (weight.given() && weight.dtype() != sums) ||
      (statistics.given() && statistics.dtype() != sums) || (wide && signs.given()))
    throw py::value_error("weighted L1 sums in fp64 or in fp32, without fp64 operands");
  return sums;
}

void weighted_l1_forward(const Tensor& input, const Tensor& target, const Tensor& weight,
                         const Tensor& out, const Tensor& statistics, int reduction,
                         bool align_corners, const Tensor& signs, int threads) {
  checked_sums(input, target, weight, statistics, signs);
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
  const srk::DType sums = checked_sums(input, target, weight, statistics, signs);
  if ((grad_input.given() && grad_input.dtype() != input.dtype()) ||
      (grad_target.given() && grad_target.dtype() != target.dtype()) ||
      (grad_weight.given() && grad_weight.dtype() != sums))
    throw py::value_error(
        "weighted L1 writes images' gradients in their types, a map's in the sums'");
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
  a.slopes = slopes.vector();
  a.slope_step = slopes.given() && slopes.raw.shape[0] > 1;
  a.negative_slope = negative_slope;
  a.scale = scale;
  a.bias_sum = static_cast<double*>(bias_sum.vector());
  a.slope_sum = static_cast<double*>(slope_sum.vector());
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

// A bf16 tensor's pixels one after another; throws for any other layout.
srk::Pixels pixels(const Tensor& t) {
  if (!t.given()) return {nullptr, 0};
  const srk::Shape s = t.shape();
  const int64_t* stride = t.raw.strides;
  // The stride of a single column, row or image means nothing.
  const int64_t pixel = s.w > 1 ? stride[3] : s.h > 1 ? stride[2] : s.n > 1 ? stride[0] : s.c;
  const bool in_order = (s.c == 1 || stride[1] == 1) && (s.h == 1 || stride[2] == s.w * pixel) &&
                        (s.n == 1 || stride[0] == s.h * s.w * pixel);
  if (t.dtype() != srk::DType::bf16 || !in_order)
    throw py::value_error("AMX takes bf16 pixels one after another");
  return {static_cast<uint16_t*>(t.data()), pixel};
}

bool same_image(const srk::Shape& a, const srk::Shape& b) {
  return a.n == b.n && a.h == b.h && a.w == b.w;
}

// x: (n, ci, h, w); weight: (co, ci, 3, 3), or (ci, co, 3, 3) and read as its adjoint; y, residual,
// kept: (n, co, h, w), each with its pixels in order; bias: (co,) bf16; sums: (co,) fp64.
void amx_convolution(const Tensor& x, const Tensor& weight, bool adjoint, const Tensor& bias,
                     const Tensor& y, int activation, double negative_slope, double scale,
                     const Tensor& kept, const Tensor& residual, const Tensor& sums, int threads) {
  const srk::Shape in = x.shape(), out = y.shape(), filters = weight.shape();
  const int64_t* stride = weight.raw.strides;
  srk::ConvolutionArguments a{};
  a.n = in.n, a.h = in.h, a.w = in.w, a.ci = in.c, a.co = out.c;
  a.x = pixels(x), a.y = pixels(y), a.kept = pixels(kept), a.residual = pixels(residual);
  a.weight = static_cast<const uint16_t*>(weight.data());
  a.weight_out = stride[0], a.weight_in = stride[1];
  a.weight_row = stride[2], a.weight_column = stride[3];
  if (adjoint) {  // channels swapped, taps turned by 180 degrees
    a.weight_out = stride[1], a.weight_in = stride[0];
    a.weight += 2 * (stride[2] + stride[3]);
    a.weight_row = -stride[2], a.weight_column = -stride[3];
  }
  a.bias = static_cast<const uint16_t*>(bias.data());
  a.activation = srk::Activation(activation);
  a.negative_slope = float(negative_slope), a.scale = float(scale);
  a.sums = static_cast<double*>(sums.data());
  a.threads = threads;
  const auto other_image = [&](const Tensor& t) {
    return t.given() && (!same_image(t.shape(), out) || t.shape().c != out.c);
  };
  if (!srk::amx::available()) throw py::value_error("no AMX on this machine");
  if (!same_image(in, out) || other_image(kept) || other_image(residual) || a.y.pixel < a.co)
    throw py::value_error("images of different sizes");
  if (filters.n != (adjoint ? a.ci : a.co) || filters.c != (adjoint ? a.co : a.ci) ||
      filters.h != 3 || filters.w != 3 || weight.dtype() != srk::DType::bf16 || a.weight_in < 1)
    throw py::value_error("filters of another size");
  if (a.ci % 32 || a.co % 16 || a.activation == srk::Activation::prelu)
    throw py::value_error("the AMX convolution takes multiples of 32 and 16 channels, no PReLU");
  const auto vector_of = [&](const Tensor& t, srk::DType dtype) {
    return !t.given() || (t.raw.ndim == 1 && t.raw.shape[0] == a.co && t.raw.strides[0] == 1 &&
                          t.dtype() == dtype);
  };
  if (!vector_of(bias, srk::DType::bf16) || !vector_of(sums, srk::DType::f64))
    throw py::value_error("a bias in bf16 and sums in fp64, one for each output channel");
  py::gil_scoped_release release;
  srk::amx::convolution(a);
}

// x: (n, ci, h, w), grad: (n, co, h, w), their pixels in order; outs: (co_k, ci_k, 3, 3), dense,
// for filters whose outputs lie one after another in grad, each of the first channels of x.
void amx_weight_gradient(const Tensor& x, const Tensor& grad, const py::list& outs,
                         const py::list& scales, int threads) {
  const srk::Shape in = x.shape(), out = grad.shape();
  if (!srk::amx::available() || !same_image(in, out) || outs.size() != scales.size())
    throw py::value_error("no AMX on this machine, or a gradient of another size");
  std::vector<srk::FilterGradient> filters;
  int64_t channels = 0;
  for (size_t k = 0; k < outs.size(); ++k) {
    const Tensor filter = outs[k].cast<Tensor>();
    const srk::Shape s = filter.shape();
    const int64_t* stride = filter.raw.strides;
    if (s.h != 3 || s.w != 3 || s.n % 32 || s.c % 32 || s.c > in.c ||
        filter.dtype() != srk::DType::bf16 || stride[3] != 1 || stride[2] != 3 || stride[1] != 9 ||
        stride[0] != 9 * s.c)
      throw py::value_error("AMX takes dense bf16 filters of multiples of 32 channels");
    filters.push_back({static_cast<uint16_t*>(filter.data()), s.n, s.c, scales[k].cast<float>()});
    channels += s.n;
  }
  if (in.c % 32 || channels != out.c) throw py::value_error("channels of another number");
  srk::WeightGradientArguments a{};
  a.n = in.n, a.h = in.h, a.w = in.w, a.ci = in.c, a.co = out.c;
  a.x = pixels(x), a.grad = pixels(grad);
  a.filters = filters.data(), a.count = int64_t(filters.size());
  a.threads = threads;
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

// Not through pybind11, whose variadic functions take a microsecond.
static PyMethodDef signature_method[] = {
    {"signature", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&srk::signature)),
     METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PYBIND11_MODULE(_cpu, m) {
  py::class_<srk::HaarPlan>(m, "HaarPlan")
      .def(py::init<double, double, double, double, int, int, int, double, bool>());
  if (PyModule_AddFunctions(m.ptr(), signature_method) != 0) throw py::error_already_set();
  m.def("set_watchers", &srk::set_watchers);
  m.def("haar_analysis", &haar_analysis);
  m.def("haar_synthesis", &haar_synthesis);
  m.def("weighted_l1_forward", &weighted_l1_forward);
  m.def("weighted_l1_backward", &weighted_l1_backward);
  m.def("activation_backward", &activation_backward);
  m.def("relu_in_place", &relu_in_place);
  m.def("amx_available", &srk::amx::available);
  m.def("amx_convolution", &amx_convolution);
  m.def("amx_weight_gradient", &amx_weight_gradient);
  m.def("isa", [] { return kIsaNames[int(srk::current_isa())]; });
  m.def("set_isa", &set_isa, "Use a lesser instruction set (tests).");
}
