"""Registration of the Haar ops. Imports torch alone, so the schemas exist before any trace, whatever is installed.

Two ops, each the other's derivative. A convention travels as the index of its plan (conventions.PLANS), ``wanted``
is a set of bits (LOW, HIGH), ``backend`` a name or "" for automatic choice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
from ..._layout import in_layout, is_channels_last
from ..._validate import check_image
from . import allocate
from .conventions import HIGH, LOW, linear

_library = torch.library.Library("srkernels", "FRAGMENT")
_library.define(
    "haar_analysis(Tensor x, int plan, int pad, int wanted, str backend) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "haar_synthesis(Tensor? low, Tensor? high, SymInt rows, SymInt columns, int plan, int pad, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _analysis(x: Tensor, plan: int, pad: int, wanted: int, backend: str) -> list[Tensor]:
    return implementation(__package__, backend, x).analysis(x, plan, pad, wanted)


def _synthesis(
    low: Tensor | None, high: Tensor | None, rows: int, columns: int, plan: int, pad: int, backend: str
) -> Tensor:
    one = low if low is not None else high
    assert one is not None
    return implementation(__package__, backend, one).synthesis(low, high, rows, columns, plan, pad)


def _synthesis_fake(
    low: Tensor | None, high: Tensor | None, rows: int, columns: int, plan: int, pad: int, backend: str
) -> Tensor:
    return allocate.image(low, high, rows, columns, plan)


_library.impl("haar_analysis", _analysis, "CompositeExplicitAutograd")
_library.impl("haar_synthesis", _synthesis, "CompositeExplicitAutograd")
torch.library.register_fake(
    "srkernels::haar_analysis", lambda x, plan, pad, wanted, backend: allocate.bands(x, plan, wanted), lib=_library
)
torch.library.register_fake("srkernels::haar_synthesis", _synthesis_fake, lib=_library)

_analysis_op = torch.ops.srkernels.haar_analysis.default
_synthesis_op = torch.ops.srkernels.haar_synthesis.default
for _op in (_analysis_op, _synthesis_op):
    torch.library.register_vmap(_op, map_one_by_one(_op), lib=_library)


def _run_analysis(x: Tensor, plan: int, pad: int, wanted: int, backend: str) -> tuple[Tensor, ...]:
    run = _analysis if unwatched(x) else _analysis_op
    return tuple(run(x, plan, pad, wanted, backend))


def _run_synthesis(
    low: Tensor | None, high: Tensor | None, rows: int, columns: int, plan: int, pad: int, backend: str
) -> Tensor:
    run = _synthesis if unwatched(low, high) else _synthesis_op
    return run(low, high, rows, columns, plan, pad, backend)


class _Analysis(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, plan: int, pad: int, wanted: int, backend: str) -> tuple[Tensor, ...]:
        return _run_analysis(x, plan, pad, wanted, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, *ctx.arguments = inputs
        ctx.size, ctx.channels_last = x.shape[2:], is_channels_last(x)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return _adjoint_of_analysis(ctx, grads), None, None, None, None


def _adjoint_of_analysis(ctx: Any, grads: tuple[Tensor | None, ...]) -> Tensor | None:
    rows, columns = ctx.size
    plan, pad, wanted, backend = ctx.arguments
    low = grads[0] if wanted & LOW else None
    high = grads[-1] if wanted & HIGH else None
    if low is None and high is None:
        return None
    return in_layout(synthesis(low, high, rows, columns, linear(plan), pad, backend), ctx.channels_last)


class _Synthesis(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        low: Tensor | None, high: Tensor | None, rows: int, columns: int, plan: int, pad: int, backend: str
    ) -> Tensor:
        return _run_synthesis(low, high, rows, columns, plan, pad, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        low, high, _, _, *ctx.arguments = inputs
        ctx.channels_last = _layouts(low, high, ctx.arguments[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *_adjoint_of_synthesis(ctx, grad), None, None, None, None, None


def _adjoint_of_synthesis(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    plan, pad, backend = ctx.arguments
    need_low, need_high = ctx.needs_input_grad[:2]
    wanted = (LOW if need_low else 0) | (HIGH if need_high else 0)
    bands = analysis(grad, linear(plan), pad, wanted, backend)
    low, high = ctx.channels_last
    return (
        in_layout(bands[0], low) if need_low else None,
        allocate.in_layout_of_high(bands[-1], plan, high) if need_high else None,
    )


def _layouts(low: Tensor | None, high: Tensor | None, plan: int) -> tuple[bool, bool]:
    """Whether they are channels_last, as their gradients are to be."""
    return low is not None and is_channels_last(low), high is not None and allocate.high_is_channels_last(high, plan)


_apply_analysis = short_apply(_Analysis)
_apply_synthesis = short_apply(_Synthesis)


# Remembered calls: what a backend decided for operands of one signature and these settings, or None if it decides
# nothing. Nothing of this may be met in a trace, which would be guarded by all that is remembered.


class _KnownAnalysis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Any, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
        ctx.size, ctx.channels_last, ctx.arguments = x.shape[2:], is_channels_last(x), arguments
        ctx.set_materialize_grads(False)
        return call(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return _adjoint_of_analysis(ctx, grads), None, None


class _KnownSynthesis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor | None, high: Tensor | None, call: Any, arguments: tuple[Any, ...]) -> Tensor:
        ctx.arguments, ctx.channels_last = arguments, _layouts(low, high, arguments[0])
        return call(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *_adjoint_of_synthesis(ctx, grad), None, None


_apply_known_analysis = unwatched_apply(_KnownAnalysis)
_apply_known_synthesis = unwatched_apply(_KnownSynthesis)
_analyses: dict[Any, Any] = {}
_syntheses: dict[Any, Any] = {}


def analysis(x: Tensor, plan: int, pad: int, wanted: int, backend: str, op: str = "") -> tuple[Tensor, ...]:
    """Differentiable (low,), (high,) or (low, high) of ``x``, as ``wanted`` says, checked on behalf of ``op``."""
    signed = signature(x)
    if signed is not None:
        settings = plan, pad, wanted, backend
        key = signed, settings
        call = _analyses.get(key, UNDECIDED)
        if call is UNDECIDED:
            if op:
                check_image(op, "x", x)
            decide = getattr(implementation(__package__, backend, x), "decided_analysis", None)
            call = remember(_analyses, key, decide and decide(x, plan, pad, wanted))
        if call is not None:
            return _apply_known_analysis(x, call, settings) if records(x) else call(x)
    elif op:
        check_image(op, "x", x)
    # The Function costs more than a small transform; without a gradient to record it is left out.
    if records(x) or in_forward_mode():
        return _apply_analysis(x, plan, pad, wanted, backend)
    return _run_analysis(x, plan, pad, wanted, backend)


def synthesis(
    low: Tensor | None, high: Tensor | None, rows: int, columns: int, plan: int, pad: int, backend: str
) -> Tensor:
    """Differentiable image (N, C, rows, columns) of the bands given; a missing one counts as zeros."""
    signed = signature(low, high)
    if signed is not None:
        settings = plan, pad, backend
        key = signed, settings, rows, columns
        call = _syntheses.get(key, UNDECIDED)
        if call is UNDECIDED:
            one = low if low is not None else high
            assert one is not None
            decide = getattr(implementation(__package__, backend, one), "decided_synthesis", None)
            call = remember(_syntheses, key, decide and decide(low, high, rows, columns, plan, pad))
        if call is not None:
            return _apply_known_synthesis(low, high, call, settings) if records(low, high) else call(low, high)
    if records(low, high) or in_forward_mode():
        return _apply_synthesis(low, high, rows, columns, plan, pad, backend)
    return _run_synthesis(low, high, rows, columns, plan, pad, backend)
