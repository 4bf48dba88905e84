// Python module srkernels._cpu: pointers, sizes and strides arrive as integers, so no torch header
// is needed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "cpu/haar.h"
#include "cpu/isa.h"
#include "cpu/weighted_l1.h"

namespace py = pybind11;
using Shape = std::array<int64_t, 4>;
using Stride = std::array<int64_t, 4>;
using BandStride = std::array<int64_t, 5>;

namespace {

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

srk::Strides strides(const Stride& s) { return {s[0], s[1], s[2], s[3]}; }

srk::HaarArguments haar_arguments(int dtype, const Shape& shape, uintptr_t x,
                                  const Stride& x_stride, uintptr_t low, const Stride& low_stride,
                                  uintptr_t high, const BandStride& s, const srk::HaarPlan& plan,
                                  int pad, int threads) {
  return {srk::DType(dtype),
          shape[0],
          shape[1],
          shape[2],
          shape[3],
          pointer(x),
          strides(x_stride),
          pointer(low),
          strides(low_stride),
          pointer(high),
          {s[0], s[1], s[2], s[3], s[4]},
          plan,
          srk::Pad(pad),
          threads};
}

void haar_analysis(int dtype, uintptr_t x, const Shape& shape, const Stride& x_stride,
                   uintptr_t low, const Stride& low_stride, uintptr_t high,
                   const BandStride& high_stride, const srk::HaarPlan& plan, int pad, int threads) {
  const auto arguments = haar_arguments(dtype, shape, x, x_stride, low, low_stride, high,
                                        high_stride, plan, pad, threads);
  py::gil_scoped_release release;
  SRK_CALL(haar_analysis, arguments);
}

void haar_synthesis(int dtype, uintptr_t low, const Stride& low_stride, uintptr_t high,
                    const BandStride& high_stride, uintptr_t x, const Shape& shape,
                    const Stride& x_stride, const srk::HaarPlan& plan, int pad, int threads) {
  const auto arguments = haar_arguments(dtype, shape, x, x_stride, low, low_stride, high,
                                        high_stride, plan, pad, threads);
  py::gil_scoped_release release;
  SRK_CALL(haar_synthesis, arguments);
}

// dtypes: of input, target, weight and out.
void weighted_l1_forward(const std::array<int, 4>& dtypes, uintptr_t input,
                         const Stride& input_stride, uintptr_t target, const Stride& target_stride,
                         uintptr_t weight, const Shape& weight_shape, const Stride& weight_stride,
                         const Shape& shape, int reduction, bool by_weight, bool align_corners,
                         uintptr_t out, const Stride& out_stride, uintptr_t statistics,
                         uintptr_t signs, int threads) {
  srk::WeightedL1Arguments a{};
  a.n = shape[0], a.c = shape[1], a.h = shape[2], a.w = shape[3];
  a.input = {srk::DType(dtypes[0]), pointer(input), strides(input_stride)};
  a.target = {srk::DType(dtypes[1]), pointer(target), strides(target_stride)};
  a.weight = {srk::DType(dtypes[2]), pointer(weight), strides(weight_stride)};
  a.weight_n = weight_shape[0], a.weight_c = weight_shape[1];
  a.weight_h = weight_shape[2], a.weight_w = weight_shape[3];
  a.reduction = srk::Reduction(reduction);
  a.by_weight = by_weight;
  a.align_corners = align_corners;
  a.fp64 = a.input.dtype == srk::DType::f64;
  a.out = {srk::DType(dtypes[3]), pointer(out), strides(out_stride)};
  a.statistics = pointer(statistics);
  a.signs = static_cast<uint32_t*>(pointer(signs));
  a.threads = threads;
  py::gil_scoped_release release;
  SRK_CALL(weighted_l1_forward, a);
}

// dtypes: of grad, input, target and weight.
void weighted_l1_backward(const std::array<int, 4>& dtypes, uintptr_t grad,
                          const Stride& grad_stride, uintptr_t input, const Stride& input_stride,
                          uintptr_t target, const Stride& target_stride, uintptr_t weight,
                          const Shape& weight_shape, const Stride& weight_stride,
                          uintptr_t statistics, const Shape& shape, int reduction,
                          bool align_corners, uintptr_t grad_input, const Stride& grad_input_stride,
                          uintptr_t grad_target, const Stride& grad_target_stride,
                          uintptr_t grad_weight, const Stride& grad_weight_stride, uintptr_t signs,
                          int threads) {
  srk::WeightedL1Arguments a{};
  a.n = shape[0], a.c = shape[1], a.h = shape[2], a.w = shape[3];
  a.grad = {srk::DType(dtypes[0]), pointer(grad), strides(grad_stride)};
  a.input = {srk::DType(dtypes[1]), pointer(input), strides(input_stride)};
  a.target = {srk::DType(dtypes[2]), pointer(target), strides(target_stride)};
  a.weight = {srk::DType(dtypes[3]), pointer(weight), strides(weight_stride)};
  a.weight_n = weight_shape[0], a.weight_c = weight_shape[1];
  a.weight_h = weight_shape[2], a.weight_w = weight_shape[3];
  a.reduction = srk::Reduction(reduction);
  a.by_weight = statistics != 0;
  a.align_corners = align_corners;
  a.fp64 = a.input.dtype == srk::DType::f64;
  a.statistics = pointer(statistics);
  a.signs = static_cast<uint32_t*>(pointer(signs));
  a.grad_input = {a.input.dtype, pointer(grad_input), strides(grad_input_stride)};
  a.grad_target = {a.target.dtype, pointer(grad_target), strides(grad_target_stride)};
  a.grad_weight = {a.weight.dtype, pointer(grad_weight), strides(grad_weight_stride)};
  a.threads = threads;
  py::gil_scoped_release release;
  SRK_CALL(weighted_l1_backward, a);
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
  m.def("isa", [] { return kIsaNames[int(srk::current_isa())]; });
  m.def("set_isa", &set_isa, "Use a lesser instruction set (tests).");
}
