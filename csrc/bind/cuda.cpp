// Python module srkernels._cuda. Nothing is allocated here and nothing waits; importing it needs no
// driver.
#include "cuda/ops.h"
#include "haar.h"
#include "tensor.h"
#include "weighted_loss.h"

namespace py = pybind11;
using srk::Tensor;

namespace {

srk::Launch on(uintptr_t stream) { return {0, reinterpret_cast<void*>(stream)}; }

void haar_analysis(const Tensor& x, const Tensor& low, const Tensor& high,
                   const srk::HaarPlan& plan, int layout, int pad, uintptr_t stream) {
  const auto a = srk::haar_arguments(x, low, high, plan, layout, pad, on(stream));
  py::gil_scoped_release release;
  srk::cuda::haar_analysis(a);
}

void haar_synthesis(const Tensor& x, const Tensor& low, const Tensor& high,
                    const srk::HaarPlan& plan, int layout, int pad, uintptr_t stream) {
  const auto a = srk::haar_arguments(x, low, high, plan, layout, pad, on(stream));
  py::gil_scoped_release release;
  srk::cuda::haar_synthesis(a);
}

void weighted_loss_forward(const Tensor& input, const Tensor& target, const Tensor& weight,
                           const Tensor& out, const Tensor& statistics,
                           const srk::WeightedLossSettings& settings, const Tensor& workspace,
                           uintptr_t stream) {
  auto a = srk::weighted_loss_arguments(input, target, weight, statistics, settings, on(stream));
  a.out = out.operand();
  a.workspace = workspace.data();
  py::gil_scoped_release release;
  srk::cuda::weighted_loss_forward(a);
}

// A gradient has the dtype of its tensor.
void weighted_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                            const Tensor& weight, const Tensor& statistics,
                            const Tensor& grad_input, const Tensor& grad_target,
                            const Tensor& grad_weight, const srk::WeightedLossSettings& settings,
                            const Tensor& workspace, uintptr_t stream) {
  auto a = srk::weighted_loss_arguments(input, target, weight, statistics, settings, on(stream));
  a.grad = grad.operand();
  a.grad_input = grad_input.operand();
  a.grad_target = grad_target.operand();
  a.grad_weight = grad_weight.operand();
  a.workspace = workspace.data();
  py::gil_scoped_release release;
  srk::cuda::weighted_loss_backward(a);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  // Local to this module: the CPU core registers the same type.
  py::class_<srk::HaarPlan>(m, "HaarPlan", py::module_local())
      .def(py::init<double, double, double, double, int, int, int, double, bool>());
  m.def("haar_analysis", &haar_analysis);
  m.def("haar_synthesis", &haar_synthesis);
  m.def("weighted_loss_workspace", &srk::cuda::weighted_loss_workspace,
        "Bytes of workspace: the same for any shape. Zeroed once per device and stream by the "
        "caller.");
  m.def("weighted_loss_forward", &weighted_loss_forward);
  m.def("weighted_loss_backward", &weighted_loss_backward);
}
