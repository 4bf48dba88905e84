"""How the learning rate falls, whatever the method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.optim import Optimizer

from models.config import Updates


@dataclass(frozen=True)
class ScheduleConfig:
    """How long training takes, and how its learning rate falls."""

    steps: Updates
    """Updates with all losses."""
    falls: Literal["halve_every", "halve_at", "linear_from"]
    """Halved every `at[0]` updates, halved at each of `at`, or linear from update `at[0]` to zero at the end."""
    at: tuple[Updates, ...]
    """Numbers of updates."""

    @property
    def updates(self) -> int:
        """Updates in all."""
        return self.steps

    def factor(self, done: int) -> float:
        """The learning rate's factor for the update that follows `done` others."""
        if self.falls == "halve_every":
            return 0.5 ** (done // self.at[0])
        if self.falls == "halve_at":
            return 0.5 ** sum(done >= each for each in self.at)
        return min(1.0, (self.steps - done) / max(1, self.steps - self.at[0]))


class Rates:
    """Learning rates as a function of an update's number alone, whatever was trained or loaded before."""

    def __init__(self, optimizers: Iterable[Optimizer], factor: Callable[[int], float]) -> None:
        self._optimizers, self._factor = list(optimizers), factor
        # Read once: a rate that lives on a GPU would have to be waited for at every update.
        groups = [group for each in self._optimizers for group in each.param_groups]
        self._initial = [float(group["lr"]) for group in groups]
        self._devices = [x.device if isinstance(x := group["lr"], torch.Tensor) else None for group in groups]

    def at(self, done: int) -> float:
        """The first optimiser's rate for the update that follows `done` others."""
        return self._initial[0] * self._factor(done)

    def set(self, done: int) -> None:
        """Sets the rates for the update that follows `done` others; those that are tensors, in place."""
        groups = [group for each in self._optimizers for group in each.param_groups]  # loading a state replaces them
        for group, initial, device in zip(groups, self._initial, self._devices, strict=True):
            rate = initial * self._factor(done)
            if device is None:
                group["lr"] = rate
            elif isinstance(group["lr"], torch.Tensor) and group["lr"].device == device:
                group["lr"].fill_(rate)
            else:  # what a checkpoint held
                group["lr"] = torch.tensor(rate, device=device)
