// Arguments of the convolutions on Intel AMX, read from tensors, and their checks: the tile loads
// know nothing of strides, so whatever they would misread is refused here.
#pragma once
#include <vector>

#include "cpu/amx/convolution.h"
#include "cpu/amx/tiles.h"
#include "cpu/amx/weight_gradient.h"
#include "tensor.h"

namespace srk {

// A bf16 tensor's pixels one after another; throws for any other layout.
inline Pixels pixels(const Tensor& t) {
  if (!t.given()) return {nullptr, 0};
  const Shape s = t.shape();
  const int64_t* stride = t.raw.strides;
  // The stride of a single column, row or image means nothing.
  const int64_t pixel = s.w > 1 ? stride[3] : s.h > 1 ? stride[2] : s.n > 1 ? stride[0] : s.c;
  const bool in_order = (s.c == 1 || stride[1] == 1) && (s.h == 1 || stride[2] == s.w * pixel) &&
                        (s.n == 1 || stride[0] == s.h * s.w * pixel);
  if (t.dtype() != DType::bf16 || !in_order)
    throw pybind11::value_error("AMX takes bf16 pixels one after another");
  return {static_cast<uint16_t*>(t.data()), pixel};
}

inline bool same_image(const Shape& a, const Shape& b) {
  return a.n == b.n && a.h == b.h && a.w == b.w;
}

// x: (n, ci, h, w); weight: (co, ci, 3, 3), or (ci, co, 3, 3) and read as its adjoint; y, residual,
// kept: (n, co, h, w), each with its pixels in order; bias: (co,) bf16; sums: (co,) fp64.
inline ConvolutionArguments convolution_arguments(const Tensor& x, const Tensor& weight,
                                                  bool adjoint, const Tensor& bias, const Tensor& y,
                                                  int activation, double negative_slope,
                                                  double scale, const Tensor& kept,
                                                  const Tensor& residual, const Tensor& sums,
                                                  int threads) {
  const Shape in = x.shape(), out = y.shape(), filters = weight.shape();
  const int64_t* stride = weight.raw.strides;
  ConvolutionArguments a{};
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
  a.activation = Activation(activation);
  a.negative_slope = float(negative_slope), a.scale = float(scale);
  a.sums = static_cast<double*>(sums.data());
  a.threads = threads;
  const auto other_image = [&](const Tensor& t) {
    return t.given() && (!same_image(t.shape(), out) || t.shape().c != out.c);
  };
  if (!amx::available()) throw pybind11::value_error("no AMX on this machine");
  if (!same_image(in, out) || other_image(kept) || other_image(residual) || a.y.pixel < a.co)
    throw pybind11::value_error("images of different sizes");
  if (filters.n != (adjoint ? a.ci : a.co) || filters.c != (adjoint ? a.co : a.ci) ||
      filters.h != 3 || filters.w != 3 || weight.dtype() != DType::bf16 || a.weight_in < 1)
    throw pybind11::value_error("filters of another size");
  if (a.ci % 32 || a.co % 16 || a.activation == Activation::prelu)
    throw pybind11::value_error(
        "the AMX convolution takes multiples of 32 and 16 channels, no PReLU");
  const auto vector_of = [&](const Tensor& t, DType dtype) {
    return !t.given() || (t.raw.ndim == 1 && t.raw.shape[0] == a.co && t.raw.strides[0] == 1 &&
                          t.dtype() == dtype);
  };
  if (!vector_of(bias, DType::bf16) || !vector_of(sums, DType::f64))
    throw pybind11::value_error("a bias in bf16 and sums in fp64, one for each output channel");
  return a;
}

// x: (n, ci, h, w), grad: (n, co, h, w), their pixels in order; outs: (co_k, ci_k, 3, 3), dense,
// for filters whose outputs lie one after another in grad, each of the first channels of x. The
// arguments point into `filters`, which is filled here.
inline WeightGradientArguments weight_gradient_arguments(const Tensor& x, const Tensor& grad,
                                                         const pybind11::list& outs,
                                                         const pybind11::list& scales, int threads,
                                                         std::vector<FilterGradient>& filters) {
  const Shape in = x.shape(), out = grad.shape();
  if (!amx::available() || !same_image(in, out) || outs.size() != scales.size())
    throw pybind11::value_error("no AMX on this machine, or a gradient of another size");
  int64_t channels = 0;
  for (size_t k = 0; k < outs.size(); ++k) {
    const Tensor filter = outs[k].cast<Tensor>();
    const Shape s = filter.shape();
    const int64_t* stride = filter.raw.strides;
    if (s.h != 3 || s.w != 3 || s.n % 32 || s.c % 32 || s.c > in.c ||
        filter.dtype() != DType::bf16 || stride[3] != 1 || stride[2] != 3 || stride[1] != 9 ||
        stride[0] != 9 * s.c)
      throw pybind11::value_error("AMX takes dense bf16 filters of multiples of 32 channels");
    filters.push_back({static_cast<uint16_t*>(filter.data()), s.n, s.c, scales[k].cast<float>()});
    channels += s.n;
  }
  if (in.c % 32 || channels != out.c) throw pybind11::value_error("channels of another number");
  WeightGradientArguments a{};
  a.n = in.n, a.h = in.h, a.w = in.w, a.ci = in.c, a.co = out.c;
  a.x = pixels(x), a.grad = pixels(grad);
  a.filters = filters.data(), a.count = int64_t(filters.size());
  a.threads = threads;
  return a;
}

}  // namespace srk
