"""Other people's networks, compiled: patched first, or as they are. Patching must not cost what a compiler gives.

A step is a forward and backward pass with every gradient, of a few blocks as the field writes them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import srkernels

from ..timing import Call
from .form import StepBench

_CHANNELS = 64
_CROP = 48


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


class _EDSRBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.res_scale = 0.1
        self.conv1, self.relu, self.conv2 = _conv(_CHANNELS, _CHANNELS), nn.ReLU(True), _conv(_CHANNELS, _CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x))) * self.res_scale


class _DenseBlock(nn.Module):
    def __init__(self, growth: int = 32) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (_conv(_CHANNELS + k * growth, growth) for k in range(4))
        self.conv5 = _conv(_CHANNELS + 4 * growth, _CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x1 = F.leaky_relu(self.conv1(x), 0.2)
        x2 = F.leaky_relu(self.conv2(torch.cat((x, x1), 1)), 0.2)
        x3 = F.leaky_relu(self.conv3(torch.cat((x, x1, x2), 1)), 0.2)
        x4 = F.leaky_relu(self.conv4(torch.cat((x, x1, x2, x3), 1)), 0.2)
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x


def _srvgg(pairs: int) -> nn.Sequential:
    layers = [layer for _ in range(pairs) for layer in (_conv(_CHANNELS, _CHANNELS), nn.PReLU(_CHANNELS))]
    return nn.Sequential(*layers)


_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "EDSR": lambda: nn.Sequential(*(_EDSRBlock() for _ in range(4))),
    "RRDBNet": lambda: nn.Sequential(*(_DenseBlock() for _ in range(3))),
    "SRVGGNetCompact": lambda: _srvgg(4),
}


def _forms(make: Callable[[], nn.Module], device: torch.device, batch: int) -> dict[str, Call]:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return make().to(device, memory_format=torch.channels_last)

    patched, again = network(), network()
    for each in (patched, again):
        if not srkernels.patch(each).taken:
            raise AssertionError("patch takes no block of this network")
    torch.manual_seed(1)
    x = torch.rand(batch, _CHANNELS, _CROP, _CROP, device=device).contiguous(memory_format=torch.channels_last)

    def step(module: Callable[[Tensor], Tensor], parameters: list[nn.Parameter]) -> Call:
        def call() -> dict[str, Tensor]:
            leaf = x.detach().requires_grad_()
            loss = module(leaf).square().mean()
            torch.autograd.grad(loss, [leaf, *parameters])
            return {"loss": loss.detach()}

        return call

    torch._dynamo.reset()
    eager, plain = network(), network()
    forms = {
        "eager": (eager, eager),
        "patched": (patched, patched),
        "compile": (torch.compile(plain), plain),
        "ours": (torch.compile(again), again),
    }
    return {name: step(module, list(owner.parameters())) for name, (module, owner) in forms.items()}


def configurations() -> dict[str, StepBench]:
    """For each network eager and compiled, as it is and patched; ours is patched and compiled."""
    return {
        f"{name}, patched and compiled": StepBench(
            make=lambda device, batch, make=make: _forms(make, device, batch),
            batch={"cpu": 2, "cuda": 16},
            plain=("eager", "compile"),
            targets={"compile": 0.95},
        )
        for name, make in _NETWORKS.items()
    }
