"""VGG-16 and VGG-19 up to their last convolution, the networks of perceptual losses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import srkernels
from models.networks import frozen

_CHANNELS = (64, 128, 256, 512, 512)  # of a stage; a 2x2 max pooling lies between two
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# What weights were trained on: ImageNet's classes or, from there, edges (`networks/hed.py`).
ORIGINS = ("ImageNet", "HED")


class VGGConvolution(NamedTuple):
    """A 3x3 convolution: its index in torchvision's `features`, stage and number, channels in and out."""

    key: str
    stage: int
    number: int
    in_channels: int
    out_channels: int


def vgg_convolutions(stages: Sequence[int]) -> Iterator[VGGConvolution]:
    """The convolutions of a VGG that has so many in each stage."""
    at, channels = 0, 3
    for stage, (count, out_channels) in enumerate(zip(stages, _CHANNELS, strict=True), 1):
        for number in range(1, count + 1):
            yield VGGConvolution(str(at), stage, number, channels, out_channels)
            at, channels = at + 2, out_channels
        at += 1


class VGGFeatures(nn.Module):
    """Features of torchvision's `vgg16` or `vgg19` under its keys, `features.N.weight` and `features.N.bias`; frozen.

    Layers go by the names of the paper: `conv5_4` is the output of the fifth stage's fourth convolution before its
    ReLU (of VGG-19 torchvision's `features[:35]`, what ESRGAN and DASR's code compare), `relu5_4` the output of that
    ReLU.

    Input (N, 3, H, W), RGB in [0, 1], H and W at least 16; output of stage s (N, 64 ... 512, H / 2^(s-1), W / 2^(s-1)).
    With `input_norm` it is normalised by ImageNet's mean and standard deviation first (ESRGAN, DASR; USR-DA does not).

    `save` says what is kept for the backward pass: "activations", or "signs", one bit in place of each (`frozen.py`).
    `origin`, one of `ORIGINS`, says what the weights were trained on.
    """

    STAGES: ClassVar[tuple[int, ...]]  # convolutions of each stage
    mean: Tensor
    std: Tensor

    def __init__(self, layers: Iterable[str] | None = None, *, input_norm: bool = True) -> None:
        super().__init__()
        self.input_norm = input_norm
        self.save, self.origin = "activations", ORIGINS[0]
        self.features = nn.ModuleDict()
        self._name_of: dict[str, str] = {}  # key of each convolution to its stage and number, "5_4"
        for each in vgg_convolutions(self.STAGES):
            self.features[each.key] = nn.Conv2d(each.in_channels, each.out_channels, 3, padding=1)
            self._name_of[each.key] = f"{each.stage}_{each.number}"
        self.choose((f"conv5_{self.STAGES[-1]}",) if layers is None else layers)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def choose(self, layers: Iterable[str]) -> None:
        """Makes these the layers that are returned. Raises ValueError if there are none, or one is not known."""
        layers = tuple(dict.fromkeys(layers))
        known = [kind + name for name in self._name_of.values() for kind in ("conv", "relu")]
        if not layers or not set(layers) <= set(known):
            some = f"{known[0]}, {known[1]} ... {known[-1]}"
            raise ValueError(f"{type(self).__name__}: layers must be some of {some}, got {layers}")
        self.layers = layers

    def train(self, mode: bool = True) -> VGGFeatures:
        """Stays in eval mode, as a frozen part of a loss should."""
        return super().train(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The layers asked for, by name; nothing deeper than they are is computed."""
        if self.input_norm:
            x = (x - self.mean) / self.std
        found = dict(itertools.islice(self._walk(x), len(self.layers)))
        return {name: found[name] for name in self.layers}

    def _walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The layers asked for, shallow ones first, each computed only when it is reached."""
        for key, conv in self.features.items():
            name = self._name_of[key]
            if name.endswith("_1") and name != "1_1":
                x = frozen.max_pool2d(x, 2, 2) if self.save == "signs" else F.max_pool2d(x, 2)
            before, after = "conv" + name, "relu" + name
            if self.save == "signs":
                x = frozen.convolution(x, conv.weight, conv.bias)
                if before in self.layers:
                    yield before, x
                x = frozen.relu(x, inplace=before not in self.layers)
            elif before in self.layers:
                z = srkernels.conv2d_act(x, conv.weight, conv.bias, activation="none")
                yield before, z
                x = F.relu(z)
            else:
                x = srkernels.conv2d_act(x, conv.weight, conv.bias)
            if after in self.layers:
                yield after, x


class VGG16Features(VGGFeatures):
    """VGG-16 up to conv5_3."""

    STAGES = (2, 2, 3, 3, 3)


class VGG19Features(VGGFeatures):
    """VGG-19 up to conv5_4."""

    STAGES = (2, 2, 4, 4, 4)


# By the name that options have for them.
VGG: dict[str, type[VGGFeatures]] = {"vgg16": VGG16Features, "vgg19": VGG19Features}


def keep_signs(network: nn.Module) -> None:
    """Makes every VGG in the network keep signs in place of activations for the backward pass."""
    for module in network.modules():
        if isinstance(module, VGGFeatures):
            module.save = "signs"
