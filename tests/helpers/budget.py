"""The error budget: what a fused op may differ by, from eager PyTorch and the operands, never picked by hand.

An op's error against an fp64 oracle may be twice that of eager PyTorch in the same dtype on the same operands, plus
what another order of its sums may bring, plus one rounding of the output's dtype at the value's own magnitude.

Eager's error is the largest over several draws: a scalar of one draw can be exact by luck. It knows the roundings of
what is stored in between, and one order of every sum: that of this processor, of this number of threads. Any other is
as right. A sum of n terms is off by eps / 2 * sqrt(n) * S in whatever order, S being the sum of the terms' absolute
values, with a probability that a small factor makes as good as certain (Higham and Mary, 2019): eps * sqrt(n) * S is
allowed, in the precision that is summed in. Of sums of sums, as blocks are, n is that of the longest and S adds up over
all paths, far beyond the terms of any one of them. Of the mildest fault that is planted (``test_helpers``), an operand
rounded to a narrower dtype, that is a small part.

For fp64 there is no wider oracle: eager PyTorch is it, may be off by as much as the op, and is rounded too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x.double(), nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True)
class Error:
    """Largest error of an element, and 2-norm of the error, over several draws."""

    largest: float
    norm: float


def measured(approximate: Sequence[Tensor], exact: Sequence[Tensor]) -> Error:
    """Error of the same output in several draws."""
    return _largest([_finite(a) - _finite(e) for a, e in zip(approximate, exact, strict=True)])


def _largest(differences: Sequence[Tensor]) -> Error:
    return Error(
        max((d.abs().max().item() for d in differences if d.numel()), default=0.0),
        max((d.norm().item() for d in differences), default=0.0),
    )


def reordered(dtype: torch.dtype, magnitudes: Sequence[Tensor], terms: int) -> Error:
    """What another order of sums of ``terms`` terms may bring, given the sums of their absolute values."""
    summed_in = torch.float64 if dtype == torch.float64 else torch.float32
    bound = torch.finfo(summed_in).eps * terms**0.5
    return _largest([_finite(bound * m) for m in magnitudes])


def allowed(dtype: torch.dtype, eager: Error, order: Error) -> Error:
    """What is allowed before the output's own rounding, given eager PyTorch's error and ``reordered``."""
    if dtype == torch.float64:
        return Error(2 * order.largest, 2 * order.norm)
    return Error(2 * eager.largest + order.largest, 2 * eager.norm + order.norm)


def _roundings(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.float64 else 1


def check(what: str, actual: Tensor, exact: Tensor, eager: Tensor, error: Error) -> None:
    """Assert that ``actual`` is within the budget.

    Args:
        actual: what the op returned.
        exact: the fp64 oracle's value.
        eager: eager PyTorch's value; dtype, shape and the places of NaN and inf must be its.
        error: what is ``allowed``.
    """
    assert actual.dtype == eager.dtype, f"{what}: dtype {actual.dtype}, eager PyTorch gives {eager.dtype}"
    assert actual.shape == eager.shape, f"{what}: shape {tuple(actual.shape)}, eager PyTorch gives {tuple(eager.shape)}"
    assert torch.equal(actual.isnan(), eager.isnan()), f"{what}: NaN at other places than eager PyTorch"
    infinite = eager.isinf()
    assert torch.equal(actual.isinf(), infinite), f"{what}: inf at other places than eager PyTorch"
    assert torch.equal(actual[infinite], eager[infinite]), f"{what}: inf of another sign than eager PyTorch"
    if not actual.numel():
        return

    # Round to nearest: half an eps of the value, half the smallest number near zero.
    precision = torch.finfo(actual.dtype)
    rounding = _roundings(actual.dtype) * precision.eps / 2 * (_finite(exact).abs() + precision.smallest_normal)
    difference = (_finite(actual) - _finite(exact)).abs()
    most = error.largest + rounding
    if not bool((difference <= most).all()):
        at = int((difference - most).argmax())
        raise AssertionError(
            f"{what}: element {at} is {actual.flatten()[at].item():.9g}, "
            f"the oracle's {exact.flatten()[at].item():.9g}: off by "
            f"{difference.flatten()[at].item():.3g}, allowed {most.flatten()[at].item():.3g} "
            f"({error.largest:.3g} before its rounding)"
        )
    most_norm = error.norm + rounding.norm().item()
    assert difference.norm().item() <= most_norm, (
        f"{what}: error norm {difference.norm().item():.3g}, allowed {most_norm:.3g} "
        f"({error.norm:.3g} before its roundings)"
    )


def check_magnitude(what: str, actual: Tensor, exact: Tensor, error: Error) -> None:
    """Assert that a gradient is as long as the oracle's: a silent zero, or a missing factor, must fail.

    Where the oracle's gradient drowns in what is allowed (cancellation in bf16) it must at least not be zero.
    """
    length, expected = _finite(actual).norm().item(), _finite(exact).norm().item()
    precision = torch.finfo(actual.dtype)
    rounding = precision.eps / 2 * (expected + precision.smallest_normal * exact.numel() ** 0.5)
    of_the_norm = torch.finfo(torch.float64).eps * exact.numel() ** 0.5 * expected
    most = error.norm + _roundings(actual.dtype) * rounding + of_the_norm
    assert abs(length - expected) <= most, f"{what}: length {length:.6g}, the oracle's {expected:.6g}"
    # Below 2**-40 the gradient is zero but for the fp64 oracle's own rounding.
    assert length > 0 or expected < 2**-40, f"{what}: zero, the oracle's length is {expected:.6g}"
