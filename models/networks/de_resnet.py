"""De_resnet, the down-sampling network (DSN) of DASR's published code."""

from __future__ import annotations

from torch import Tensor, nn

from models.networks.blocks import ResidualBlock, conv3x3, zero_bias
from models.resize import bicubic


class DeResNet(nn.Module):
    """HR to LR at x1/4: residual blocks at full size, two strided convs, sigmoid; with the published keys.

    Input (N, 3, H, W) in [0, 1], output (N, 3, ceil(H / 4), ceil(W / 4)). Published size: 64 features, 8 blocks.

    With `bicubic_skip` the network gives the difference to the bicubic x1/4 image (H and W divisible by 4), with no
    sigmoid, and its last conv starts at zero: training begins from bicubic down-sampling, instead of spending
    thousands of steps on learning it. The output is then not clamped. The keys are the same.
    """

    def __init__(self, num_feat: int = 64, num_block: int = 8, *, bicubic_skip: bool = False) -> None:
        super().__init__()
        self.bicubic_skip = bicubic_skip
        self.block_input = nn.Sequential(conv3x3(3, num_feat), nn.PReLU())
        self.res_blocks = nn.Sequential(*(ResidualBlock(num_feat) for _ in range(num_block)))
        self.down_sample = nn.Sequential(
            conv3x3(num_feat, num_feat, stride=2), nn.PReLU(), conv3x3(num_feat, num_feat, stride=2), nn.PReLU()
        )
        self.block_output = conv3x3(num_feat, 3)
        if bicubic_skip:
            nn.init.zeros_(self.block_output.weight)
            zero_bias(self.block_output)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block_output(self.down_sample(self.res_blocks(self.block_input(x))))
        return out + bicubic(x, 0.25) if self.bicubic_skip else out.sigmoid()
