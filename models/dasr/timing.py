"""Time per training step with the ops on their reference against the automatic choice, in interleaved pairs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import srkernels
from models.dasr.steps import DSNStep, SRNStep
from models.frequency import FrequencyFilter

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


def in_bf16(step: DSNStep | SRNStep, batch: Mapping[str, Tensor]) -> Work:
    """A step under autocast to bf16."""
    cast = replace(step, players=replace(step.players, precision=torch.bfloat16))
    return lambda: cast(batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def dsn_ops(step: DSNStep, batch: Mapping[str, Tensor]) -> Work:
    """The op calls of one `DSNStep`, forward and backward, on tensors of its shapes."""
    return _view_pair(step.players.view, batch["real_lr"])


def srn_ops(step: SRNStep, batch: Mapping[str, Tensor]) -> Work:
    """The op calls of one `SRNStep` but for its convolutions, forward and backward, on tensors of its shapes."""
    view, hr = _view_pair(step.players.view, batch["other_hr"]), batch["hr"]
    sr = torch.rand_like(hr, requires_grad=True)

    def work() -> None:
        view()
        torch.autograd.grad(srkernels.weighted_l1_loss(sr, hr, batch["weight"]), sr)

    return work


def _view_pair(view: FrequencyFilter, real: Tensor) -> Work:
    fake = torch.rand_like(real, requires_grad=True)
    upstream = torch.rand_like(view(real))

    def work() -> None:
        view(real)
        torch.autograd.grad(view(fake), fake, upstream)

    return work
