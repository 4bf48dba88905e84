"""Losses on their way from the device to the host, for which nothing waits but a report."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.train.players import Losses


class NotFinite(Exception):
    """A loss is not finite; the message names it, its update and the files of its batch."""


@dataclass(frozen=True)
class _Reading:
    """The losses of an update, in host memory once `event` has happened; None if they are there already."""

    step: int
    names: tuple[str, ...]
    values: Tensor
    event: torch.cuda.Event | None
    files: Sequence[str]


class Readings:
    """Reads losses back in the order of their updates, each as soon as it can be had without waiting for the device.

    `rows` are those read and not yet reported.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._due: deque[_Reading] = deque()

    def add(self, step: int, losses: Losses, files: Sequence[str]) -> None:
        """Sends the losses of update `step` on their way. Raises NotFinite for earlier ones or, on a CPU, for these."""
        values, event = _send(torch.stack(list(losses.values())))
        self._due.append(_Reading(step, tuple(losses), values, event, files))
        self._take(wait=False)

    def wait(self) -> None:
        """Waits for the losses of every update so far. Raises NotFinite."""
        self._take(wait=True)

    def _take(self, wait: bool) -> None:
        while self._due and (wait or (event := self._due[0].event) is None or event.query()):
            reading = self._due.popleft()
            if reading.event is not None:
                reading.event.synchronize()
            row = dict(zip(reading.names, reading.values.tolist(), strict=True))
            wrong = [name for name, value in row.items() if not math.isfinite(value)]
            if wrong:
                raise NotFinite(
                    f"the loss {', '.join(wrong)} is not finite at update {reading.step}; "
                    f"files of that batch: {', '.join(reading.files)}"
                )
            self.rows.append(row)


def _send(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The values in host memory, or soon there, and what happens when they are."""
    if not values.is_cuda:
        return values, None
    host = values.to("cpu", non_blocking=True)  # into pinned memory
    event = torch.cuda.Event()
    event.record()
    return host, event
