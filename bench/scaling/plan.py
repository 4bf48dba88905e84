"""Which sizes are measured, how, and what they may cost: climbing a curve until its next size would be too much."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..timing import Stats

# (threads, ranks), and what each provider takes of them.
Variant = tuple[int, int]
Times = dict[str, dict[str, float]]

USED_UP = "the run's time is used up"


@dataclass(frozen=True)
class Size:
    """Square pictures."""

    batch: int
    side: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.side}x{self.side}"

    @property
    def pixels(self) -> int:
        return self.batch * self.side**2


class Unfit(Exception):
    """A size that its subject does not take; the text is the reason."""


@dataclass(frozen=True)
class Plan:
    """What a run measures, and its limits.

    Attributes:
        sides: at the smallest batch.
        batches: at the side ``side``.
        threads: of one process.
        ranks: the most that a training step is measured on.
        rounds, seconds: of every size, as in ``time_calls``.
        size_bytes: most that a size may be counted to need.
        deadline: on ``time.monotonic``; no size begins that is expected to take longer.
    """

    sides: tuple[int, ...] = tuple(2**k for k in range(5, 12))
    batches: tuple[int, ...] = tuple(2**k for k in range(7))
    side: int = 64
    threads: tuple[int, ...] = (1, 2)
    ranks: int = 2
    rounds: tuple[int, int] = (3, 50)
    seconds: float = 0.15
    size_bytes: int = 2 << 30
    deadline: float = float("inf")

    def axes(self, smallest: int) -> dict[str, list[Size]]:
        """The sizes along each axis, in ascending order; ``smallest``: the fewest pictures."""
        return {
            "batch": [Size(batch, self.side) for batch in self.batches if batch >= smallest],
            "side": [Size(smallest, side) for side in self.sides],
        }

    def refuses(self, nbytes: float, seconds: float) -> str | None:
        """Why a size that needs so much is left out, or None."""
        if nbytes > self.size_bytes:
            return f"counts {nbytes / 1e6:.0f} MB, allowed are {self.size_bytes / 1e6:.0f}"
        left = self.deadline - time.monotonic()
        if left < 0:
            return USED_UP
        return f"expected to take {seconds:.0f} s, {left:.0f} s are left" if seconds > left else None


def whole(device: torch.device, deadline: float = float("inf")) -> Plan:
    """The plan of a benchmark run: on a GPU the host's threads do not matter, and a rank needs a GPU of its own."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return Plan(threads=(torch.get_num_threads(),), ranks=1, size_bytes=memory // 20, deadline=deadline)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Plan(threads=(1, 2)[:cores], ranks=min(2, cores), deadline=deadline)


def quick() -> Plan:
    """The plan of a test: a few small sizes, each timed once."""
    return Plan(sides=(32, 64), batches=(2,), threads=(torch.get_num_threads(),), ranks=1, rounds=(1, 1), seconds=0)


def share(deadline: float, parts: int) -> float:
    """The deadline of the next of so many parts: what one does not use goes to the later ones."""
    now = time.monotonic()
    return now + (deadline - now) / parts


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spread(times: Mapping[str, Stats]) -> Times:
    return {name: {"median_us": t.median_us, "p20_us": t.p20_us, "p80_us": t.p80_us} for name, t in times.items()}


def climb(
    sizes: Sequence[Size],
    measure: Callable[[Size], dict[Variant, Times]],
    nbytes: Callable[[Size], float],
    plan: Plan,
) -> tuple[dict[Size, dict[Variant, Times]], dict[str, str]]:
    """Every size's times, and what was left out and why.

    How long a size is expected to take is extrapolated from the two before it, linearly in pixels.
    """
    found: dict[Size, dict[Variant, Times]] = {}
    left_out: dict[str, str] = {}
    took: list[tuple[int, float]] = []
    for i, size in enumerate(sizes):
        begin = time.monotonic()
        reason = plan.refuses(nbytes(size), _expected(took, size.pixels))
        if reason is None:
            try:
                found[size] = measure(size)
            except Unfit as unfit:
                left_out[str(size)] = str(unfit)
                continue
            except torch.cuda.OutOfMemoryError:
                reason = "does not fit into the GPU's memory"
        if reason is not None:
            return found, left_out | {str(larger): reason for larger in sizes[i:]}
        took.append((size.pixels, time.monotonic() - begin))
    return found, left_out


def climb_axes(
    measure: Callable[[Size], dict[Variant, Times]], nbytes: Callable[[Size], float], smallest: int, plan: Plan
) -> dict[str, tuple[dict[Size, dict[Variant, Times]], dict[str, str]]]:
    """``climb`` along each axis. Sides come last: they grow furthest, for as long as there is time."""
    axes = plan.axes(smallest)
    return {
        axis: climb(sizes, measure, nbytes, replace(plan, deadline=share(plan.deadline, len(axes) - i)))
        for i, (axis, sizes) in enumerate(axes.items())
    }


def _expected(took: Sequence[tuple[int, float]], pixels: int) -> float:
    """Seconds, given those of smaller numbers of pixels; parity included."""
    if len(took) < 2:
        return took[0][1] if took else 0.0
    (less, short), (more, long) = took[-2:]
    return long + max(0.0, long - short) * (pixels - more) / (more - less)


def curve(
    about: Mapping[str, Any],
    variant: Variant,
    found: Mapping[Size, Mapping[Variant, Times]],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """A curve as stored in the results file."""
    points = [
        {"batch": size.batch, "side": size.side, "times": times[variant]}
        for size, times in found.items()
        if variant in times
    ]
    return {**about, "threads": variant[0], "ranks": variant[1], "points": points, "left_out": dict(left_out)}
