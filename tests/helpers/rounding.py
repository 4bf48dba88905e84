"""Arithmetic that tracks its error: every value in fp64, with a bound on how far rounding may have moved it.

The formulas of ``formulas`` are written in these operations. Nearly all are sums of products, which one rule bounds:
the sum is taken in fp32 (in fp64 for fp64), where n terms, in whatever order they are added, err by up to
``n * eps / 2`` times the sum of their magnitudes; errors of the factors pass through, multiplied by the magnitude of
the other; and the result is stored in its dtype, as eager PyTorch stores the result of each of its operations. A
gradient is the same operations run backwards (``gradients``), so it has a bound too, and a gradient of its own.

Where a sum of whole numbers is exact, so is the bound. Of any other function the bound is what it may become between
the ends of its operand (``pointwise``); where a derivative jumps within them, it may take either value (``indicator``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product as choices
from math import prod

import torch
from torch import Tensor


def registers(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are taken in."""
    return torch.promote_types(dtype, torch.float32)


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(registers(dtype)).eps


@dataclass(eq=False)
class Rounded:
    """A tensor as a computation sees it: ``value`` up to ``error`` (None: exactly), stored in ``dtype``.

    ``parents``: what it was made of, each with the function that sends a gradient back to it.
    """

    value: Tensor
    error: Tensor | None
    dtype: torch.dtype
    parents: tuple[tuple[Rounded, Callable[[Rounded], Rounded]], ...] = ()

    @property
    def magnitude(self) -> Tensor:
        """Its largest possible absolute value."""
        return self.value.abs() if self.error is None else self.value.abs() + self.error

    @property
    def shape(self) -> torch.Size:
        return self.value.shape


def exact(x: Tensor, dtype: torch.dtype | None = None) -> Rounded:
    """A given tensor."""
    return Rounded(x.detach().double(), None, dtype or x.dtype)


def number(value: float, like: Rounded) -> Rounded:
    return Rounded(torch.full_like(like.value, value), None, like.dtype)


def cast(x: Rounded, dtype: torch.dtype) -> Rounded:
    """A given tensor, converted."""
    if x.dtype is dtype:
        return x
    assert x.error is None
    return Rounded(x.value.to(dtype).double(), None, dtype, ((x, lambda g: stored(g, x.dtype)),))


# Triton's interpreter truncates what a bf16 does not hold.
_CUTS_OFF = os.environ.get("TRITON_INTERPRET") == "1"


def _unit(magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """Half a unit in the last place, which does not shrink below that of the smallest normal number."""
    precision = torch.finfo(dtype)
    share = 1 if _CUTS_OFF and dtype is torch.bfloat16 else 1 / 2
    return share * precision.eps * torch.clamp(magnitude, min=precision.smallest_normal)


def _sum(*errors: Tensor | None) -> Tensor | None:
    present = [e for e in errors if e is not None]
    return sum(present[1:], present[0]) if present else None


def _written(value: Tensor, error: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The error once the value is stored: a value that does not fit may become anything."""
    if error is None:
        rounding = (value.to(dtype).double() - value).abs()
        if _CUTS_OFF:
            rounding = torch.where(rounding > 0, _unit(value.abs(), dtype), 0.0)
        return rounding if rounding.any() else None
    most = value.abs() + error
    return torch.where(most < torch.finfo(dtype).max, error + _unit(most, dtype), torch.inf)


def _summed(value: Tensor, error: Tensor | None, magnitude: Tensor, terms: int, dtype: torch.dtype) -> Tensor | None:
    """The error of a sum in ``dtype``, ``error`` being that of the terms.

    n products round by half an eps of their own, n - 1 additions by half an eps of the sum so far: n halves of the sum.
    The square root of n would do if roundings were independent, and they are not: where few values repeat, as in the
    gradient that ``mean`` sends back, each is rounded the same way thousands of times.
    """
    unit = torch.finfo(dtype).eps
    if error is None and magnitude.numel() and magnitude.max() < 1 / unit and torch.equal(value, value.round()):
        return None
    roundings = terms * unit / 2
    return _sum(error, roundings / (1 - roundings) * magnitude)


def stored(x: Rounded, dtype: torch.dtype) -> Rounded:
    """``x`` stored in ``dtype``."""
    return Rounded(x.value, _written(x.value, x.error, dtype), dtype, ((x, lambda g: stored(g, x.dtype)),))


def restored(x: Rounded) -> Rounded:
    """``x`` rounded once more than the formula says, and its gradient too."""
    return Rounded(x.value, _sum(x.error, _unit(x.magnitude, x.dtype)), x.dtype, ((x, restored),))


def product(
    equation: str,
    a: Rounded,
    b: Rounded,
    dtype: torch.dtype | None = None,
    terms: tuple[int | None, int | None, int | None] = (None, None, None),
) -> Rounded:
    """``einsum(equation, a, b)``, stored in ``dtype``.

    ``terms``: how many products at most are nonzero, in the sum and the gradients of ``a`` and ``b``; all if None.
    """
    dtype = dtype or torch.promote_types(a.dtype, b.dtype)
    operands, result = equation.split("->")
    of_a, of_b = operands.split(",")
    sizes = dict(zip(of_a + of_b, [*a.shape, *b.shape], strict=True))
    count = terms[0] or prod(size for index, size in sizes.items() if index not in result)
    value = torch.einsum(equation, a.value, b.value)
    magnitude = torch.einsum(equation, a.value.abs(), b.value.abs())
    error = _sum(
        None if a.error is None else torch.einsum(equation, a.error, b.magnitude),
        None if b.error is None else torch.einsum(equation, a.value.abs(), b.error),
    )
    error = _written(value, _summed(value, error, magnitude, count, registers(dtype)), dtype)
    to_a, to_b = (terms[1], terms[0], terms[2]), (terms[2], terms[1], terms[0])
    parents = (
        (a, lambda g: product(f"{result},{of_b}->{of_a}", g, b, a.dtype, to_a)),
        (b, lambda g: product(f"{of_a},{result}->{of_b}", a, g, b.dtype, to_b)),
    )
    return Rounded(value, error, dtype, parents)


def moved(
    x: Rounded, f: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], sums: torch.dtype | None = None
) -> Rounded:
    """``f(x)``: elements moved, copied or summed up in ``sums``, ``back`` being the adjoint."""
    value = f(x.value)
    error = None if x.error is None else f(x.error)
    terms = f(torch.ones_like(x.value))
    count = int(terms.max()) if terms.numel() else 1
    if count > 1:
        error = _written(value, _summed(value, error, f(x.value.abs()), count, sums or registers(x.dtype)), x.dtype)
    return Rounded(value, error, x.dtype, ((x, lambda g: moved(g, back, f, sums)),))


def expanded(x: Rounded, shape: Sequence[int], sums: torch.dtype | None = None) -> Rounded:
    return moved(x, lambda t: t.expand(*shape), lambda t: t.sum_to_size(x.shape), sums)


def viewed(x: Rounded, *shape: int) -> Rounded:
    return moved(x, lambda t: t.reshape(shape), lambda t: t.reshape(x.shape))


def narrowed(x: Rounded, dim: int, start: int, size: int) -> Rounded:
    def back(t: Tensor) -> Tensor:
        y = t.new_zeros(x.shape)
        y.narrow(dim, start, size).copy_(t)
        return y

    return moved(x, lambda t: t.narrow(dim, start, size), back)


def cat(parts: Sequence[Rounded], dim: int) -> Rounded:
    error = None
    if any(x.error is not None for x in parts):
        error = torch.cat([torch.zeros_like(x.value) if x.error is None else x.error for x in parts], dim)
    starts = [sum(x.shape[dim] for x in parts[:k]) for k in range(len(parts))]

    def back(start: int, size: int) -> Callable[[Rounded], Rounded]:
        return lambda g: narrowed(g, dim, start, size)

    parents = tuple((x, back(start, x.shape[dim])) for x, start in zip(parts, starts, strict=True))
    return Rounded(torch.cat([x.value for x in parts], dim), error, parts[0].dtype, parents)


def plus(a: Rounded, b: Rounded, sign: int = 1) -> Rounded:
    """``a + sign * b``, of one shape."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    value = a.value + sign * b.value
    error = _written(value, _summed(value, _sum(a.error, b.error), value.abs(), 1, registers(dtype)), dtype)
    if error is not None and a.error is b.error is None:
        error = torch.where(value == 0, 0.0, error)  # what cancels exactly is exactly zero
    parents = (a, lambda g: stored(g, a.dtype)), (b, lambda g: stored(scaled(g, sign), b.dtype))
    return Rounded(value, error, dtype, parents)


def times(a: Rounded, b: Rounded, dtype: torch.dtype | None = None) -> Rounded:
    """``a * b``, of one shape."""
    dtype = dtype or torch.promote_types(a.dtype, b.dtype)
    value = a.value * b.value
    error = _sum(
        None if a.error is None else a.error * b.magnitude, None if b.error is None else a.value.abs() * b.error
    )
    error = _written(value, _summed(value, error, value.abs(), 1, registers(dtype)), dtype)
    return Rounded(value, error, dtype, ((a, lambda g: times(g, b, a.dtype)), (b, lambda g: times(g, a, b.dtype))))


def scaled(x: Rounded, by: float) -> Rounded:
    return x if by == 1 else times(x, number(by, x))


def over(a: Rounded, b: Rounded) -> Rounded:
    """``a / b``, of one shape."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    value = a.value / b.value
    error = _sum(
        None if a.error is None else a.error / b.value.abs(),
        None if b.error is None else a.magnitude / b.value.abs() * b.error / (b.value.abs() - b.error).clamp(min=0),
        eps(dtype) * value.abs(),
    )
    parents = (
        (a, lambda g: stored(over(g, b), a.dtype)),
        (b, lambda g: stored(scaled(over(times(g, over(a, b)), b), -1), b.dtype)),
    )
    return Rounded(value, _written(value, error, dtype), dtype, parents)


def pointwise(f: Callable[..., Tensor], operands: Sequence[Rounded], slope: Callable[[], Rounded]) -> Rounded:
    """``f(*operands)``, element by element, in one or two roundings besides that of the result.

    ``f``: monotone in each operand on either side of zero, so that the ends and zero are its extremes.
    ``slope``: its derivative by the first operand, the only one that a gradient is sent to.
    """
    x = operands[0]
    value = f(*(a.value for a in operands))
    most, error = value.abs(), torch.zeros_like(value)
    for ends in choices(*map(_ends, operands)):
        extreme = f(*ends)
        most, error = torch.maximum(most, extreme.abs()), torch.maximum(error, (extreme - value).abs())
    error = _written(value, error + 2 * _unit(most, x.dtype), x.dtype)
    return Rounded(value, error, x.dtype, ((x, lambda g: times(g, slope(), x.dtype)),))


def _ends(x: Rounded) -> tuple[Tensor, ...]:
    if x.error is None:
        return (x.value,)
    low, high = x.value - x.error, x.value + x.error
    return low, high, torch.minimum(low.clamp(min=0), high)


def root(x: Rounded) -> Rounded:
    def slope() -> Rounded:
        return over(number(0.5, x), root(x))

    return pointwise(lambda t: t.clamp(min=0).sqrt(), (x,), slope)


def clamped(x: Rounded, most: Rounded) -> Rounded:
    """``x`` cut to plus or minus ``most``."""

    def slope() -> Rounded:
        room = Rounded(most.value - x.value.abs(), _sum(x.error, most.error), x.dtype)
        return indicator(room, lambda t: t >= 0, 1.0)

    return pointwise(lambda t, end: torch.minimum(torch.maximum(t, -end), end), (x, most), slope)


def indicator(x: Rounded, of: Callable[[Tensor], Tensor], jump: float) -> Rounded:
    """``of(x)``, constant except for a jump at zero: it may go either way where ``x`` is within its error of zero."""
    value = of(x.value).double()
    if x.error is None:
        return Rounded(value, None, x.dtype)
    error = torch.where((x.value.abs() <= x.error) & (x.error > 0), jump, 0.0).double()
    return Rounded(value, error if error.any() else None, x.dtype)


def gradients(
    outputs: Sequence[Rounded], cotangents: Sequence[Rounded], wanted: Sequence[Rounded]
) -> list[Rounded | None]:
    """Of ``sum(output * cotangent)``; None where no path leads from an output."""
    order: list[Rounded] = []
    leads: dict[int, bool] = {}

    def visit(x: Rounded) -> bool:
        if id(x) not in leads:
            below = [visit(parent) for parent, _ in x.parents]
            leads[id(x)] = any(below) or any(x is w for w in wanted)
            order.append(x)
        return leads[id(x)]

    for y in outputs:
        visit(y)
    shares: dict[int, list[Rounded]] = {}
    for y, cotangent in zip(outputs, cotangents, strict=True):
        shares.setdefault(id(y), []).append(cotangent)
    found: dict[int, Rounded] = {}
    for x in reversed(order):
        if leads[id(x)] and id(x) in shares:
            found[id(x)] = _gathered(shares[id(x)])
            for parent, back in x.parents:
                if leads[id(parent)]:
                    shares.setdefault(id(parent), []).append(back(found[id(x)]))
    return [found.get(id(x)) for x in wanted]


def _gathered(shares: Sequence[Rounded]) -> Rounded:
    """Their sum, stored after each addition, in whatever order."""
    total = shares[0]
    for share in shares[1:]:
        total = plus(total, share)
    if len(shares) < 3 or total.error is None:
        return total
    most = sum(share.magnitude for share in shares[1:]) + shares[0].magnitude
    error = total.error + (len(shares) - 1) * _unit(most, total.dtype)
    return Rounded(total.value, error, total.dtype, total.parents)
