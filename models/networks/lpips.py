"""LPIPS, the learned perceptual distance, on AlexNet or VGG-16."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.vgg import ORIGINS, VGG16Features, vgg_convolutions
from srkernels.nn import Conv2dAct


class _TrunkParts(NamedTuple):
    """The network whose features are compared.

    Attributes:
        title: as people call it.
        convolutions: by index in torchvision's `features`: channels in and out, kernel, stride, padding.
        pool: side of the max poolings, of stride 2.
        pooled: the convolutions with such a pooling before them.
        compared: the convolutions whose ReLUs are compared.
        least_side: pixels of which the last pooling still leaves one.
    """

    title: str
    convolutions: Mapping[str, tuple[int, int, int, int, int]]
    pool: int
    pooled: tuple[str, ...]
    compared: tuple[str, ...]
    least_side: int


_ALEX = {
    "0": (3, 64, 11, 4, 2),
    "3": (64, 192, 5, 1, 2),
    "6": (192, 384, 3, 1, 1),
    "8": (384, 256, 3, 1, 1),
    "10": (256, 256, 3, 1, 1),
}
_VGG16 = {each.key: (each.in_channels, each.out_channels, 3, 1, 1) for each in vgg_convolutions(VGG16Features.STAGES)}
_TRUNKS = {
    "alex": _TrunkParts("Alex", _ALEX, 3, ("3", "6"), tuple(_ALEX), 31),
    "vgg16": _TrunkParts("VGG-16", _VGG16, 2, ("5", "10", "17", "24"), ("2", "7", "14", "21", "28"), 16),
}
Trunk = Literal["alex", "vgg16"]
# The compared ReLUs of VGG-16 by the names that `VGGFeatures` has for them.
COMPARED_OF_VGG16 = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


class LPIPS(nn.Module):
    """Distance of two images by LPIPS v0.1 with AlexNet or VGG-16 and linear weights (Zhang et al., 2018); frozen.

    `lpips(a, b)` takes two (N, 3, H, W), RGB in [0, 1], H and W at least `least_side`, and gives (N,) distances: after
    each of AlexNet's five ReLUs, or the last of each of VGG-16's five stages, the features of every position are scaled
    to unit length, their squared differences weighted, summed over channels and averaged over positions, and the five
    averages added. Differentiable in both images. Under autocast the convolutions run in its dtype, all else in that of
    the images, fp32 at least.

    The weights come from two files, torchvision's `alexnet-owt-7be5be79.pth` or `vgg16-397923af.pth` and
    `lpips/weights/v0.1/alex.pth` or `vgg.pth` of github.com/richzhang/PerceptualSimilarity, whose keys a state dict of
    this module has. Until `load` they are random.

    `origin` says what the trunk was trained on. With any other than ImageNet the distances are no longer those that
    people report as LPIPS, and `name` says so: HED-LPIPS.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Trunk = "alex", origin: str = ORIGINS[0]) -> None:
        super().__init__()
        self._trunk, self.origin = _TRUNKS[trunk], origin
        convolutions = self._trunk.convolutions
        self.features = nn.ModuleDict({key: Conv2dAct(*sizes) for key, sizes in convolutions.items()})
        for k, key in enumerate(self._trunk.compared):
            # As published, with the dropout of these weights' training, so that the keys are `lin{k}.model.1`.
            layers = nn.Sequential(nn.Dropout(), nn.Conv2d(convolutions[key][1], 1, 1, bias=False))
            self.add_module(f"lin{k}", nn.ModuleDict({"model": layers}))
        self.register_buffer("shift", torch.tensor((-0.030, -0.088, -0.188)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor((0.458, 0.448, 0.450)).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def name(self) -> str:
        """What the distance is called wherever it is shown."""
        return "LPIPS" if self.origin == ORIGINS[0] else f"{self.origin}-LPIPS"

    @property
    def convention(self) -> str:
        """What a number was measured with, such as "v0.1 Alex"."""
        return f"v0.1 {self._trunk.title}"

    @property
    def least_side(self) -> int:
        """The least height and width of an image."""
        return self._trunk.least_side

    def load(self, trunk_state: Mapping[str, Tensor], lin_state: Mapping[str, Tensor] | None = None) -> None:
        """Loads the contents of the two files, or the one state dict of the package `lpips`.

        Raises RuntimeError naming the keys that are missing, unknown or of another shape.
        """
        own = {
            re.sub(r"^net\.slice\d\.", "features.", key): value
            for key, value in {**trunk_state, **(lin_state or {})}.items()
            if not key.startswith(("classifier.", "scaling_layer.", "lins."))
        }
        self.load_state_dict(own)

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in eval mode, as a frozen part of a loss should."""
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        distances = []
        for k, (f, g) in enumerate(zip(self._unit_features(a), self._unit_features(b), strict=True)):
            # Not computed as a convolution: autocast would round the differences.
            weight = getattr(self, f"lin{k}")["model"][1].weight
            distances.append((weight * (f - g).square()).sum(1).mean((1, 2)))
        return torch.stack(distances).sum(0)

    def _unit_features(self, image: Tensor) -> Iterator[Tensor]:
        """One after the other: those of a large image take much memory."""
        trunk, x = self._trunk, (2 * image - 1 - self.shift) / self.scale
        for key, conv in self.features.items():
            x = conv(F.max_pool2d(x, trunk.pool, 2) if key in trunk.pooled else x)
            if key in trunk.compared:
                y = x.to(torch.promote_types(x.dtype, torch.float32))
                # The gradient of this norm is 0 where all channels are; that of a square root of a sum is NaN there.
                yield y / (torch.linalg.vector_norm(y, dim=1, keepdim=True) + 1e-10)
