"""RRDBNet, the super-resolution generator of ESRGAN and DASR."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.blocks import RRDB, conv3x3, zero_bias
from models.resize import bicubic


class RRDBNet(nn.Module):
    """ESRGAN's generator for x4, with the keys of BasicSR's `RRDBNet`.

    Input (N, 3, h, w) in [0, 1], output (N, 3, 4h, 4w), not clamped. Published size: 64 features, 23 blocks, growth 32.

    With `bicubic_skip` the network gives the difference to the bicubic enlargement and its last conv starts at zero,
    so that an untrained network *is* bicubic. The published network has no such skip; its keys are the same.
    """

    def __init__(
        self, num_feat: int = 64, num_block: int = 23, num_grow_ch: int = 32, *, bicubic_skip: bool = False
    ) -> None:
        super().__init__()
        self.bicubic_skip = bicubic_skip
        self.conv_first = conv3x3(3, num_feat)
        self.body = nn.Sequential(*(RRDB(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = conv3x3(num_feat, num_feat)
        self.conv_up1 = conv3x3(num_feat, num_feat)
        self.conv_up2 = conv3x3(num_feat, num_feat)
        self.conv_hr = conv3x3(num_feat, num_feat)
        self.conv_last = conv3x3(num_feat, 3)
        if bicubic_skip:
            nn.init.zeros_(self.conv_last.weight)
            zero_bias(self.conv_last)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_first(x)
        features = shallow + self.conv_body(self.body(shallow))
        for conv in (self.conv_up1, self.conv_up2):
            features = F.leaky_relu(conv(F.interpolate(features, scale_factor=2, mode="nearest")), 0.2)
        out = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.2))
        return out + bicubic(x, 4) if self.bicubic_skip else out
