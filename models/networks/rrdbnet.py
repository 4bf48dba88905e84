"""RRDBNet, the super-resolution generator of ESRGAN and DASR, and the decoders of USR-DA, which share its trunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.data.resize import bicubic
from models.networks.blocks import RRDB, check_scale, conv3x3, zero_init
from srkernels import conv2d_act


class _RRDBTrunk(nn.Module):
    """Dense blocks under one global skip, `doublings` (2 at most) nearest x2 resizes, and the convolutions around them.

    Input (N, in_channels, h, w), output (N, 3, h * 2^doublings, w * 2^doublings), not clamped; keys of BasicSR.
    """

    def __init__(self, in_channels: int, num_feat: int, num_block: int, num_grow_ch: int, doublings: int) -> None:
        super().__init__()
        self.conv_first = conv3x3(in_channels, num_feat)
        self.body = nn.Sequential(*(RRDB(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = conv3x3(num_feat, num_feat)
        self.doublings = doublings
        self._ups = ("conv_up1", "conv_up2")[:doublings]
        for name in self._ups:
            self.add_module(name, conv3x3(num_feat, num_feat))
        self.conv_hr = conv3x3(num_feat, num_feat)
        self.conv_last = conv3x3(num_feat, 3)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_first(x)
        trunk = self.body(shallow)
        features = conv2d_act(trunk, self.conv_body.weight, self.conv_body.bias, activation="none", residual=shallow)
        for name in self._ups:
            features = _leaky(getattr(self, name), _doubled(features))
        return self.conv_last(_leaky(self.conv_hr, features))


class RRDBNet(_RRDBTrunk):
    """ESRGAN's generator for x1, x2 or x4, with the keys of BasicSR's `RRDBNet`.

    Input (N, 3, h, w) in [0, 1], output (N, 3, scale * h, scale * w), not clamped. Published size: 64 features, 23
    blocks, growth 32. With `unshuffle` the trunk always enlarges four times: for x2 and x1 the input's pixels are first
    folded into channels, 2x2 or 4x4 of them, which must divide h and w (Real-ESRGAN). Without, x2 and x1 enlarge once
    or never (ESRGAN's old code, KAIR).

    With `bicubic_skip` the network outputs the difference from bicubic enlargement and its last conv starts at zero,
    so that an untrained network *is* bicubic. The published network has no such skip; its keys are the same.
    """

    def __init__(
        self,
        num_feat: int = 64,
        num_block: int = 23,
        num_grow_ch: int = 32,
        *,
        scale: int = 4,
        unshuffle: bool = True,
        bicubic_skip: bool = False,
    ) -> None:
        check_scale(self, scale)
        self._fold = 4 // scale if unshuffle else 1
        doublings = (scale * self._fold).bit_length() - 1
        super().__init__(3 * self._fold**2, num_feat, num_block, num_grow_ch, doublings)
        self.scale = scale
        self.bicubic_skip = bicubic_skip
        if bicubic_skip:
            zero_init(self.conv_last)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(F.pixel_unshuffle(x, self._fold))
        return out + bicubic(x, self.scale) if self.bicubic_skip else out


class Decoder(_RRDBTrunk):
    """Features to a picture `scale` times their size, 1, 2 or 4: G_SR (scale 4) and G_t (scale 1) of USR-DA.

    Input (N, in_channels, h, w), from an `Encoder` of that width, `num_feat` unless given; output (N, 3, scale * h,
    scale * w), not clamped. The paper leaves sizes open; those of the unofficial code (github.com/anse3832/USR_DA),
    whose keys these are, are 64 features and growth 32, and 23 blocks in G_SR, 10 in G_t.
    """

    def __init__(
        self,
        num_feat: int = 64,
        num_block: int = 23,
        num_grow_ch: int = 32,
        *,
        scale: int = 4,
        in_channels: int | None = None,
    ) -> None:
        check_scale(self, scale)
        super().__init__(in_channels or num_feat, num_feat, num_block, num_grow_ch, doublings=scale // 2)
        self.scale = scale


def _doubled(x: Tensor) -> Tensor:
    """Nearest x2 in the dtype of `x`: autocast on a GPU would first copy it, and later its gradient, to fp32."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return F.interpolate(x, scale_factor=2, mode="nearest")
    with torch.autocast(kind, enabled=False):
        return F.interpolate(x, scale_factor=2, mode="nearest")


def _leaky(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return conv2d_act(x, conv.weight, conv.bias, activation="leaky_relu", slope=0.2)
