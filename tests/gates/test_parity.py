"""Every op equals its oracle: values, every gradient, layouts, NaN and inf."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isnan, nan

import torch
from helpers.calls import Target, subsets
from helpers.operands import cotangents, operands
from helpers.oracle import Answers, answers
from torch import Tensor

import srkernels
from srkernels._parity import check, check_magnitude, flat, gradients, present, values
from srkernels._spec import Case, OpSpec


def _channels_last(x: Tensor) -> bool:
    """Dense NHWC; for bands in a channel axis of their own, (N, C, bands, h, w), of the image they flatten to."""
    order = (0, 2, 3, 1) if x.dim() == 4 else (0, 3, 4, 1, 2)
    return x.permute(order).is_contiguous()


def _check_layout(what: str, x: Tensor, source: Tensor) -> None:
    """Channels_last in, channels_last out; contiguous in, contiguous out. A tensor that is both requires contiguous."""
    if x.dim() < 4:
        return
    if source.is_contiguous():
        assert x.is_contiguous(), f"{what}: strides {x.stride()} of a contiguous operand"
    elif _channels_last(source):
        assert _channels_last(x), f"{what}: strides {x.stride()} of a channels_last operand"


def test_values_and_gradients(
    spec: OpSpec, case: Case, dtype: torch.dtype, target: Target, layouts: Sequence[str]
) -> None:
    for layout in layouts:
        expected = answers(spec, case, dtype, layout, target.device)
        with srkernels.use_backend(target.backend):
            _check_against(expected, spec, case, dtype, target, layout)


def _check_against(
    expected: Answers, spec: OpSpec, case: Case, dtype: torch.dtype, target: Target, layout: str
) -> None:
    draws = expected.draws[:1] if target.interpreted else expected.draws
    for draw in draws:
        found = values(spec.op, case, draw.operands)
        assert len(found) == len(draw.eager_values)
        for i, y in enumerate(found):
            what = f"{layout}: output {i}"
            check(what, y, draw.exact_values[i], draw.eager_values[i], expected.values[i])
            _check_layout(what, y, draw.operands[0])
    for n, draw in enumerate(draws):
        # The first draw goes through the subsets of operands that may require a gradient: in fp32 and of dense
        # operands through every one. The last goes through the backward pass that a second derivative uses.
        last = n == len(draws) - 1 and not target.interpreted
        # Of composed ops the interpreter runs many launches a call; which gradients they make is counted elsewhere.
        fewest = target.interpreted and spec.composed
        few = target.interpreted or (dtype != torch.float32 and layout != "contiguous")
        tried = subsets(expected.wanted, few, fewest) if n == 0 else (expected.wanted,)
        for wanted in tried:
            grads = gradients(spec.op, case, draw.operands, draw.cotangents, wanted, create_graph=last)
            for i, grad in zip(wanted, grads, strict=True):
                k = expected.wanted.index(i)
                names = "+".join(spec.operands[j] for j in wanted)
                what = f"{layout}: gradient of {spec.operands[i]} ({names} requiring it)"
                exact, eager, error = draw.exact_gradients[k], draw.eager_gradients[k], expected.gradients[k]
                check(what, grad, exact, eager, error)
                check_magnitude(what, grad, exact, error)
                # One channel looks the same in both layouts.
                if draw.operands[i].dim() >= 4 and draw.operands[i].shape[1] > 1:
                    _check_layout(what, grad, draw.operands[i])


def test_expanded_cotangents(spec: OpSpec, case: Case, target: Target) -> None:
    """``y.sum().backward()`` hands the backward pass a gradient whose every stride is 0."""
    xs = operands(case, torch.float32, device=target.device)
    wanted = present(xs)
    outputs = values(spec.eager, case, xs)
    dense = [torch.full_like(y, 0.75, memory_format=torch.contiguous_format) for y in outputs]
    zero_strides = [y.new_tensor(0.75).expand(y.shape) for y in outputs]
    with srkernels.use_backend(target.backend):
        expected = gradients(spec.op, case, xs, dense, wanted)
        found = gradients(spec.op, case, xs, zero_strides, wanted)
    for i, a, b in zip(wanted, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=f"gradient of {spec.operands[i]}")


def _keep_finite(y: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, y, torch.zeros_like(y))


def test_nan_and_inf_propagate(spec: OpSpec, case: Case, target: Target) -> None:
    """Each operand in turn holds two bad values, at the end and inside; what they do not reach stays in the budget.

    Outputs are non-finite where eager PyTorch's are. Its gradients also multiply bad values by weights of zero
    (``F.interpolate`` where samples coincide or at a border), which makes NaN; such an element may stay finite here,
    but none may go bad that is finite there, and not all may stay finite.
    """
    clean = answers(spec, case, torch.float32, "contiguous", target.device)
    # In the interpreter composed ops, of many launches a call, see NaN alone.
    for poison in (nan,) if target.interpreted and spec.composed else (nan, inf, -inf):
        _check_poisoned(clean, spec, case, target, poison)


def _check_poisoned(clean: Answers, spec: OpSpec, case: Case, target: Target, poison: float) -> None:
    draw = clean.draws[0]
    for bad in clean.wanted:
        xs = _poisoned(draw.operands, bad, poison)
        eager = values(spec.eager, case, xs)
        wide = [None if x is None else x.double() for x in xs]
        exact = values(spec.eager, case, wide)
        wide_cotangents = [c.double() for c in draw.cotangents]
        exact_gradients = gradients(spec.eager, case, wide, wide_cotangents, clean.wanted)
        eager_gradients = gradients(spec.eager, case, xs, draw.cotangents, clean.wanted)
        with srkernels.use_backend(target.backend):
            found = values(spec.op, case, xs)
            found_gradients = gradients(spec.op, case, xs, draw.cotangents, clean.wanted)
        for i, (y, e) in enumerate(zip(found, eager, strict=True)):
            what = f"output {i}, {poison} in {spec.operands[bad]}"
            # PyTorch's own convolutions disagree at a border: the fp64 one multiplies weights by the padding's zeros
            # and turns bad ones into NaN, the fp32 one does not. Either is right.
            as_eager, as_exact = y.isfinite() == e.isfinite(), y.isfinite() == exact[i].isfinite()
            assert (as_eager | as_exact).all(), f"{what}: non-finite at other places than eager PyTorch"
            where = as_eager & e.isfinite()
            assert not isnan(poison) or not y.isinf().any(), f"{what}: NaN became inf"
            comparable = where & exact[i].isfinite()
            y, e, x = (_keep_finite(t, comparable) for t in (y, e, exact[i]))
            check(what, y, x, e, clean.values[i])
        rows = zip(clean.wanted, found_gradients, eager_gradients, exact_gradients, strict=True)
        for i, a, e, x in rows:
            what = f"gradient of {spec.operands[i]}, {poison} in {spec.operands[bad]}"
            finite = e.isfinite() & x.isfinite()
            if target.backend in spec.bad_values_spread:
                assert e.isfinite().all() or not a.isfinite().all(), f"{what}: finite, eager PyTorch is not"
                continue
            assert a[finite].isfinite().all(), f"{what}: not finite where eager PyTorch is"
            assert a.isfinite().all() == finite.all() or a.isfinite().all() == e.isfinite().all(), (
                f"{what}: finite, eager PyTorch is not"
            )


def _poisoned(xs: Sequence[Tensor | None], bad: int, value: float) -> list[Tensor | None]:
    result = [None if x is None else x.clone() for x in xs]
    flattened = result[bad].view(-1)
    if flattened.numel():
        flattened[-1] = value
        flattened[flattened.numel() // 2] = value
    return result


def test_operands_are_left_alone(spec: OpSpec, case: Case, target: Target, layouts: Sequence[str]) -> None:
    """Neither pass writes to its operands or to the cotangents, and no output shares their memory."""
    for layout in layouts:
        _check_that_operands_are_left_alone(spec, case, target, layout)


def _check_that_operands_are_left_alone(spec: OpSpec, case: Case, target: Target, layout: str) -> None:
    xs = operands(case, torch.float32, layout, device=target.device)
    cots = cotangents(values(spec.eager, case, xs), layout)
    before = [None if x is None else x.clone() for x in (*xs, *cots)]
    with srkernels.use_backend(target.backend):
        produced = [*values(spec.op, case, xs), *gradients(spec.op, case, xs, cots, present(xs))]
    for x, copy in zip((*xs, *cots), before, strict=True):
        assert x is None or torch.equal(x, copy), layout
    storages = {x.untyped_storage().data_ptr() for x in (*xs, *cots) if x is not None and x.numel()}
    for y in flat(produced):
        if any(y.data_ptr() == c.data_ptr() and y.shape == c.shape and y.stride() == c.stride() for c in cots):
            continue  # the gradient of an operand that is only added is the cotangent itself, as PyTorch's own
        assert not y.numel() or y.untyped_storage().data_ptr() not in storages, layout
