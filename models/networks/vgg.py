"""VGG-19 up to conv5_4, the network of perceptual losses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import srkernels
from models.networks import frozen

# Channels of a stage and its convolutions; a 2x2 max pooling lies between two stages.
_STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class VGG19Features(nn.Module):
    """Features of torchvision's `vgg19` under its keys, `features.N.weight` and `features.N.bias`; frozen.

    Layers go by the names of the paper: `conv5_4` is the output of the fifth stage's fourth convolution before its
    ReLU (torchvision's `features[:35]`, what ESRGAN and DASR's code compare), `relu5_4` the output of that ReLU.

    Input (N, 3, H, W), RGB in [0, 1], H and W at least 16; output of stage s (N, 64 ... 512, H / 2^(s-1), W / 2^(s-1)).
    With `input_norm` it is normalised by ImageNet's mean and standard deviation first (ESRGAN, DASR; USR-DA does not).

    `save` says what is kept for the backward pass: "activations", or "signs", one bit in place of each (`frozen.py`).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: Iterable[str] = ("conv5_4",), *, input_norm: bool = True) -> None:
        super().__init__()
        self.layers = tuple(dict.fromkeys(layers))
        self.input_norm = input_norm
        self.save = "activations"
        self.features = nn.ModuleDict()
        self._name_of: dict[str, str] = {}  # key of each convolution to its stage and number, "5_4"
        at, channels = 0, 3
        for stage, (out_channels, convolutions) in enumerate(_STAGES, 1):
            for number in range(1, convolutions + 1):
                key = str(at)
                self.features[key] = nn.Conv2d(channels, out_channels, 3, padding=1)
                self._name_of[key] = f"{stage}_{number}"
                at, channels = at + 2, out_channels
            at += 1
        known = [kind + name for name in self._name_of.values() for kind in ("conv", "relu")]
        unknown = [name for name in self.layers if name not in known]
        if unknown or not self.layers:
            some = f"{known[0]}, {known[1]} ... {known[-1]}"
            raise ValueError(f"VGG19Features: layers must be some of {some}, got {self.layers}")
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def load_torchvision(self, state: Mapping[str, Tensor]) -> None:
        """Loads a state dict of torchvision's `vgg19`, whole or its features alone.

        Raises RuntimeError naming the keys that are missing, unknown or of another shape.
        """
        self.load_state_dict({key: value for key, value in state.items() if not key.startswith("classifier.")})

    def train(self, mode: bool = True) -> VGG19Features:
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


def keep_signs(network: nn.Module) -> None:
    """Makes every VGG-19 in the network keep signs in place of activations for the backward pass."""
    for module in network.modules():
        if isinstance(module, VGG19Features):
            module.save = "signs"
