// Weighted losses on CUDA.
//
//   forward    loss = sum over n, c, y, x of w rho(input - target)  (/ N C H W, or / sum of w)
//   backward   d loss / d input  =  g w rho'(input - target)     g: grad times the same divisor
//              d loss / d target = -d loss / d input
//              d loss / d cell   =  sum of g b (rho(input - target) - m)
//
// rho is the absolute value or another penalty (common/penalty.h); w is the map resized: w(y, x) =
// sum over cells of b(cell, y, x) weight(cell), with at most four cells per pixel. m is the loss
// where the sum of weights divides, and 0 otherwise.
//
// 1. The host cuts the images into chunks and picks the kernels' variant (plan.h).
// 2. Threads read chunks and resize the map for them (chunks.h).
// 3. forward.h sums, backward.h writes the images' gradients, gather.h the map's; each opens with
//    the loop that it computes. Either pass is one launch.
//
// Sums are exactly repeatable, on every GPU: the grid depends on shapes alone, and every sum has
// one order.
//
// No streaming hints: what backward reads was read by forward, and stays in L2 at training sizes.
#include "../ops.h"
#include "backward.h"
#include "forward.h"
#include "plan.h"

namespace srk::cuda {

int64_t weighted_loss_workspace() {
  return kTicketBytes + kMostBlocks * 2 * int64_t(sizeof(double));
}

void weighted_loss_forward(const WeightedLossArguments& a) {
  check_sizes(a);
  const bool none = a.reduction == Reduction::none;
  const Operand input = tidy(a.input, a.shape), target = tidy(a.target, a.shape);
  const Operand out = none ? tidy(a.out, a.shape) : Operand{a.out.dtype, a.out.data, {}};
  const Operand image_out = none ? out : Operand{};
  const auto launch_variant = [&](auto variant) {
    using Chosen = decltype(variant);
    using T = typename Chosen::T;
    using A = typename Chosen::A;
    const Workspace workspace(a.workspace);
    const Map<A> map = map_of<A>(a);
    const Tiling tiling = tiling_of(a.shape, map.per_channel, Chosen::V, Chosen::pixels);
    const Forward<A> f{input,
                       target,
                       out,
                       map,
                       tiling,
                       a.reduction,
                       a.kind,
                       A(a.parameter),
                       a.statistics != nullptr,
                       static_cast<A*>(a.statistics),
                       workspace.ticket,
                       workspace.partial};
    int64_t blocks = ceil_div(tiling.items, kThreads);
    // Sums of nothing are written, too.
    if (!none && blocks == 0) blocks = 1;
    if (!none && blocks > kMostBlocks) blocks = kMostBlocks;
    if (blocks == 0) return;
    launch("weighted_loss_forward", &weighted_loss_forward_kernel<T, A, Chosen::V, Chosen::pixels>,
           blocks, a.launch.stream, f);
  };
  choose(a.shape, a.weight, {input, target, image_out}, launch_variant);
}

void weighted_loss_backward(const WeightedLossArguments& a) {
  check_sizes(a);
  const bool none = a.reduction == Reduction::none;
  const Operand input = tidy(a.input, a.shape), target = tidy(a.target, a.shape);
  const Operand grad = none ? tidy(a.grad, a.shape) : Operand{a.grad.dtype, a.grad.data, {}};
  const Operand grad_input = tidy(a.grad_input, a.shape);
  const Operand grad_target = tidy(a.grad_target, a.shape);
  const Operand image_grad = none ? grad : Operand{};
  const auto launch_variant = [&](auto variant) {
    using Chosen = decltype(variant);
    using T = typename Chosen::T;
    using A = typename Chosen::A;
    const Workspace workspace(a.workspace);
    const Map<A> map = map_of<A>(a);
    Tiling tiling = tiling_of(a.shape, map.per_channel, Chosen::V, Chosen::pixels);
    if (!a.grad_input.data && !a.grad_target.data) tiling.items = 0;
    const Gather gather = gather_of(a, Chosen::pixels);
    const Backward<A> b{grad,
                        input,
                        target,
                        grad_input,
                        grad_target,
                        tidy(a.grad_weight, a.weight_shape),
                        map,
                        tiling,
                        gather,
                        a.reduction,
                        a.kind,
                        A(a.parameter),
                        static_cast<const A*>(a.statistics),
                        workspace.ticket,
                        workspace.partial};
    const int64_t blocks = gather.blocks + ceil_div(tiling.items, kThreads);
    if (blocks == 0) return;
    auto* kernel = &weighted_loss_backward_kernel<T, A, Chosen::V, Chosen::pixels, false>;
    if (gather.blocks)
      kernel = &weighted_loss_backward_kernel<T, A, Chosen::V, Chosen::pixels, true>;
    launch("weighted_loss_backward", kernel, blocks, a.launch.stream, b);
  };
  choose(a.shape, a.weight, {input, target, image_grad, grad_input, grad_target}, launch_variant);
}

}  // namespace srk::cuda
