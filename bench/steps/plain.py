"""The methods' networks in plain PyTorch, with our weights: what a training step costs without srkernels.

Written as the field writes them: dense blocks by concatenation, activations in place, resizes of whole maps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks import DSN, Decoder, Encoder, RRDBNet, VGG16Features, VGG19Features, VGGFeatures


def rrdbnet(network: RRDBNet | Decoder, x: Tensor) -> Tensor:
    """ESRGAN's generator, x4, and USR-DA's decoders."""

    def dense(block: nn.Module, x: Tensor) -> Tensor:
        features = [x]
        for conv in (block.conv1, block.conv2, block.conv3, block.conv4):
            features.append(_leaky(conv(torch.cat(features, 1))))
        return block.conv5(torch.cat(features, 1)) * 0.2 + x

    shallow = features = network.conv_first(x)
    for block in network.body:
        inner = features
        for each in (block.rdb1, block.rdb2, block.rdb3):
            inner = dense(each, inner)
        features = inner * 0.2 + features
    features = shallow + network.conv_body(features)
    for name in network._ups:
        features = _leaky(getattr(network, name)(F.interpolate(features, scale_factor=2, mode="nearest")))
    return network.conv_last(_leaky(network.conv_hr(features)))


def encoder(network: Encoder, x: Tensor) -> Tensor:
    """USR-DA's E."""
    *inner, last = network.conv_featmap
    for conv in inner:
        x = _leaky(_convolved(conv, x))
    return _convolved(last, x)


def _convolved(conv: nn.Module, x: Tensor) -> Tensor:
    """Without the activation that our module includes."""
    return F.conv2d(x, conv.weight, conv.bias, padding=1)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2, inplace=True)


def dsn(network: DSN, x: Tensor) -> Tensor:
    """The paper's down-sampling network, x1/4."""
    head, trunk = network.model[0], network.model[1]["sub"]
    *blocks, last = trunk
    shallow = features = head(x)
    for block in blocks:
        conv1, _, conv2 = block.res
        features = features + conv2(F.relu(conv1(features), inplace=True))
    features = shallow + last(features)
    features = F.interpolate(features, scale_factor=1 / network.scale, mode="bilinear", align_corners=False)
    return network.Afterconv(features)


def vgg(network: VGGFeatures, x: Tensor) -> dict[str, Tensor]:
    """Features of the one requested layer, before its ReLU."""
    (layer,) = network.layers
    if network.input_norm:
        x = (x - network.mean) / network.std
    stage = 1
    for key, conv in network.features.items():
        name = network._name_of[key]
        if int(name[0]) != stage:
            stage, x = int(name[0]), F.max_pool2d(x, 2)
        z = conv(x)
        if f"conv{name}" == layer:
            return {layer: z}
        x = F.relu(z, inplace=True)
    raise ValueError(f"plain VGG: no layer {layer}")


class Plain(nn.Module):
    """`forward` with the weights of `network`, which can be trained through it."""

    def __init__(self, network: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self._forward = network, forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self.network, x)


PLAIN: dict[type[nn.Module], Callable[..., Any]] = {
    RRDBNet: rrdbnet,
    DSN: dsn,
    VGG16Features: vgg,
    VGG19Features: vgg,
    Encoder: encoder,
    Decoder: rrdbnet,
}
