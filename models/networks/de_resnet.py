"""De_resnet, the down-sampling network (DSN) of DASR's published code."""

from __future__ import annotations

from torch import Tensor, nn

from models.data.resize import bicubic
from models.networks.blocks import ResidualBlock, check_scale, conv3x3, zero_init


class DeResNet(nn.Module):
    """HR to LR: residual blocks at full size, a strided conv for each halving, sigmoid; with the published keys.

    Input (N, 3, H, W) in [0, 1], output (N, 3, ceil(H / scale), ceil(W / scale)). Published size: 64 features, 8
    blocks, scale 4. With scale 1 it has no strided conv and is the generator of DSGAN, which is fed bicubic LR images.

    With `bicubic_skip` the network outputs the difference from the bicubic image, without sigmoid, and its last conv
    starts at zero: training begins from bicubic down-sampling, instead of spending thousands of steps on learning it.
    The output is then not clamped. The keys are the same.
    """

    def __init__(self, num_feat: int = 64, num_block: int = 8, *, scale: int = 4, bicubic_skip: bool = False) -> None:
        super().__init__()
        check_scale(self, scale)
        self.scale = scale
        self.bicubic_skip = bicubic_skip
        self.block_input = nn.Sequential(conv3x3(3, num_feat), nn.PReLU())
        self.res_blocks = nn.Sequential(*(ResidualBlock(num_feat) for _ in range(num_block)))
        halvings: list[nn.Module] = []
        for _ in range(scale // 2):
            halvings += [conv3x3(num_feat, num_feat, stride=2), nn.PReLU()]
        self.down_sample = nn.Sequential(*halvings)
        self.block_output = conv3x3(num_feat, 3)
        if bicubic_skip:
            zero_init(self.block_output)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block_output(self.down_sample(self.res_blocks(self.block_input(x))))
        return out + bicubic(x, 1 / self.scale) if self.bicubic_skip else out.sigmoid()
