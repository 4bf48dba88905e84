"""Paired differences of two rows, and how sure they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """A mean difference over pairs, the half width of its interval (NaN for one pair), and pairs above 0 of all."""

    mean: float
    half_width: float
    above: int
    pairs: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.mean) > self.half_width


def difference(pairs: NDArray[np.float64]) -> Difference:
    """Of the differences of pairs, taken for independent draws of one normal distribution (Student's t)."""
    n = pairs.size
    half = student_quantile(n - 1) * float(pairs.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Difference(float(pairs.mean()), half, int((pairs > 0).sum()), n)


def student_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """t with P(|T| < t) = confidence for Student's distribution of `freedom` degrees, by bisection."""
    low, high = 0.0, 1.0
    while _within(high, freedom) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t), exact for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
