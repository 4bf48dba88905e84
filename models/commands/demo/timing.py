"""Times of work with the ops on their reference and on the automatic choice, in interleaved pairs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import srkernels

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Medians in milliseconds; `reference` and `automatic` were measured in turn, in the same minute."""

    what: str
    reference: float
    automatic: float

    @property
    def ratio(self) -> float:
        return self.reference / self.automatic


def compare(what: str, work: Work, pairs: int, device: torch.device) -> Timing:
    """Median wall time of `work` under `use_backend("reference")` and under `use_backend(None)`."""
    times: dict[str | None, list[float]] = {"reference": [], None: []}
    for pair in range(-2, pairs):
        # Alternating who goes first keeps a drift of the clock out of the ratio.
        for backend in ("reference", None) if pair % 2 else (None, "reference"):
            with srkernels.use_backend(backend):
                _wait(device)
                start = time.perf_counter()
                work()
                _wait(device)
                elapsed = time.perf_counter() - start
            if pair >= 0:
                times[backend].append(1e3 * elapsed)
    return Timing(what, statistics.median(times["reference"]), statistics.median(times[None]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
