// Python module srkernels._cuda: pointers, sizes, strides and the stream arrive as integers, so no
// torch header is needed. Nothing is allocated and nothing waits; importing it needs no driver.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cuda/ops.h"

namespace py = pybind11;
using Shape = std::array<int64_t, 4>;
using Stride = std::array<int64_t, 4>;
using BandStride = std::array<int64_t, 5>;

namespace {

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

srk::cuda::Shape shape_of(const Shape& s) { return {s[0], s[1], s[2], s[3]}; }

srk::Strides strides(const Stride& s) { return {s[0], s[1], s[2], s[3]}; }

srk::cuda::Operand operand(uintptr_t address, int dtype, const Stride& stride) {
  return {pointer(address), srk::DType(dtype), strides(stride)};
}

srk::cuda::HaarArguments haar_arguments(int dtype, const Shape& shape, uintptr_t x,
                                        const Stride& x_stride, uintptr_t low,
                                        const Stride& low_stride, uintptr_t high,
                                        const BandStride& s, const srk::HaarPlan& plan, int pad,
                                        uintptr_t stream) {
  return {srk::DType(dtype),
          shape_of(shape),
          pointer(x),
          strides(x_stride),
          pointer(low),
          strides(low_stride),
          pointer(high),
          {s[0], s[1], s[2], s[3], s[4]},
          plan,
          srk::Pad(pad),
          pointer(stream)};
}

void haar_analysis(int dtype, uintptr_t x, const Shape& shape, const Stride& x_stride,
                   uintptr_t low, const Stride& low_stride, uintptr_t high,
                   const BandStride& high_stride, const srk::HaarPlan& plan, int pad,
                   uintptr_t stream) {
  srk::cuda::haar_analysis(haar_arguments(dtype, shape, x, x_stride, low, low_stride, high,
                                          high_stride, plan, pad, stream));
}

void haar_synthesis(int dtype, uintptr_t low, const Stride& low_stride, uintptr_t high,
                    const BandStride& high_stride, uintptr_t x, const Shape& shape,
                    const Stride& x_stride, const srk::HaarPlan& plan, int pad, uintptr_t stream) {
  srk::cuda::haar_synthesis(haar_arguments(dtype, shape, x, x_stride, low, low_stride, high,
                                           high_stride, plan, pad, stream));
}

// dtypes: of input, target, weight and out.
void weighted_l1_forward(const std::array<int, 4>& dtypes, uintptr_t input,
                         const Stride& input_stride, uintptr_t target, const Stride& target_stride,
                         uintptr_t weight, const Shape& weight_shape, const Stride& weight_stride,
                         const Shape& shape, int reduction, bool by_weight, bool align_corners,
                         uintptr_t out, const Stride& out_stride, uintptr_t statistics,
                         uintptr_t workspace, uintptr_t stream) {
  srk::cuda::WeightedL1Arguments a{};
  a.shape = shape_of(shape);
  a.input = operand(input, dtypes[0], input_stride);
  a.target = operand(target, dtypes[1], target_stride);
  a.weight = operand(weight, dtypes[2], weight_stride);
  a.weight_shape = shape_of(weight_shape);
  a.reduction = srk::Reduction(reduction);
  a.by_weight = by_weight;
  a.align_corners = align_corners;
  a.out = operand(out, dtypes[3], out_stride);
  a.statistics = pointer(statistics);
  a.workspace = pointer(workspace);
  a.stream = pointer(stream);
  srk::cuda::weighted_l1_forward(a);
}

// dtypes: of grad, input, target and weight; a gradient has the dtype of its tensor.
void weighted_l1_backward(const std::array<int, 4>& dtypes, uintptr_t grad,
                          const Stride& grad_stride, uintptr_t input, const Stride& input_stride,
                          uintptr_t target, const Stride& target_stride, uintptr_t weight,
                          const Shape& weight_shape, const Stride& weight_stride,
                          uintptr_t statistics, const Shape& shape, int reduction,
                          bool align_corners, uintptr_t grad_input, const Stride& grad_input_stride,
                          uintptr_t grad_target, const Stride& grad_target_stride,
                          uintptr_t grad_weight, const Stride& grad_weight_stride,
                          uintptr_t workspace, uintptr_t stream) {
  srk::cuda::WeightedL1Arguments a{};
  a.shape = shape_of(shape);
  a.grad = operand(grad, dtypes[0], grad_stride);
  a.input = operand(input, dtypes[1], input_stride);
  a.target = operand(target, dtypes[2], target_stride);
  a.weight = operand(weight, dtypes[3], weight_stride);
  a.weight_shape = shape_of(weight_shape);
  a.reduction = srk::Reduction(reduction);
  a.align_corners = align_corners;
  a.statistics = pointer(statistics);
  a.grad_input = operand(grad_input, dtypes[1], grad_input_stride);
  a.grad_target = operand(grad_target, dtypes[2], grad_target_stride);
  a.grad_weight = operand(grad_weight, dtypes[3], grad_weight_stride);
  a.workspace = pointer(workspace);
  a.stream = pointer(stream);
  srk::cuda::weighted_l1_backward(a);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  // Local to this module: the CPU core registers the same type.
  py::class_<srk::HaarPlan>(m, "HaarPlan", py::module_local())
      .def(py::init<double, double, double, double, int, int, int, double, bool>());
  m.def("haar_analysis", &haar_analysis, Unlocked());
  m.def("haar_synthesis", &haar_synthesis, Unlocked());
  m.def("weighted_l1_workspace", &srk::cuda::weighted_l1_workspace,
        "Bytes of workspace: the same for any shape. Zeroed once per device and stream by the "
        "caller.");
  m.def("weighted_l1_forward", &weighted_l1_forward, Unlocked());
  m.def("weighted_l1_backward", &weighted_l1_backward, Unlocked());
}
