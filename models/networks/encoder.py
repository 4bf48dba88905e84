"""E, the encoder of USR-DA."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from srkernels.nn import Conv2dAct


class Encoder(nn.Module):
    """Picture to features of its own size: 3x3 convolutions, LeakyReLU 0.2 between them; keys `conv_featmap.{0,2,...}`.

    Input (N, 3, h, w) in [0, 1], output (N, num_feat, h, w). USR-DA's paper says "several convolution layers"; number
    and width are those of the unofficial code (github.com/anse3832/USR_DA), whose keys these are.
    """

    def __init__(self, num_feat: int = 64, num_conv: int = 5) -> None:
        super().__init__()
        convs = OrderedDict()
        for n in range(num_conv):
            activation = "leaky_relu" if n < num_conv - 1 else "none"
            convs[str(2 * n)] = Conv2dAct(num_feat if n else 3, num_feat, activation=activation)
        self.conv_featmap = nn.Sequential(convs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_featmap(x)
