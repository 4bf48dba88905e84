"""Patch discriminators. Both take the 9-channel Haar input of `srkernels.haar_highpass` and give raw logits."""

from __future__ import annotations

from torch import Tensor, nn

from models.networks.blocks import zero_bias


class FSDiscriminator(nn.Module):
    """The DSN's discriminator (`FSD` with instance norm in DASR's code): stride 1, one score per input position.

    Input (N, in_channels, h, w), output logits (N, 1, h, w), receptive field 13. Its sigmoid on a generated LR image
    is the domain-distance map. Published size: 64 features. Published checkpoints hold these keys under `net.`.
    """

    def __init__(self, in_channels: int = 9, num_feat: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, num_feat, 5, padding=2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(num_feat, 2 * num_feat, 5, padding=2),
            nn.InstanceNorm2d(2 * num_feat),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * num_feat, 4 * num_feat, 5, padding=2),
            nn.InstanceNorm2d(4 * num_feat),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * num_feat, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class NLayerDiscriminator(nn.Module):
    """The SR network's discriminator (PatchGAN with two strided layers and instance norm, as DASR builds it).

    Input (N, in_channels, h, w), output logits of about (N, 1, h/4 - 2, w/4 - 2), receptive field 34. h, w >= 16.
    Published size: 64 features.
    """

    def __init__(self, in_channels: int = 9, num_feat: int = 64) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(in_channels, num_feat, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(num_feat, 2 * num_feat, 4, stride=2, padding=1, bias=False),
            nn.InstanceNorm2d(2 * num_feat),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * num_feat, 4 * num_feat, 4, padding=1, bias=False),
            nn.InstanceNorm2d(4 * num_feat),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * num_feat, 1, 4, padding=1),
        )
        for module in self.model:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                zero_bias(module)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
