"""Blocks and networks as the published code bases write them, with fewer channels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn


class ResidualBlockNoBN(nn.Module):
    """As BasicSR has it."""

    def __init__(self, num_feat: int = 8, res_scale: float = 1) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x))) * self.res_scale


class ResBlock(nn.Module):
    """As EDSR has it: ``body.0``, ``body.2``."""

    def __init__(self, channels: int = 8, res_scale: float = 0.1) -> None:
        super().__init__()
        act = nn.ReLU(True)
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), act, nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        res = self.body(x).mul(self.res_scale)
        res += x
        return res


class ResBlockCRC(nn.Module):
    """As KAIR has it: ``res.0``, ``res.2``, no scale."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, channels, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(channels, channels, 3, 1, 1)]
        self.res = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res(x)


class PReLUBlock(nn.Module):
    """As DASR's down-sampling network has it."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(x)
        residual = self.prelu(residual)
        return x + self.conv2(residual)


class ResidualDenseBlock(nn.Module):
    """As BasicSR has it: ``conv1`` ... ``conv5`` and one activation."""

    def __init__(self, num_feat: int = 8, num_grow_ch: int = 4) -> None:
        super().__init__()
        for k in range(4):
            self.add_module(f"conv{k + 1}", nn.Conv2d(num_feat + k * num_grow_ch, num_grow_ch, 3, 1, 1))
        self.conv5 = nn.Conv2d(num_feat + 4 * num_grow_ch, num_feat, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        x5 = self.conv5(torch.cat((x, x1, x2, x3, x4), 1))
        return x5 * 0.2 + x


class OldDenseBlock(nn.Module):
    """As the first ESRGAN has it: ``conv1.0`` ... ``conv5.0``."""

    def __init__(self, nc: int = 8, gc: int = 4) -> None:
        super().__init__()
        for k in range(4):
            layers = nn.Conv2d(nc + k * gc, gc, 3, 1, 1), nn.LeakyReLU(0.2, inplace=True)
            self.add_module(f"conv{k + 1}", nn.Sequential(*layers))
        self.conv5 = nn.Sequential(nn.Conv2d(nc + 4 * gc, nc, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.conv1(x)
        x2 = self.conv2(torch.cat((x, x1), 1))
        x3 = self.conv3(torch.cat((x, x1, x2), 1))
        x4 = self.conv4(torch.cat((x, x1, x2, x3), 1))
        x5 = self.conv5(torch.cat((x, x1, x2, x3, x4), 1))
        return x5.mul(0.2) + x


class RRDB(nn.Module):
    def __init__(self, block: Callable[[], nn.Module], name: str) -> None:
        super().__init__()
        for k in (1, 2, 3):
            self.add_module(f"{name}{k}", block())

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for block in self.children():
            out = block(out)
        return out * 0.2 + x


class SRVGGNetCompact(nn.Module):
    """As BasicSR has it: one list of convolutions and activations, iterated by hand."""

    def __init__(self, act_type: str = "prelu", num_feat: int = 8, num_conv: int = 2, upscale: int = 2) -> None:
        super().__init__()
        self.upscale = upscale
        self.body = nn.ModuleList()
        self.body.append(nn.Conv2d(3, num_feat, 3, 1, 1))
        self.body.append(self._activation(act_type, num_feat))
        for _ in range(num_conv):
            self.body.append(nn.Conv2d(num_feat, num_feat, 3, 1, 1))
            self.body.append(self._activation(act_type, num_feat))
        self.body.append(nn.Conv2d(num_feat, 3 * upscale * upscale, 3, 1, 1))
        self.upsampler = nn.PixelShuffle(upscale)

    @staticmethod
    def _activation(act_type: str, num_feat: int) -> nn.Module:
        if act_type == "relu":
            return nn.ReLU(inplace=True)
        if act_type == "prelu":
            return nn.PReLU(num_parameters=num_feat)
        return nn.LeakyReLU(negative_slope=0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(0, len(self.body)):
            out = self.body[i](out)
        out = self.upsampler(out)
        out += nn.functional.interpolate(x, scale_factor=self.upscale, mode="nearest")
        return out


class VGGFeatureExtractor(nn.Module):
    """As BasicSR has it, with fewer channels: layers iterated by hand, copies kept of the requested ones."""

    def __init__(self, layer_name_list: list[str], use_input_norm: bool = True, range_norm: bool = False) -> None:
        super().__init__()
        self.layer_name_list = layer_name_list
        self.use_input_norm = use_input_norm
        self.range_norm = range_norm
        layers: dict[str, nn.Module] = {}
        channels = 3
        for stage in (1, 2):
            for k in (1, 2):
                layers[f"conv{stage}_{k}"] = nn.Conv2d(channels, 4 * stage, 3, padding=1)
                layers[f"relu{stage}_{k}"] = nn.ReLU(inplace=True)
                channels = 4 * stage
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        self.vgg_net = nn.Sequential(OrderedDict(layers))
        if use_input_norm:
            self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.range_norm:
            x = (x + 1) / 2
        if self.use_input_norm:
            x = (x - self.mean) / self.std
        output = {}
        for key, layer in self.vgg_net._modules.items():
            x = layer(x)
            if key in self.layer_name_list:
                output[key] = x.clone()
        return output


class EDSR(nn.Module):
    """As BasicSR has it."""

    def __init__(self, num_feat: int = 8, num_block: int = 2, res_scale: float = 0.1) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, num_feat, 3, 1, 1)
        self.body = nn.Sequential(*[ResidualBlockNoBN(num_feat, res_scale) for _ in range(num_block)])
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upsample = nn.Sequential(nn.Conv2d(num_feat, 4 * num_feat, 3, 1, 1), nn.PixelShuffle(2))
        self.conv_last = nn.Conv2d(num_feat, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(x - 0.5)
        res = self.conv_after_body(self.body(x))
        res += x
        return self.conv_last(self.upsample(res)) + 0.5


class Shortcut(nn.Module):
    """As the first ESRGAN has it, around its trunk."""

    def __init__(self, sub: nn.Module) -> None:
        super().__init__()
        self.sub = sub

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sub(x)


def old_esrgan(channels: int = 8) -> nn.Sequential:
    """The first ESRGAN's network: one ``nn.Sequential``."""
    trunk = nn.Sequential(RRDB(OldDenseBlock, "RDB"), nn.Conv2d(channels, channels, 3, padding=1))
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        Shortcut(trunk),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(channels, 3, 3, padding=1),
    )
