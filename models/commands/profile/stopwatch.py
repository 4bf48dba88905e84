"""The time of the parts of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WAIT, TRANSFER, REST = "waiting for data", "transfer to the device", "content loss and the rest"
END = "end"


class Stopwatch:
    """Time of the parts of a step; each part lasts until the next begins, so nothing is left out.

    On a GPU the times come from events on its stream: nothing waits for them, and time that the GPU spends waiting for
    the host or for data counts towards the part in which it waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def part(self, name: str) -> None:
        """What follows belongs to this part. `WAIT` begins a step."""
        now: float | torch.cuda.Event = time.perf_counter()
        if self._device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._marks.append((name, now))

    def steps(self) -> list[dict[str, float]]:
        """Milliseconds of every step by part, in the order in which the parts began."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        steps: list[dict[str, float]] = []
        for (name, start), (_, end) in pairwise(self._marks):
            if name == WAIT:
                steps.append({})
            elapsed = 1e3 * (end - start) if isinstance(start, float) else start.elapsed_time(end)
            steps[-1][name] = steps[-1].get(name, 0.0) + elapsed
        return steps


class Timed(nn.Module):
    """`work` (a module or a function), its calls timed as the part `forward`, and what they cost in a backward pass
    as `backward`. What runs between two timed calls belongs to `REST`.
    """

    def __init__(self, watch: Stopwatch, work: Callable[..., Any], forward: str, backward: str = "") -> None:
        super().__init__()
        self._watch, self._work, self._forward, self._backward = watch, work, forward, backward

    def forward(self, *inputs: Any) -> Any:
        # A separate view: the gradient of a tensor with other users is complete only after their backward pass.
        inputs = tuple(self._until(each.view_as(each)) if _differentiable(each) else each for each in inputs)
        self._watch.part(self._forward)
        output = self._work(*inputs)
        self._watch.part(REST)
        if _differentiable(output):
            output.register_hook(lambda gradient: self._watch.part(self._backward))
        return output

    def _until(self, given: Tensor) -> Tensor:
        given.register_hook(lambda gradient: self._watch.part(REST))
        return given


def _differentiable(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def timed_both_ways(watch: Stopwatch, work: Callable[..., Any], name: str) -> Timed:
    return Timed(watch, work, f"{name}, forward", f"{name}, backward")


def timed_optimizer(watch: Stopwatch, optimizer: Optimizer) -> SimpleNamespace:
    """The part of an optimiser's interface that a step calls, timed."""
    return SimpleNamespace(zero_grad=optimizer.zero_grad, step=Timed(watch, optimizer.step, "optimisers"))


def timed_update(watch: Stopwatch, step: Any) -> Callable[[Mapping[str, Tensor]], object]:
    """The update of a step whose parts are timed."""
    players = step.players

    def marked(loss_g: Tensor, *others: Any) -> tuple[Any, ...]:
        # D's backward pass, for its own loss, is followed by the generator's, which begins with a sum.
        loss_g.register_hook(lambda gradient: watch.part(REST))
        return loss_g, *others

    def update(forward: Callable[[], Any]) -> object:
        return players.update(lambda: marked(*forward()))

    def update_in_turn(make: Callable[[], Any], judge_d: Callable[..., Any], judge_g: Callable[..., Any]) -> object:
        return players.update_in_turn(make, judge_d, lambda made: marked(*judge_g(made)))

    return replace(step, players=SimpleNamespace(**vars(players), update=update, update_in_turn=update_in_turn))
