// Weighted losses on CPU.
//
//   loss        = sum w rho(x - t) / norm        w: the map, resized to the image
//   d loss / dx = w rho'(x - t) grad / norm      d loss / dt = -d loss / dx
//   d loss / dw = rho(x - t) grad / norm         carried back through the resize (its adjoint)
//
// and, where norm is the sum of w, d loss / dw = (rho(x - t) - loss) grad / norm. rho is the
// absolute value or another penalty (common/penalty.h).
//
// Read forward.h, image_gradients.h and weight_gradient.h, each of which opens with the loop that
// it computes; tiles.h cuts the images, resize.h makes w, runs.h and signs.h are the innermost
// loops. Only this file is compiled, once for each instruction set.
#include "weighted_loss.h"

#include "forward.h"
#include "image_gradients.h"
#include "weight_gradient.h"

namespace srk::SRK_ISA {
namespace {

// The cotangent over the loss's divisor, then each gradient that is wanted.
template <class F>
void backward(const WeightedLossArguments& a) {
  double scale = 1;
  if (a.reduction != Reduction::none) read(a.grad.dtype, a.grad.data, &scale, 1);
  const int64_t size = a.shape.n * a.shape.c * a.shape.h * a.shape.w;
  if (size == 0) {
    scale = 0;  // no element, so no slope, and not the NaN that a division by zero might make
  } else if (a.statistics) {
    scale /= double(static_cast<const F*>(a.statistics)[1]);
  } else if (a.reduction == Reduction::mean) {
    scale /= double(size);
  }
  if (a.grad_input.data || a.grad_target.data)
    a.signs ? gradient_from_signs(a, float(scale)) : gradient_of_operands(a, F(scale));
  if (a.grad_weight.data) gradient_of_weight(a, F(scale));
}

}  // namespace

void weighted_loss_forward(const WeightedLossArguments& args) {
  args.input.dtype == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void weighted_loss_backward(const WeightedLossArguments& args) {
  args.input.dtype == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace srk::SRK_ISA
