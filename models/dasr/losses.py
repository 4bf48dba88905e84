"""The loss terms of DASR, by the paper's equations; every one is a scalar and a mean over its elements.

y is an LR picture in [0, 1], x an HR picture, w a domain-distance map (N, 1, h, w) of any size.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

import srkernels
from models.train.losses import DistanceLoss, FeatureLoss, widen

Perceptual = FeatureLoss | DistanceLoss
LowPass = Callable[[Tensor], Tensor]


def content_loss(generated_lr: Tensor, bicubic_lr: Tensor, low: LowPass | None = None) -> Tensor:
    """Eq. 1, left: `|y_b - DSN(x)|_1` on RGB.

    With `low` both are low-passed first, which leaves blur and noise of the target domain to the discriminator (the
    published code).
    """
    if low is not None:
        generated_lr, bicubic_lr = low(generated_lr), low(bicubic_lr)
    return F.l1_loss(widen(generated_lr), widen(bicubic_lr))


def perceptual_loss(generated_lr: Tensor, bicubic_lr: Tensor, perceptual: Perceptual) -> Tensor:
    """Eq. 1, right: `|phi(y_b) - phi(DSN(x))|_1`."""
    return perceptual(generated_lr, bicubic_lr)


def weighted_content_loss(sr: Tensor, hr: Tensor, weight: Tensor | None) -> Tensor:
    """Eq. 5, first line: `|w * (SRN(y) - x)|_1`, w resized bilinearly to the HR picture; plain L1 without a map.

    The mean is over all elements and not over the sum of w (the published code).
    """
    return srkernels.weighted_l1_loss(sr, hr, weight)


def weighted_perceptual_loss(sr: Tensor, hr: Tensor, weight: Tensor | None, perceptual: Perceptual) -> Tensor:
    """Eq. 5, second line: `|w * (phi(SRN(y)) - phi(x))|_1`; the published code omits w."""
    return perceptual(sr, hr, weight)


def low_band_loss(sr: Tensor, hr: Tensor, low: LowPass) -> Tensor:
    """`|LL(SRN(y)) - LL(x)|_1`, not weighted (`sup_LL` of the published code; the paper has no such term)."""
    return F.l1_loss(widen(low(sr)), widen(low(hr)))
