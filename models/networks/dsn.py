"""The down-sampling network (DSN) that DASR's paper describes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.data.resize import bicubic
from models.networks.blocks import ReLUResidualBlock, check_scale, conv3x3, kaiming_init, zero_init
from srkernels import conv2d_act


class DSN(nn.Module):
    """HR to LR: residual blocks at full size under one global skip, a bilinear resize by 1/scale, two convolutions.

    Input (N, 3, H, W) in [0, 1], output (N, 3, floor(H / scale), floor(W / scale)), not clamped; H and W are at least
    `scale`, which is 4, 2 or 1 (nothing is resized). The paper's size: 64 features, 23 blocks. Keys and initial weights
    are those of `De_Resnet_bilinear` in DASR's code.

    With `bicubic_skip` the network outputs the difference from the bicubic image (H and W divisible by `scale`) and its
    last conv starts at zero: training begins from bicubic down-sampling, instead of spending thousands of steps on
    learning it. The keys are the same.
    """

    def __init__(self, num_feat: int = 64, num_block: int = 23, *, scale: int = 4, bicubic_skip: bool = False) -> None:
        super().__init__()
        check_scale(self, scale)
        self.scale = scale
        self.bicubic_skip = bicubic_skip
        trunk = nn.Sequential(*(ReLUResidualBlock(num_feat) for _ in range(num_block)), conv3x3(num_feat, num_feat))
        self.model = nn.Sequential(conv3x3(3, num_feat), nn.ModuleDict({"sub": trunk}))
        self.Afterconv = nn.Sequential(conv3x3(num_feat, num_feat), conv3x3(num_feat, 3))
        kaiming_init(self, 0.1)
        if bicubic_skip:
            zero_init(self.Afterconv[1])

    def forward(self, x: Tensor) -> Tensor:
        head, trunk = self.model[0], self.model[1]["sub"]
        *blocks, last = trunk
        features = shallow = head(x)
        for block in blocks:
            features = block(features)
        if self.scale == 1:
            features = conv2d_act(features, last.weight, last.bias, activation="none", residual=shallow)
        else:
            features = _conv_and_shrink(last, features, self.scale) + _conv_and_shrink(head, x, self.scale)
        out = self.Afterconv(features)
        return out + bicubic(x, 1 / self.scale) if self.bicubic_skip else out


def _conv_and_shrink(conv: nn.Conv2d, x: Tensor, scale: int) -> Tensor:
    """`F.interpolate(conv(x), scale_factor=1 / scale, mode="bilinear")` of a 3x3 conv with padding 1, for scale 2 or 4.

    Output i of that resize lies at scale * i + (scale - 1) / 2: it is the mean of the two middle samples of its cell,
    in both directions, of all sizes. A 3x3 convolution and such a mean make one 4x4 convolution whose stride is the
    scale, and what the resize would discard, most of a full-size tensor, is never computed.
    """
    weight = F.avg_pool2d(conv.weight, 2, stride=1, padding=1)
    return F.conv2d(x, weight, conv.bias, stride=scale, padding=2 - scale // 2)
