"""LPIPS, the learned perceptual distance, on AlexNet."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srkernels.nn import Conv2dAct

# Index in torchvision's `alexnet().features`: channels in and out, kernel, stride, padding.
_CONVOLUTIONS = {
    "0": (3, 64, 11, 4, 2),
    "3": (64, 192, 5, 1, 2),
    "6": (192, 384, 3, 1, 1),
    "8": (384, 256, 3, 1, 1),
    "10": (256, 256, 3, 1, 1),
}
_POOL_BEFORE = ("3", "6")
LEAST_SIDE = 31  # pixels of which the last pooling still leaves one


class LPIPS(nn.Module):
    """Distance of two images by LPIPS v0.1 with AlexNet and linear weights (Zhang et al., 2018); frozen.

    `lpips(a, b)` takes two (N, 3, H, W), RGB in [0, 1], H and W at least 31, and gives (N,) distances: after each of
    the five ReLUs the features of every position are scaled to unit length, their squared differences weighted, summed
    over channels and averaged over positions, and the five averages added. Differentiable in both images. Under
    autocast the convolutions run in its dtype, all else in that of the images, fp32 at least.

    The weights come from two files, torchvision's `alexnet-owt-7be5be79.pth` and `lpips/weights/v0.1/alex.pth` of
    github.com/richzhang/PerceptualSimilarity, whose keys a state dict of this module has. Until `load` they are random.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict({key: Conv2dAct(*sizes) for key, sizes in _CONVOLUTIONS.items()})
        for k, (_, channels, *_) in enumerate(_CONVOLUTIONS.values()):
            # As published, with the dropout of these weights' training, so that the keys are `lin{k}.model.1`.
            layers = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{k}", nn.ModuleDict({"model": layers}))
        self.register_buffer("shift", torch.tensor((-0.030, -0.088, -0.188)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor((0.458, 0.448, 0.450)).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def load(self, alexnet_state: Mapping[str, Tensor], lin_state: Mapping[str, Tensor] | None = None) -> None:
        """Loads the contents of the two files, or the one state dict of the package `lpips`.

        Raises RuntimeError naming the keys that are missing, unknown or of another shape.
        """
        own = {
            re.sub(r"^net\.slice\d\.", "features.", key): value
            for key, value in {**alexnet_state, **(lin_state or {})}.items()
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

    def _unit_features(self, image: Tensor) -> list[Tensor]:
        x = (2 * image - 1 - self.shift) / self.scale
        found = []
        for key, conv in self.features.items():
            x = conv(F.max_pool2d(x, 3, 2) if key in _POOL_BEFORE else x)
            y = x.to(torch.promote_types(x.dtype, torch.float32))
            # The gradient of this norm is 0 where all channels are; that of a square root of a sum is NaN there.
            found.append(y / (torch.linalg.vector_norm(y, dim=1, keepdim=True) + 1e-10))
        return found
