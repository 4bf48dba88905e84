"""Registration of the weighted L1 ops. Imports torch alone, so the schemas exist before any trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._dispatch import implementation
from . import allocate, reference

_library = torch.library.Library("srkernels", "FRAGMENT")
_library.define(
    "weighted_l1_forward(Tensor input, Tensor target, Tensor? weight, int reduction, bool by_weight, "
    "bool align_corners, bool fp32, str backend) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "weighted_l1_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor? statistics, "
    "int reduction, bool align_corners, bool need_input, bool need_target, bool need_weight, str backend) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    by_weight: bool,
    align_corners: bool,
    fp32: bool,
    backend: str,
) -> list[Tensor]:
    run = implementation(__package__, backend, input).forward
    return run(input, target, weight, reduction, by_weight, align_corners, fp32)


def _backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    statistics: Tensor | None,
    reduction: int,
    align_corners: bool,
    need_input: bool,
    need_target: bool,
    need_weight: bool,
    backend: str,
) -> list[Tensor]:
    run = implementation(__package__, backend, input).backward
    return run(grad, input, target, weight, statistics, reduction, align_corners, need_input, need_target, need_weight)


_library.impl("weighted_l1_forward", _forward, "CompositeExplicitAutograd")
_library.impl("weighted_l1_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake(
    "srkernels::weighted_l1_forward",
    lambda input, target, weight, reduction, by_weight, align_corners, fp32, backend: allocate.loss(
        input, target, weight, reduction, by_weight, fp32
    ),
    lib=_library,
)
torch.library.register_fake(
    "srkernels::weighted_l1_backward",
    lambda grad, input, target, weight, statistics, reduction, align_corners, ni, nt, nw, backend: allocate.gradients(
        input, target, weight, ni, nt, nw
    ),
    lib=_library,
)

_forward_op = torch.ops.srkernels.weighted_l1_forward.default
_backward_op = torch.ops.srkernels.weighted_l1_backward.default


class _WeightedL1(torch.autograd.Function):
    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        by_weight: bool,
        align_corners: bool,
        fp32: bool,
        backend: str,
    ) -> tuple[Tensor, ...]:
        return tuple(_forward_op(input, target, weight, reduction, by_weight, align_corners, fp32, backend))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, target, weight, ctx.reduction, _, ctx.align_corners, _, ctx.backend = inputs
        statistics = output[1] if len(output) > 1 else None
        if statistics is not None:
            ctx.mark_non_differentiable(statistics)
        ctx.save_for_backward(input, target, weight, statistics)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        input, target, weight, statistics = ctx.saved_tensors
        need_input, need_target, need_weight = ctx.needs_input_grad[:3]
        arguments = (grad, input, target, weight, statistics, ctx.reduction, ctx.align_corners)
        needs = (need_input, need_target, need_weight)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph: a second derivative must see through the backward pass, so it runs on eager operations.
            grads = iter(_differentiable_backward(*arguments, *needs))
        else:
            grads = iter(_backward_op(*arguments, *needs, ctx.backend))
        by_input = tuple(next(grads) if need else None for need in needs)
        return *by_input, None, None, None, None, None


def _differentiable_backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    statistics: Tensor | None,
    reduction: int,
    align_corners: bool,
    *needs: bool,
) -> list[Tensor]:
    if statistics is not None and weight is not None:
        # The saved sums carry no gradient; recomputed, they do.
        full = reference.resized(weight, input.shape[-2:], align_corners).expand(input.shape)
        total = full.sum()
        statistics = torch.stack(((full * (input - target).abs()).sum() / total, total))
    return reference.backward(grad, input, target, weight, statistics, reduction, align_corners, *needs)


def weighted_l1(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    by_weight: bool,
    align_corners: bool,
    fp32: bool,
    backend: str,
) -> Tensor:
    """Differentiable loss. Without a gradient to record the Function, dearer than a small loss, is left out."""
    arguments = (input, target, weight, reduction, by_weight, align_corners, fp32, backend)
    if torch.is_grad_enabled() and (
        input.requires_grad or target.requires_grad or (weight is not None and weight.requires_grad)
    ):
        return _WeightedL1.apply(*arguments)[0]
    return _forward_op(*arguments)[0]
