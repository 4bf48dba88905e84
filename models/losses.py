"""Adversarial losses on patch logits; label 1 is the domain that the generator should reach."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def generator_gan_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating `mean(-log D(fake))`, a scalar (DASR's code; the paper prints the saturating `log(1 - D)`)."""
    return F.softplus(-fake_logits).mean()


def discriminator_gan_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """`(mean(-log D(real)) + mean(-log(1 - D(fake)))) / 2`, a scalar; the two may differ in shape."""
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())
