"""How sure a number is, by resampling what it was measured on or by Student's t, and how well two measures agree."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
REPLICATES = 2000

Interval = tuple[float, float]


def resample(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each of `count` items is drawn in every replicate of a bootstrap, (REPLICATES, count).

    What is drawn is what was sampled independently, a picture or a person, never one of its crops or answers.
    """
    return rng.multinomial(count, np.full(count, 1 / count), REPLICATES).astype(np.float64)


def interval(replicates: NDArray[np.float64]) -> Interval:
    """The 95 % percentile interval of a bootstrap; a replicate that holds nothing measured is NaN and left out."""
    low, high = np.nanquantile(replicates, (0.025, 0.975))
    return float(low), float(high)


def span(interval: Interval | None, form: str) -> str:
    """An interval as tables show it, its ends in a number's format; None, of what was measured once, is a dash."""
    return "-" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def spearman(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Rank correlation of two arrays, value by value; NaN for fewer than three values and for equal ones."""
    first, second = _ranks(a), _ranks(b)
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def partial_spearman(a: NDArray[np.generic], b: NDArray[np.generic], fixed: NDArray[np.generic]) -> float:
    """Rank correlation of `a` and `b` beyond what both owe to `fixed`, 0 if that is all; NaN where `spearman` is."""
    plain = spearman(a, b)
    if np.ptp(fixed) == 0:
        return plain
    of_a, of_b = spearman(a, fixed), spearman(b, fixed)
    beyond = (1 - of_a**2) * (1 - of_b**2)
    return (plain - of_a * of_b) / math.sqrt(beyond) if beyond > 1e-12 else 0.0 * plain


def _ranks(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """1 for the least; equal values share the mean of their ranks."""
    _, places, counts = np.unique(np.ravel(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places.ravel()]


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
