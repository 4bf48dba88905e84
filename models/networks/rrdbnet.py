"""RRDBNet, the super-resolution generator of ESRGAN and DASR."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.blocks import RRDB, check_scale, conv3x3, zero_init
from models.resize import bicubic
from srkernels import conv2d_act


class RRDBNet(nn.Module):
    """ESRGAN's generator for x1, x2 or x4, with the keys of BasicSR's `RRDBNet`.

    Input (N, 3, h, w) in [0, 1], output (N, 3, scale * h, scale * w), not clamped. Published size: 64 features, 23
    blocks, growth 32. The trunk always enlarges four times: for x2 and x1 the input's pixels are first folded into
    channels, 2x2 or 4x4 of them, which must divide h and w (Real-ESRGAN).

    With `bicubic_skip` the network gives the difference to the bicubic enlargement and its last conv starts at zero,
    so that an untrained network *is* bicubic. The published network has no such skip; its keys are the same.
    """

    def __init__(
        self,
        num_feat: int = 64,
        num_block: int = 23,
        num_grow_ch: int = 32,
        *,
        scale: int = 4,
        bicubic_skip: bool = False,
    ) -> None:
        super().__init__()
        check_scale(self, scale)
        self.scale = scale
        self.bicubic_skip = bicubic_skip
        self.conv_first = conv3x3(3 * (4 // scale) ** 2, num_feat)
        self.body = nn.Sequential(*(RRDB(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = conv3x3(num_feat, num_feat)
        self.conv_up1 = conv3x3(num_feat, num_feat)
        self.conv_up2 = conv3x3(num_feat, num_feat)
        self.conv_hr = conv3x3(num_feat, num_feat)
        self.conv_last = conv3x3(num_feat, 3)
        if bicubic_skip:
            zero_init(self.conv_last)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_first(F.pixel_unshuffle(x, 4 // self.scale))
        trunk = self.body(shallow)
        features = conv2d_act(trunk, self.conv_body.weight, self.conv_body.bias, activation="none", residual=shallow)
        for conv in (self.conv_up1, self.conv_up2):
            features = _leaky(conv, F.interpolate(features, scale_factor=2, mode="nearest"))
        out = self.conv_last(_leaky(self.conv_hr, features))
        return out + bicubic(x, self.scale) if self.bicubic_skip else out


def _leaky(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return conv2d_act(x, conv.weight, conv.bias, activation="leaky_relu", slope=0.2)
