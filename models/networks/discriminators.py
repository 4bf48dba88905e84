"""Patch discriminators of four convolutions, those of DASR's paper and code, and one with a score for a whole image."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.networks.blocks import kaiming_init

# Kernel and stride of the four convolutions, all padded by (kernel - 1) // 2.
_KINDS = {
    "paper": ((3, 2), (3, 2), (3, 1), (3, 1)),
    "fsd": ((5, 1), (5, 1), (5, 1), (1, 1)),
    "nlayer_s1": ((4, 1), (4, 1), (4, 1), (4, 1)),
    "nlayer_s2": ((4, 2), (4, 2), (4, 1), (4, 1)),
}
_NORMS = {
    "instance": nn.InstanceNorm2d,
    "batch": nn.BatchNorm2d,
    "spectral": nn.Identity,  # of weights, not of activations
    "none": nn.Identity,
}


class PatchDiscriminator(nn.Module):
    """Logits, one for each patch, of what a frequency filter makes of an image (9 channels for `haar_highpass`).

    Input (N, in_channels, h, w), output raw logits (N, 1, about h / jump, about w / jump). Four convolutions to
    num_feat, twice, four times as many channels and 1, a norm after the second and third, LeakyReLU 0.2 between them.

    Args:
        num_feat: 64 in all published ones.
        kind: "paper": 3x3, two of them strided, receptive field 23, as DASR's paper says. "fsd": 5x5, 5x5, 5x5, 1x1,
            a score for every position, with which DASR's code trains the DSN and makes its distance maps.
            "nlayer_s1", "nlayer_s2": 4x4 (PatchGAN), the latter with two strided layers; `nld_s1` and `nld_s2` of the
            DSN's code.
        norm: "instance" (no parameters, statistics of each image in evaluation too), "batch", "spectral" (every layer's
            weight over its largest singular value, estimated again by each call in training mode) or "none".
        bias: whether the two convolutions followed by a norm have one. The discriminator of DASR's SR network is
            "nlayer_s2" with bias=False and init="kaiming".
        init: "default" of PyTorch, or "kaiming": normal, biases 0.

    Attributes:
        frequency: name of the filter (`models.networks.frequency`) that the weights were trained with, or None.
        frequency_kernel: the kernel size of that filter, where it has one.
        frequency_contrast: by which its output was centred and multiplied, or 0.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        in_channels: int = 9,
        num_feat: int = 64,
        *,
        kind: str = "paper",
        norm: str = "instance",
        bias: bool = True,
        init: str = "default",
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("kind", kind, _KINDS),
            ("norm", norm, _NORMS),
            ("init", init, ("default", "kaiming")),
        ):
            if value not in known:
                raise ValueError(f"PatchDiscriminator: {name} must be one of {', '.join(known)}, got {value!r}")
        self.kind = kind
        self.norm = norm
        self.frequency: str | None = None
        self.frequency_kernel = 5
        self.frequency_contrast = 0.0
        channels = (in_channels, num_feat, 2 * num_feat, 4 * num_feat, 1)
        layers: list[nn.Module] = []
        for n, (kernel, stride) in enumerate(_KINDS[kind]):
            has_norm = n in (1, 2)
            layers.append(
                nn.Conv2d(*channels[n : n + 2], kernel, stride, padding=(kernel - 1) // 2, bias=bias or not has_norm)
            )
            if has_norm:
                layers.append(_NORMS[norm](channels[n + 1]))
            layers.append(_leaky())
        self.model = nn.Sequential(*layers[:-1])
        if init == "kaiming":
            kaiming_init(self)
        if norm == "spectral":
            _normalise_spectra(self)

    @property
    def receptive_field(self) -> int:
        """Side of the square that a logit sees, in positions of the input."""
        strides = [stride for _, stride in _KINDS[self.kind]]
        return 1 + sum((kernel - 1) * math.prod(strides[:n]) for n, (kernel, _) in enumerate(_KINDS[self.kind]))

    @property
    def jump(self) -> int:
        """Distance between the squares of neighbouring logits, in positions of the input."""
        return math.prod(stride for _, stride in _KINDS[self.kind])

    @property
    def first_centre(self) -> float:
        """Where the middle of the first logit's square lies, in positions of the input; 0.5 is between two of them."""
        strides = [stride for _, stride in _KINDS[self.kind]]
        shifts = [(kernel - 1) / 2 - (kernel - 1) // 2 for kernel, _ in _KINDS[self.kind]]
        return sum(shift * math.prod(strides[:n]) for n, shift in enumerate(shifts))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class VGGDiscriminator(nn.Module):
    """One score for an image or feature map of a fixed size: ten 3x3 convolutions, five of them strided, two linear.

    Input (N, in_channels, image_size, image_size), output raw scores (N, 1). USR-DA's paper does not say what its
    discriminators are; this one, its keys and its batch norm are those of the unofficial code
    (github.com/anse3832/USR_DA). Channels num_feat, twice, four times and for the last four eight times as many, a norm
    after all convolutions but the first, LeakyReLU 0.2. Where no norm layer follows, a convolution has a bias.

    Args:
        image_size: divisible by 32, and at least 64 for instance norm, which is undefined on a single position.
        norm: as `PatchDiscriminator`.

    Raises:
        ValueError: naming the argument, or for an input of another size.
    """

    def __init__(self, in_channels: int, image_size: int, num_feat: int = 64, *, norm: str = "batch") -> None:
        super().__init__()
        if image_size < 32 or image_size % 32:
            raise ValueError(f"VGGDiscriminator: image_size must be a positive multiple of 32, got {image_size}")
        if norm not in _NORMS:
            raise ValueError(f"VGGDiscriminator: norm must be one of {', '.join(_NORMS)}, got {norm!r}")
        self.image_size = image_size
        self.norm = norm
        channels = (in_channels, *(num_feat * factor for factor in (1, 1, 2, 2, 4, 4, 8, 8, 8, 8)))
        layers: list[nn.Module] = []
        for n in range(10):
            bias = n == 0 or _NORMS[norm] is nn.Identity
            layers.append(nn.Conv2d(*channels[n : n + 2], 3, stride=1 + n % 2, padding=1, bias=bias))
            if n > 0:
                layers.append(_NORMS[norm](channels[n + 1]))
            layers.append(_leaky())
        self.features = nn.Sequential(*layers)
        values = 8 * num_feat * (image_size // 32) ** 2
        self.classifier = nn.Sequential(nn.Linear(values, 100), _leaky(), nn.Linear(100, 1))
        if norm == "spectral":
            _normalise_spectra(self)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.image_size, self.image_size):
            size = f"{self.image_size} x {self.image_size}"
            raise ValueError(f"VGGDiscriminator: x must be (N, C, H, W) of {size}, got {tuple(x.shape)}")
        return self.classifier(self.features(x).flatten(1))


def _leaky() -> nn.LeakyReLU:
    # In place: otherwise both input and output would be kept, a copy of every full-size map.
    return nn.LeakyReLU(0.2, inplace=True)


def _normalise_spectra(network: nn.Module) -> None:
    for layer in [*network.modules()]:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            spectral_norm(layer)
