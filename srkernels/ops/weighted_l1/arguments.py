"""What the weighted L1 operator takes, and what its backward pass receives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Operands(NamedTuple):
    input: Tensor
    target: Tensor
    weight: Tensor | None


class Settings(NamedTuple):
    """``reduction``: a code of ``allocate.REDUCTIONS``; ``by_weight``: its mean is over the resized weights; ``fp32``:
    the result is at least fp32 (autocast).
    """

    reduction: int
    by_weight: bool
    align_corners: bool
    fp32: bool


class Saved(NamedTuple):
    """``statistics``: [mean by weight, sum of the resized weight] where that was requested; ``signs``: of the
    difference, two bits an element, where the forward pass kept them.
    """

    input: Tensor
    target: Tensor
    weight: Tensor | None
    statistics: Tensor | None
    signs: Tensor | None

    @property
    def operands(self) -> Operands:
        return Operands(*self[:3])
