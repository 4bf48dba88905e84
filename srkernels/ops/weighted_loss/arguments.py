"""What the weighted loss operator takes, and what its backward pass receives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NONE, MEAN, SUM = 0, 1, 2
REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}

L1, CHARBONNIER, MSE, HUBER = 0, 1, 2, 3
KINDS = {"l1": L1, "charbonnier": CHARBONNIER, "mse": MSE, "huber": HUBER}

BILINEAR, BILINEAR_CORNERS, NEAREST = 0, 1, 2  # how the map is resized; corners: with align_corners


class Operands(NamedTuple):
    input: Tensor
    target: Tensor
    weight: Tensor | None


class Settings(NamedTuple):
    """Codes as above, in the order of csrc's enums.

    ``by_weight``: the mean is over the resized weights; ``fp32``: the result is at least fp32 (autocast);
    ``parameter``: eps of Charbonnier, delta of Huber, otherwise 0.
    """

    reduction: int
    by_weight: bool
    resize: int
    fp32: bool
    kind: int = L1
    parameter: float = 0.0


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
