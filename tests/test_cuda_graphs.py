"""The recipe of docs/cuda_graphs.md on a plain GAN loop, with a stand-in for what captures and replays."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam

import srkernels
from models.networks import PatchDiscriminator, RRDBNet

PAGE = (Path(__file__).parents[1] / "docs" / "cuda_graphs.md").read_text()
Batch = dict[str, Tensor]


class Loop:
    """Generator, discriminator, their optimisers and a step of both, as in anybody's code."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.g, self.d = RRDBNet(8, 1, 8, scale=4), PatchDiscriminator(9, 8)
        self.optimizers = [Adam(net.parameters(), lr=1e-3) for net in (self.g, self.d)]
        srkernels.patch(self.g)

    def step(self, batch: Batch) -> Batch:
        sr = self.g(batch["lr"])
        fake, real = self.d(srkernels.haar_highpass(sr)), self.d(srkernels.haar_highpass(batch["hr"]))
        pixel = srkernels.weighted_l1_loss(sr, batch["hr"], batch["map"])
        loss_g = pixel + 0.01 * F.softplus(-fake).mean()
        loss_d = F.softplus(-real).mean() + F.softplus(fake).mean()
        for net, loss, optimizer in zip((self.g, self.d), (loss_g, loss_d), self.optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            parameters = list(net.parameters())
            for p, grad in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
                p.grad = grad
        for optimizer in self.optimizers:
            optimizer.step()
        return {"pixel": pixel.detach(), "d": loss_d.detach()}

    def weights(self) -> list[Tensor]:
        return [p.detach() for net in (self.g, self.d) for p in net.parameters()]


class StandIn:
    """Of a capture, which runs nothing but knows what it was given, and of replays, which run it again."""

    def __init__(self, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop, self.capturing, self.replays = loop, False, 0
        stream = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda which: self._nothing())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self._replay))
        monkeypatch.setattr(torch.cuda, "graph", lambda graph: self._capture())

    def step(self, batch: Batch) -> Batch:
        if not self.capturing:
            return self.loop.step(batch)
        self.inputs, self.outputs = batch, {"pixel": torch.zeros(()), "d": torch.zeros(())}
        return self.outputs

    @contextmanager
    def _nothing(self) -> Any:
        yield

    @contextmanager
    def _capture(self) -> Any:
        self.capturing = True
        yield
        self.capturing = False

    def _replay(self) -> None:
        self.replays += 1
        for name, value in self.loop.step(self.inputs).items():
            self.outputs[name].copy_(value)


def test_the_recipe_gives_the_eager_loops_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"torch": torch}
    exec(recipe, names)
    draw = torch.Generator().manual_seed(1)
    batches = [
        {name: torch.rand(shape, generator=draw) for name, shape in
         {"lr": (2, 3, 8, 8), "hr": (2, 3, 32, 32), "map": (2, 1, 8, 8)}.items()}
        for _ in range(3)
    ]  # fmt: skip
    eager, graphed = Loop(), StandIn(Loop(), monkeypatch)
    expected = [eager.step(batch) for batch in [batches[0]] * 3 + batches][3:]

    update = names["graphed"](graphed.step, batches[0])
    for batch, losses in zip(batches, expected, strict=True):
        found = update(batch)
        assert all(torch.equal(found[name], losses[name]) for name in losses)
    assert graphed.replays == 3
    assert all(map(torch.equal, graphed.loop.weights(), eager.weights()))
    assert graphed.inputs["lr"] is not batches[0]["lr"], "the graph reads buffers of its own"
