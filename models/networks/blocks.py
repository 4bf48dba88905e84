"""Residual and dense blocks shared by the generators."""

from __future__ import annotations

from torch import Tensor, nn

import srkernels


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


def zero_bias(conv: nn.Conv2d) -> None:
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class ResidualBlock(srkernels.nn.ResidualBlock):
    """`x + conv2(prelu(conv1(x)))`, one PReLU slope for all channels, no norm (the block of DASR's De_resnet).

    Input and output are (N, num_feat, H, W).
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__(num_feat, activation="prelu")


class ResidualDenseBlock(srkernels.nn.ResidualDenseBlock):
    """Five densely connected convs, LeakyReLU 0.2 after the first four, `x + 0.2 * conv5` (ESRGAN).

    Input and output are (N, num_feat, H, W).
    """

    def __init__(self, num_feat: int, num_grow_ch: int) -> None:
        super().__init__(num_feat, num_grow_ch)
        # Small weights keep a deep stack of these close to the identity at the start (ESRGAN, section 3.1).
        for conv in self.children():
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data.mul_(0.1)
            zero_bias(conv)


class RRDB(nn.Module):
    """Residual in residual dense block, `x + 0.2 * rdb3(rdb2(rdb1(x)))` (ESRGAN); (N, num_feat, H, W) in and out."""

    def __init__(self, num_feat: int, num_grow_ch: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb2 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb3 = ResidualDenseBlock(num_feat, num_grow_ch)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))
