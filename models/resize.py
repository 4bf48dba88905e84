"""The bicubic resize of the super-resolution literature."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bicubic(image: Tensor, scale: float) -> Tensor:
    """Resizes (N, C, H, W) with MATLAB's kernel (a = -0.5, antialiased when shrinking); the result is not clamped."""
    return F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False, antialias=True)
