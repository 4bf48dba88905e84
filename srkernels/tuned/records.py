"""What was measured, by class of call.

A class is an operator with its settings, the dtypes and layouts of its operands, the channels and, by powers of two,
the pixels of its images, the exact shapes of its parameters, and which gradients are recorded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .._layout import is_channels_last

GAIN = 0.03  # by which a backend must beat eager PyTorch to be chosen


class Call(NamedTuple):
    """A class of calls.

    Attributes:
        threads: of torch, on a CPU; 0 elsewhere.
        shape: sizes, dtypes, layouts, settings (``FusedOp.shape``).
        needs: a bit for each operand that requires a gradient.
    """

    op: str
    device: torch.device
    threads: int
    shape: tuple[int | torch.dtype, ...]
    needs: int


@dataclass(frozen=True)
class Record:
    """What was measured of a class of calls.

    Attributes:
        seconds: of each candidate that was right (``_dispatch.parts``), "reference" among them.
        dropped: why others that can run were not timed: they raised, or were wrong.
        day: ISO date.
        table: name of the table that ships it; "": it was measured here.
    """

    seconds: Mapping[str, float]
    dropped: Mapping[str, str] = field(default_factory=dict)
    day: str = ""
    table: str = ""

    @cached_property
    def choice(self) -> str:
        """The fastest that beats eager PyTorch by ``GAIN``, else "reference"; times that are none count for nothing."""
        found = sane(self.seconds)
        if "reference" not in found:
            return "reference"
        best = min(found, key=found.__getitem__)
        return best if found[best] <= (1 - GAIN) * found["reference"] else "reference"


def sane(seconds: Mapping[str, float]) -> dict[str, float]:
    """Times without those that are none: a clock may jump, a file be damaged."""
    return {name: t for name, t in seconds.items() if math.isfinite(t) and t > 0}


def sizes(operands: Sequence[Tensor | None], images: Sequence[bool]) -> list[int | torch.dtype]:
    """What a class takes from operands: of those that are ``images`` pixels by powers of two."""
    found: list[int | torch.dtype] = []
    for x, image in zip(operands, images, strict=True):
        if x is None:
            found.append(0)
            continue
        shape = x.shape
        found.append(x.dtype)
        if image:
            batch, *channels, height, width = shape
            found += (math.prod(channels), (batch * height * width - 1).bit_length())
        else:
            found += shape
        found.append(0 if x.is_contiguous() else 1 if is_channels_last(x) else 2)
    return found


def number(value: float) -> int:
    """What a class takes from a setting that is a number: whether it is 1, another above zero, zero, or below."""
    return 3 if value == 1 else 2 if value > 0 else 1 if value == 0 else 0


class Records:
    """Those of one process, by class."""

    def __init__(self) -> None:
        self._found: dict[Call, Record] = {}
        self._ops: set[tuple[str, torch.device]] = set()

    def about(self, op: str, device: torch.device) -> bool:
        """Whether any call of ``op`` was measured on ``device``."""
        return (op, device) in self._ops

    def get(self, call: Call) -> Record | None:
        return self._found.get(call)

    def add(self, found: Mapping[Call, Record]) -> None:
        self._found.update(found)
        self._ops.update((call.op, call.device) for call in found)

    def on(self, device: torch.device) -> bool:
        """Whether anything was measured on ``device``."""
        return any(where == device for _, where in self._ops)
