"""How sure a number is, by resampling what it was measured on or by Student's t, and how well two measures agree."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

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
    first, second = stats.rankdata(a), stats.rankdata(b)
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
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * pairs.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Difference(float(pairs.mean()), half, int((pairs > 0).sum()), n)
