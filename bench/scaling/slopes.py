"""What a curve of times says: its slope, and whether it grows faster than its work, which grows with the pixels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..record import OURS

# Time as a power of the pixels: 1 is as fast as the work. More than this is steep, or steeper than eager PyTorch.
STEEP, STEEPER = 1.1, 0.05


def pixels(point: Mapping[str, Any]) -> int:
    return int(point["batch"] * point["side"] ** 2)


def slope(points: Sequence[Mapping[str, Any]], provider: str) -> float | None:
    """The exponent of the pixels in the time, fitted where the cost of calls no longer matters: the larger sizes.

    Of an odd number the middle one is among them. None: there are no two sizes.
    """
    larger = points[-(len(points) // 2 + 1) :]
    if len(larger) < 2:
        return None
    sizes = [math.log(pixels(point)) for point in larger]
    times = [math.log(point["times"][provider]["median_us"]) for point in larger]
    return statistics.linear_regression(sizes, times).slope


def flags(curve: Mapping[str, Any]) -> list[str]:
    """What of a curve grows too fast; empty: nothing."""
    eager, ours = (slope(curve["points"], provider) for provider in ("eager", OURS))
    if eager is None or ours is None:
        return []
    found = [f"{name} above {STEEP:g}" for name, found in (("eager", eager), ("ours", ours)) if found > STEEP]
    return found + ["ours above eager"] * (ours - eager > STEEPER)
