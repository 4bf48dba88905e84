"""USR-DA's encoder, and its generator: that encoder with a decoder for each domain."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from models.data.resize import bicubic
from models.networks.blocks import ResidualDenseBlock, kaiming_init, zero_init
from models.networks.rrdbnet import Decoder
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


class USRDAGenerator(nn.Module):
    """E, G_SR and G_t of USR-DA: `encoder`, `decoder_sr` and `decoder_t`. As a function it is G_SR(E(x)).

    Input (N, 3, h, w) in [0, 1], output (N, 3, scale * h, scale * w), not clamped.

    Args:
        num_feat, num_conv: width of all three parts, and depth of E.
        decoder_feat: width of the decoders where it differs (the unofficial code's stay at 64).
        num_block, num_block_t: RRDB blocks of G_SR and of G_t; num_grow_ch is their growth.
        scale: HR over LR, 1, 2 or 4.
        bicubic_skip: the decoders output the difference from bicubic enlargement, and from the LR picture itself; their
            last convolutions start at zero, so that an untrained network *is* bicubic. Not in the paper.

    Attributes:
        sizes: the arguments, by name.
    """

    def __init__(
        self,
        num_feat: int = 64,
        num_conv: int = 5,
        num_block: int = 23,
        num_block_t: int = 10,
        num_grow_ch: int = 32,
        *,
        scale: int = 4,
        bicubic_skip: bool = False,
        decoder_feat: int | None = None,
    ) -> None:
        super().__init__()
        width = decoder_feat or num_feat
        self.encoder = Encoder(num_feat, num_conv)
        self.decoder_sr = Decoder(width, num_block, num_grow_ch, scale=scale, in_channels=num_feat)
        self.decoder_t = Decoder(width, num_block_t, num_grow_ch, scale=1, in_channels=num_feat)
        self.scale = scale
        self.bicubic_skip = bicubic_skip
        self.sizes = {
            "num_feat": num_feat,
            "decoder_feat": decoder_feat,
            "num_conv": num_conv,
            "num_block": num_block,
            "num_block_t": num_block_t,
            "num_grow_ch": num_grow_ch,
            "scale": scale,
            "bicubic_skip": bicubic_skip,
        }
        self._start_as_bicubic()

    def kaiming_init(self) -> None:
        """Weights that keep the signal's scale, through five and eight convolutions; dense blocks stay ESRGAN's."""
        kaiming_init(self)
        for module in self.modules():
            if isinstance(module, ResidualDenseBlock):
                kaiming_init(module, 0.1)
        self._start_as_bicubic()

    def _start_as_bicubic(self) -> None:
        if self.bicubic_skip:
            zero_init(self.decoder_sr.conv_last)
            zero_init(self.decoder_t.conv_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.super_resolve(self.encoder(x), x)

    def super_resolve(self, features: Tensor, x: Tensor) -> Tensor:
        """G_SR: the HR picture of the features of `x`."""
        y = self.decoder_sr(features)
        return y + bicubic(x, self.scale) if self.bicubic_skip else y

    def to_target(self, features: Tensor, x: Tensor) -> Tensor:
        """G_t: the picture with the features of `x` as it would look in the target domain."""
        restored = self.decoder_t(features)
        return restored + x if self.bicubic_skip else restored
