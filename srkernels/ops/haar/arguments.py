"""What the two Haar operators take: operands and settings.

A convention travels as the index of its plan (``conventions.PLANS``); ``wanted`` is a set of bits (LOW, HIGH).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..._op import Size


class Image(NamedTuple):
    x: Tensor


class Analysis(NamedTuple):
    plan: int
    pad: int
    wanted: int


class Bands(NamedTuple):
    """At least one; the other counts as zeros."""

    low: Tensor | None
    high: Tensor | None


class Synthesis(NamedTuple):
    """``rows`` and ``columns`` of the image, ``pad`` of the analysis that this is the adjoint of."""

    rows: Size
    columns: Size
    plan: int
    pad: int
