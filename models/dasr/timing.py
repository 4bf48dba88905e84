"""Time per training step with the ops on their reference against the automatic choice, in interleaved pairs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import srkernels
from models.dasr.steps import haar_bands


@dataclass(frozen=True)
class Timing:
    """Medians in milliseconds; `reference` and `automatic` were measured in turn, in the same minute."""

    what: str
    reference: float
    automatic: float

    @property
    def ratio(self) -> float:
        return self.reference / self.automatic


def compare(what: str, work: Callable[[], object], pairs: int, device: torch.device) -> Timing:
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


def in_bf16(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`work` under autocast to bf16."""

    def cast() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            work()

    return cast


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def dsn_ops(real_lr: Tensor) -> Callable[[], object]:
    """The op calls of one `DSNStep`, forward and backward, on tensors of its shapes."""
    return _haar_pair(real_lr)


def srn_ops(hr: Tensor, distance_map: Tensor, other_hr: Tensor) -> Callable[[], object]:
    """The op calls of one `SRNStep`, forward and backward, on tensors of its shapes."""
    haar = _haar_pair(other_hr)
    sr = torch.rand_like(hr, requires_grad=True)

    def work() -> None:
        haar()
        torch.autograd.grad(srkernels.weighted_l1_loss(sr, hr, distance_map), sr)

    return work


def _haar_pair(real: Tensor) -> Callable[[], object]:
    fake = torch.rand_like(real, requires_grad=True)
    upstream = torch.rand_like(haar_bands(real))

    def work() -> None:
        haar_bands(real)
        torch.autograd.grad(haar_bands(fake), fake, upstream)

    return work
