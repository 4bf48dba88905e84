"""Registration of the weighted L1 ops. Imports torch alone, so the schemas exist before any trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, is_grad_enabled

from ..._dispatch import implementation
from ..._eager import (
    UNDECIDED,
    in_forward_mode,
    map_one_by_one,
    records,
    remember,
    short_apply,
    signature,
    unwatched,
    unwatched_apply,
)
from . import allocate, reference
from .allocate import NONE

_library = torch.library.Library("srkernels", "FRAGMENT")
_library.define(
    "weighted_l1_forward(Tensor input, Tensor target, Tensor? weight, int reduction, bool by_weight, "
    "bool align_corners, bool fp32, bool keep_signs, str backend) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "weighted_l1_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor? statistics, Tensor? signs, "
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
    keep_signs: bool,
    backend: str,
) -> list[Tensor]:
    module = implementation(__package__, backend, input)
    arguments = (input, target, weight, reduction, by_weight, align_corners, fp32)
    if not keep_signs:
        return module.forward(*arguments)
    signs = allocate.signs(input)
    if getattr(module, "KEEPS_SIGNS", False):
        return [*module.forward(*arguments, signs), signs]
    return [*module.forward(*arguments), signs.zero_()]  # other backends read the images again instead


def _backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    statistics: Tensor | None,
    signs: Tensor | None,
    reduction: int,
    align_corners: bool,
    need_input: bool,
    need_target: bool,
    need_weight: bool,
    backend: str,
) -> list[Tensor]:
    module = implementation(__package__, backend, input)
    arguments = (grad, input, target, weight, statistics, reduction, align_corners)
    needs = (need_input, need_target, need_weight)
    if signs is not None and getattr(module, "KEEPS_SIGNS", False):
        return module.backward(*arguments, *needs, signs)
    return module.backward(*arguments, *needs)


def _forward_fake(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    by_weight: bool,
    align_corners: bool,
    fp32: bool,
    keep_signs: bool,
    backend: str,
) -> list[Tensor]:
    out = allocate.loss(input, target, weight, reduction, by_weight, fp32)
    return [*out, allocate.signs(input)] if keep_signs else out


_library.impl("weighted_l1_forward", _forward, "CompositeExplicitAutograd")
_library.impl("weighted_l1_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake(
    "srkernels::weighted_l1_forward",
    _forward_fake,
    lib=_library,
)
torch.library.register_fake(
    "srkernels::weighted_l1_backward",
    lambda grad, input, target, weight, statistics, signs, reduction, align_corners, ni, nt, nw, backend: (
        allocate.gradients(input, target, weight, ni, nt, nw)
    ),
    lib=_library,
)


def _run_forward(*arguments: Any) -> tuple[Tensor, ...]:
    run = _forward if unwatched(*arguments[:3]) else _forward_op
    return tuple(run(*arguments))


_forward_op = torch.ops.srkernels.weighted_l1_forward.default
_backward_op = torch.ops.srkernels.weighted_l1_backward.default
for _op in (_forward_op, _backward_op):
    torch.library.register_vmap(_op, map_one_by_one(_op), lib=_library)


class _WeightedL1(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        by_weight: bool,
        align_corners: bool,
        fp32: bool,
        keep_signs: bool,
        backend: str,
    ) -> tuple[Tensor, ...]:
        return _run_forward(input, target, weight, reduction, by_weight, align_corners, fp32, keep_signs, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, target, weight, reduction, by_weight, align_corners, _, keep_signs, backend = inputs
        ctx.settings = reduction, align_corners, backend, input.stride() if keep_signs else None
        statistics = output[1] if by_weight else None
        signs = output[-1] if keep_signs else None
        if len(output) > 1:
            ctx.mark_non_differentiable(*output[1:])
            ctx.set_materialize_grads(False)  # zeros for those, of which nothing would be read
        ctx.save_for_backward(input, target, weight, statistics, signs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 9
        return *_gradients(ctx, grad), None, None, None, None, None, None


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, target, weight, statistics, signs = ctx.saved_tensors
    reduction, align_corners, backend, stride = ctx.settings
    if signs is not None and input.stride() != stride:
        signs = None  # a hook on saved tensors has given them another order of memory than the signs'
    operands, needs = (grad, input, target, weight, statistics), ctx.needs_input_grad[:3]
    if is_grad_enabled() and not torch.compiler.is_compiling():
        # create_graph: a second derivative must see through the backward pass, so it runs on eager operations.
        grads = iter(_differentiable_backward(*operands, reduction, align_corners, *needs))
    else:
        run: Any = _backward if unwatched(grad, input, target, weight) else _backward_op
        grads = iter(run(*operands, signs, reduction, align_corners, *needs, backend))
    return tuple(next(grads) if need else None for need in needs)


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
        statistics = reference.mean_by_weight(input, target, weight, align_corners)
    return reference.backward(grad, input, target, weight, statistics, reduction, align_corners, *needs)


_apply = short_apply(_WeightedL1)


class _Known(torch.autograd.Function):
    """A remembered call, (forward, backward) as the backend's ``decided`` gave them and the settings of other backward
    passes; what only its own needs is no output here.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, call: Any) -> Tensor:
        run, ctx.run_backward, ctx.settings = call
        loss, statistics, signs = run(input, target, weight)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, weight, statistics, signs)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return None, None, None, None
        saved = ctx.saved_tensors
        if is_grad_enabled() or signature(grad) is None or saved[0].stride() != ctx.settings[3]:
            return *_gradients(ctx, grad), None
        need_input, need_target = ctx.needs_input_grad[:2]
        return *ctx.run_backward(grad, *saved, need_input, need_target), None, None


_apply_known = unwatched_apply(_Known)
_known: dict[Any, Any] = {}


def weighted_l1(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    by_weight: bool,
    align_corners: bool,
    fp32: bool,
    backend: str,
    check: Callable[[Tensor, Tensor, Tensor | None], None],
) -> Tensor:
    """Differentiable loss. ``check`` raises if the operands do not fit; what it has let pass it is not asked again."""
    signed = signature(input, target, weight)
    if signed is not None:  # never in a trace, which would be guarded by all that is remembered
        recording = records(input, target, weight)
        key = signed, reduction, by_weight, align_corners, fp32, recording, backend
        call = _known.get(key, UNDECIDED)
        if call is UNDECIDED:
            check(input, target, weight)
            passes = None
            decide = getattr(implementation(__package__, backend, input), "decided", None)
            if decide is not None and (not recording or _keep_signs(input, target, weight, reduction)):
                passes = decide(input, target, weight, reduction, by_weight, align_corners, fp32, recording)
            settings = reduction, align_corners, backend, input.stride()
            call = remember(_known, key, passes and (*passes, settings))
        if call is not None:
            return _apply_known(input, target, weight, call) if recording else call[0](input, target, weight)[0]
    else:
        check(input, target, weight)
    arguments = (input, target, weight, reduction, by_weight, align_corners, fp32)
    # Without a gradient to record the Function, dearer than a small loss, is left out.
    if records(input, target, weight) or in_forward_mode():
        return _apply(*arguments, _keep_signs(input, target, weight, reduction), backend)[0]
    return _run_forward(*arguments, False, backend)[0]


def _keep_signs(input: Tensor, target: Tensor, weight: Tensor | None, reduction: int) -> bool:
    """Signs spare the backward pass both images; a gradient of the weight needs the images anyway. A traced call does
    without, so that dynamic sizes are not specialised on their divisibility.
    """
    for_weight, tracing = records(weight), torch.compiler.is_compiling()
    return not for_weight and reduction != NONE and not tracing and allocate.can_keep_signs(input, target, weight)
