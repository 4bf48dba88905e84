"""``patch`` on random networks, before and after random edits: it still computes what its modules define."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.patching import assert_same_calls, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm

from srkernels import patch, unpatch, use_backend
from srkernels._dispatch import why_not

CHANNELS = 4
NETWORKS = 60

pytestmark = pytest.mark.usefixtures("one_thread")


class Doubling(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Named(nn.Sequential):
    """Keeps ``nn.Sequential``'s forward."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.note = "convolution"
        self.table = torch.ones(3)


class Scaled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def convolution(rng: random.Random, channels_in: int = CHANNELS, channels_out: int = CHANNELS) -> nn.Module:
    unusual: list[dict[str, Any]] = [
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 5, "padding": 2},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"padding_mode": "circular"},
        {"padding": "same"},
        {"bias": False},
    ]
    settings = {"kernel_size": 3, "padding": 1, **(rng.choice(unusual) if rng.random() < 0.25 else {})}
    if channels_in % 2 or channels_out % 2:
        settings.pop("groups", None)
    conv = nn.Conv2d(channels_in, channels_out, **settings)
    fate = rng.random()
    if fate < 0.05:
        return spectral_norm(conv)
    if fate < 0.1:
        return parametrizations.spectral_norm(conv)
    return Doubling(channels_in, channels_out, 3, padding=1) if fate < 0.13 else conv


def activation(rng: random.Random) -> nn.Module:
    usual: list[Callable[[], nn.Module]] = [
        lambda: nn.ReLU(rng.random() < 0.5),
        lambda: nn.LeakyReLU(rng.choice((0.2, 0.01)), rng.random() < 0.5),
        lambda: nn.PReLU(rng.choice((1, CHANNELS))),
    ]
    unusual: list[Callable[[], nn.Module]] = [
        nn.GELU,
        lambda: nn.SiLU(inplace=True),
        lambda: nn.ELU(inplace=True),
        lambda: nn.LeakyReLU(-0.1),
        nn.Identity,
    ]
    return rng.choice(usual if rng.random() < 0.8 else unusual)()


class Residual(nn.Module):
    """The layers of a residual block, in one of many formulas."""

    RARE = ("minus", "scaled twice", "relu after", "no skip", "dropout", "random", "keeps", "gated", "first in place")
    FORMULAS = ("plain",) * 5 + ("in place",) * 3 + RARE + ("counts",)

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.formula = rng.choice(self.FORMULAS)
        self.res_scale = rng.choice((1, 0.1, 0.5))
        self.fixed_scale = rng.random() < 0.2
        layers = [convolution(rng), activation(rng), convolution(rng)]
        if rng.random() < 0.1:
            layers.insert(1, nn.BatchNorm2d(CHANNELS))
        if rng.random() < 0.5:
            self.body = nn.Sequential(*layers)
        else:
            for i, layer in enumerate(layers):
                self.add_module(f"layer{i}", layer)
        if self.formula == "gated":
            self.register_buffer("gate", torch.ones(()))
        self.calls = 0

    def branch(self, x: Tensor) -> Tensor:
        layers = self.body if hasattr(self, "body") else self.children()
        for layer in layers:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        formula, scale = self.formula, 0.5 if self.fixed_scale else self.res_scale
        if formula == "first in place":
            x = x.mul_(1.5)
        if formula == "random" and self.training and torch.rand(()) > 0.9:
            return x
        y = self.branch(x)
        if formula == "keeps":
            self.kept = y.detach()
        if formula == "counts":
            self.calls += 1
            return x + y * (scale if self.calls % 2 else 1)
        if formula == "dropout":
            y = F.dropout(y, 0.5, self.training)
        if formula == "gated":
            y = y * self.gate
        if formula == "in place":
            y = y.mul(scale)
            y += x
            return y
        if formula == "minus":
            return x - y * scale
        if formula == "no skip":
            return y * scale
        if formula == "relu after":
            return F.relu(x + y * scale)
        return x + y * scale * (scale if formula == "scaled twice" else 1)


class Dense(nn.Module):
    """The layers of a dense block, in one of several formulas."""

    FORMULAS = ("plain",) * 4 + ("in place", "minus", "other scale", "other order", "activated", "other slope")

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.formula = rng.choice(self.FORMULAS)
        for k in range(5):
            conv = nn.Conv2d(CHANNELS + 2 * k, CHANNELS if k == 4 else 2, 3, padding=1)
            self.add_module(f"conv{k + 1}", conv)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for k in range(1, 5):
            seen = found[::-1] if self.formula == "other order" else found
            y = getattr(self, f"conv{k}")(torch.cat(seen, 1))
            found.append(F.leaky_relu(y, 0.1) if self.formula == "other slope" and k == 2 else self.lrelu(y))
        y = self.conv5(torch.cat(found, 1))
        if self.formula == "in place":
            return y.mul_(0.2).add_(x)
        if self.formula == "activated":
            return x + self.lrelu(y) * 0.2
        scale = 0.1 if self.formula == "other scale" else 0.2
        return x - y * scale if self.formula == "minus" else y * scale + x


def layers(rng: random.Random, depth: int) -> list[nn.Module]:
    found: list[nn.Module] = []
    for _ in range(rng.randrange(1, 7)):
        fate = rng.random()
        if fate < 0.4:
            found += [convolution(rng), activation(rng)]
        elif fate < 0.5:
            found.append(rng.choice((convolution, activation))(rng))
        elif fate < 0.6 and found:
            found += found[-rng.randrange(1, 3) :]  # the same objects
        elif fate < 0.7:
            norm = rng.choice((nn.BatchNorm2d, nn.InstanceNorm2d, lambda c: nn.GroupNorm(2, c)))
            found.append(norm(CHANNELS))
        elif fate < 0.75:
            found.append(rng.choice((nn.Dropout(0.5), nn.Dropout2d(0.5, inplace=True), nn.AvgPool2d(3, 1, 1))))
        elif fate < 0.9 or not depth:
            found.append(rng.choice((Residual, Residual, Dense))(rng))
        else:
            container = rng.choice((nn.Sequential, nn.Sequential, Named, Scaled))
            found.append(container(*layers(rng, depth - 1)))
    return found


def edit(net: nn.Module, rng: random.Random) -> None:
    """One thing that people do to a network between two calls."""
    owners = [m for m in net.modules() if m._modules and not isinstance(m, nn.modules.container.ModuleList)]
    owner = rng.choice(owners)
    name = rng.choice(list(owner._modules))
    layer = owner._modules[name]
    fate = rng.randrange(10)
    if fate == 0:
        new = (
            convolution(rng, layer.in_channels, layer.out_channels) if isinstance(layer, nn.Conv2d) else activation(rng)
        )
        setattr(owner, name, new)
    elif fate == 1 and isinstance(owner, nn.Sequential):
        owner.append(activation(rng))
    elif fate == 2 and isinstance(owner, nn.Sequential):
        owner.insert(rng.randrange(len(owner) + 1), activation(rng))
    elif fate == 3 and isinstance(owner, nn.Sequential) and len(owner) > 1:
        del owner[rng.randrange(len(owner))]
    elif fate == 4:
        layer.register_forward_hook(lambda module, args, out: out * 1.5)
    elif fate == 5:
        old = layer.forward
        layer.forward = lambda x: old(x) * 0.5
    elif fate == 6 and isinstance(layer, nn.Conv2d) and "weight" in layer._parameters:
        parametrizations.weight_norm(layer)
    else:
        for module in net.modules():
            if isinstance(module, nn.LeakyReLU):
                module.negative_slope = 0.3
            if isinstance(module, nn.ReLU):
                module.inplace = not module.inplace
            if isinstance(module, Residual):
                module.res_scale = rng.choice((2, 0.3, module.res_scale))
                module.formula = rng.choice((module.formula, "minus"))


def compare(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    original = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), *layers(rng, 2)).double()
    patched = copy.deepcopy(original)
    report = patch(patched)
    x = torch.rand(2, 3, 8, 9, dtype=torch.float64)
    native = seed % 2 and why_not("native", x.device, x.dtype) is None
    try:
        with use_backend("native" if native else None):
            _edit_and_compare(original, patched, x, rng)
    except AssertionError as error:
        raise AssertionError(f"network {seed}: {error}\n{original}\n{report}") from None


def _edit_and_compare(original: nn.Module, patched: nn.Module, x: Tensor, rng: random.Random) -> None:
    assert_same_calls(original, patched, x)
    for _ in range(2):
        state = rng.getstate()
        for net in (original, patched):
            rng.setstate(state)
            torch.manual_seed(0)
            edit(net, rng)
        assert_same_calls(original, patched, x)
    unpatch(patched)
    assert_same_calls(original, patched, x)


@pytest.mark.thorough
@pytest.mark.parametrize("first", range(0, NETWORKS, 10))
def test_random_networks(first: int) -> None:
    for seed in range(first, first + 10):
        compare(seed)
