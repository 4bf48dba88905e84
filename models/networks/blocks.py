"""Residual and dense blocks shared by the generators, and the initial weights of convolutions."""

from __future__ import annotations

from torch import Tensor, nn

import srkernels


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


def kaiming_init(network: nn.Module, scale: float = 1.0) -> None:
    """Every convolution normal with Kaiming's fan-in deviation times `scale`, every bias 0.

    A `scale` of 0.1 keeps a deep stack of residual blocks close to the identity at the start (ESRGAN, section 3.1).
    """
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data.mul_(scale)
            _zero_bias(conv)


def zero_init(conv: nn.Conv2d) -> None:
    """Makes the output 0, for the last layer of a residual branch."""
    nn.init.zeros_(conv.weight)
    _zero_bias(conv)


def _zero_bias(conv: nn.Conv2d) -> None:
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def check_scale(network: nn.Module, scale: int) -> None:
    """Raises ValueError unless the factor between HR and LR sizes is 1, 2 or 4."""
    if scale not in (1, 2, 4):
        raise ValueError(f"{type(network).__name__}: scale must be 1, 2 or 4, got {scale}")


class ResidualBlock(srkernels.nn.ResidualBlock):
    """`x + conv2(prelu(conv1(x)))`, one PReLU slope for all channels, no norm (the block of DASR's De_resnet).

    Input and output are (N, num_feat, H, W).
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__(num_feat, activation="prelu")


class ReLUResidualBlock(nn.Module):
    """`x + res.2(relu(res.0(x)))`, no norm, under the keys of ESRGAN's `ResNetBlock`.

    Input and output are (N, num_feat, H, W).
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.res = nn.Sequential(conv3x3(num_feat, num_feat), nn.ReLU(), conv3x3(num_feat, num_feat))
        self.save = "activations"

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.res[0], self.res[2]
        return srkernels.residual_block(x, first.weight, first.bias, second.weight, second.bias, save=self.save)


class ResidualDenseBlock(srkernels.nn.ResidualDenseBlock):
    """Five densely connected convs, LeakyReLU 0.2 after the first four, `x + 0.2 * conv5` (ESRGAN).

    Input and output are (N, num_feat, H, W).
    """

    def __init__(self, num_feat: int, num_grow_ch: int) -> None:
        super().__init__(num_feat, num_grow_ch)
        kaiming_init(self, 0.1)


class RRDB(nn.Module):
    """Residual in residual dense block, `x + 0.2 * rdb3(rdb2(rdb1(x)))` (ESRGAN); (N, num_feat, H, W) in and out."""

    def __init__(self, num_feat: int, num_grow_ch: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb2 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb3 = ResidualDenseBlock(num_feat, num_grow_ch)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


def recompute_blocks(network: nn.Module) -> None:
    """Makes every residual and dense block save only its input for the backward pass and recompute the rest."""
    for module in network.modules():
        if isinstance(module, (ResidualBlock, ReLUResidualBlock, ResidualDenseBlock)):
            module.save = "recompute"
