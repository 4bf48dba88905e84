"""A training step as one CUDA graph: small crops are bound by launches, of which a replay makes one.

The first updates of each shape run eagerly, then one is captured, and the rest are replays of it: inputs are copied
into the buffers that the capture read, losses out of those that it wrote. A step that cannot be captured says why,
once, and runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.train.players import Batch, Losses

# Eager updates before a capture: they choose algorithms, make workspaces and the optimisers' state.
WARMUP = 3

Run = Callable[[], Losses]


class Capture(Protocol):
    """What records a step; a stand-in for it needs no GPU."""

    def warm(self, run: Run) -> Losses:
        """Runs, as the step will be captured."""

    def record(self, run: Run) -> tuple[Losses, Callable[[], None]]:
        """(tensors that hold the losses behind a replay, replay). What `run` would do is not done."""


class CUDACapture:
    """Records CUDA graphs, which share their memory: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm(self, run: Run) -> Losses:
        outer = torch.cuda.current_stream()
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            losses = run()
        outer.wait_stream(self._stream)
        return losses

    def record(self, run: Run) -> tuple[Losses, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            losses = run()
        return losses, graph.replay


class GraphedStep:
    """A stage's step, captured once for each phase and set of shapes and then replayed; called as the step is."""

    def __init__(
        self,
        step: Callable[[int, Batch], Losses],
        phase: Callable[[int], object],
        capture: Capture,
        say: Callable[[str], None],
    ) -> None:
        """`phase` of an update's number: all updates of one phase do the same. `say` is told why none is captured."""
        self._step, self._phase, self._capture, self._say = step, phase, capture, say
        self._seen: dict[object, int] = {}
        self._graphs: dict[object, tuple[dict[str, Tensor], Losses, Callable[[], None]]] = {}
        self._failed = False

    def __call__(self, done: int, batch: Batch) -> Losses:
        shapes = tuple((name, x.shape, x.stride(), x.dtype) for name, x in sorted(batch.items()))
        key = self._phase(done), shapes
        if key not in self._graphs:
            seen = self._seen[key] = self._seen.get(key, 0) + 1
            if self._failed:
                return self._step(done, batch)
            if seen <= WARMUP:
                return self._capture.warm(lambda: self._step(done, batch))
            inputs = {name: x.clone() for name, x in batch.items()}
            try:
                self._graphs[key] = inputs, *self._capture.record(lambda: self._step(done, inputs))
            except Exception as error:  # whatever a capture raises
                self._failed = True
                first, *_ = str(error).splitlines() or [""]
                self._say(
                    f"a step cannot be captured as a CUDA graph and runs eagerly: {type(error).__name__}: {first}"
                )
                return self._step(done, batch)
        inputs, losses, replay = self._graphs[key]
        for name, x in batch.items():
            inputs[name].copy_(x, non_blocking=True)
        replay()
        return {name: value.clone() for name, value in losses.items()}  # the next replay writes where these are


def why_not(device: torch.device, ranks: int) -> str | None:
    """Why steps are not captured here; None if they can be tried."""
    if device.type != "cuda":
        return f"CUDA graphs need a GPU, training runs on the {device.type.upper()}"
    if torch.version.hip:
        return "capture was not tried on ROCm"
    return "ranks average gradients between two parts of a step" if ranks > 1 else None


def make_capturable(optimizer: Optimizer) -> None:
    """Rates live in tensors, which a replay reads anew, and the number of updates on the device."""
    for group in optimizer.param_groups:
        group["capturable"] = True
        if not isinstance(group["lr"], Tensor):
            group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)
