"""The error budget: what a fused op may differ by, measured on eager PyTorch, never picked by hand.

An op's error against an fp64 oracle may be twice that of eager PyTorch in the same dtype on the same operands, plus
one rounding of the output's dtype at the value's own magnitude. Eager's error is the largest over several draws: a
scalar of one draw can be exact by luck. For fp64 there is no wider oracle: the oracle may itself be off by as much as
eager PyTorch, and is rounded too.
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
    differences = [(_finite(a) - _finite(e)).flatten() for a, e in zip(approximate, exact, strict=True)]
    return Error(
        max((d.abs().max().item() for d in differences if d.numel()), default=0.0),
        max((d.norm().item() for d in differences), default=0.0),
    )


def _factors(dtype: torch.dtype) -> tuple[int, int]:
    """How often eager's error is allowed, and how many roundings."""
    return (3, 2) if dtype == torch.float64 else (2, 1)


def check(what: str, actual: Tensor, exact: Tensor, eager: Tensor, error: Error) -> None:
    """Assert that ``actual`` is within the budget.

    Args:
        actual: what the op returned.
        exact: the fp64 oracle's value.
        eager: eager PyTorch's value; dtype, shape and the places of NaN and inf must be its.
        error: of eager PyTorch.
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
    precision, (factor, roundings) = torch.finfo(actual.dtype), _factors(actual.dtype)
    rounding = roundings * precision.eps / 2 * (_finite(exact).abs() + precision.smallest_normal)
    difference = (_finite(actual) - _finite(exact)).abs()
    allowed = factor * error.largest + rounding
    if not bool((difference <= allowed).all()):
        at = int((difference - allowed).argmax())
        raise AssertionError(
            f"{what}: element {at} is {actual.flatten()[at].item():.9g}, "
            f"the oracle's {exact.flatten()[at].item():.9g}: off by "
            f"{difference.flatten()[at].item():.3g}, allowed {allowed.flatten()[at].item():.3g} "
            f"(eager's largest error {error.largest:.3g})"
        )
    allowed_norm = factor * error.norm + rounding.norm().item()
    assert difference.norm().item() <= allowed_norm, (
        f"{what}: error norm {difference.norm().item():.3g}, allowed {allowed_norm:.3g} (eager's {error.norm:.3g})"
    )


def check_magnitude(what: str, actual: Tensor, exact: Tensor, error: Error) -> None:
    """Assert that a gradient is as long as the oracle's: a silent zero, or a missing factor, must fail.

    Where the oracle's gradient drowns in eager's own error (cancellation in bf16) it must at least not be zero.
    """
    length, expected = _finite(actual).norm().item(), _finite(exact).norm().item()
    precision, (factor, roundings) = torch.finfo(actual.dtype), _factors(actual.dtype)
    rounding = roundings * precision.eps / 2 * (expected + precision.smallest_normal * exact.numel() ** 0.5)
    of_the_norm = torch.finfo(torch.float64).eps * exact.numel() ** 0.5 * expected
    allowed = factor * error.norm + rounding + of_the_norm
    assert abs(length - expected) <= allowed, f"{what}: length {length:.6g}, the oracle's {expected:.6g}"
    # Below 2**-40 the gradient is zero but for the fp64 oracle's own rounding.
    assert length > 0 or expected < 2**-40, f"{what}: zero, the oracle's length is {expected:.6g}"
