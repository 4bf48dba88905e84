"""How the learning rate falls, whatever the method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.optim import Optimizer

from models.data import InputError


@dataclass(frozen=True)
class ScheduleConfig:
    """How long training takes, and how its learning rate falls."""

    steps: int
    """Updates with all losses."""
    falls: Literal["halve_every", "halve_at", "linear_from"]
    """Halved every `at[0]` updates, halved at each of `at`, or linear from update `at[0]` to zero at the end."""
    at: tuple[int, ...]
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

    def check(self, option: str) -> None:
        """Raises InputError naming what cannot be used; `option` names the schedule."""
        if self.steps < 1:
            raise InputError(f"{option}.steps must be at least 1, got {self.steps}")
        if not self.at or min(self.at) < 1:
            raise InputError(f"{option}.at must be positive numbers of updates, got {self.at}")


class Rates:
    """Learning rates as a function of an update's number alone, whatever was trained or loaded before."""

    def __init__(self, optimizers: Iterable[Optimizer], factor: Callable[[int], float]) -> None:
        self._optimizers, self._factor = list(optimizers), factor
        rates = [[group["lr"] for group in each.param_groups] for each in self._optimizers]
        self._initial = [[x.clone() if isinstance(x, torch.Tensor) else x for x in groups] for groups in rates]

    def at(self, done: int) -> float:
        """The first optimiser's rate for the update that follows `done` others."""
        return float(self._initial[0][0]) * self._factor(done)

    def set(self, done: int) -> None:
        """Sets the rates for the update that follows `done` others; those that are tensors, in place."""
        for optimizer, initial in zip(self._optimizers, self._initial, strict=True):
            for group, first in zip(optimizer.param_groups, initial, strict=True):
                rate = float(first) * self._factor(done)
                if not isinstance(first, torch.Tensor):
                    group["lr"] = rate
                elif isinstance(group["lr"], torch.Tensor) and group["lr"].device == first.device:
                    group["lr"].fill_(rate)
                else:  # what a checkpoint held
                    group["lr"] = torch.full_like(first, rate)
