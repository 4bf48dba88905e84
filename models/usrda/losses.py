"""The loss terms of USR-DA, by the paper's equations; every one is a scalar and a mean over its elements.

f are features, x LR pictures, y HR pictures; s is the source domain (synthesised LR), t the target domain (real LR).
Discriminators give raw scores of any shape and are trained with least squares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.train.losses import squared_distance, widen


def alignment_loss(score_t: Tensor, score_s: Tensor) -> Tensor:
    """Eq. 1, for E: `(D_f(f_t) - 0.5)^2 + (D_f(f_s) - 0.5)^2`; features should tell nothing of their domain."""
    return squared_distance(score_t, 0.5) + squared_distance(score_s, 0.5)


def alignment_discriminator_loss(score_t: Tensor, score_s: Tensor) -> Tensor:
    """Eq. 2, for D_f: `(D_f(f_t) - 0)^2 + (D_f(f_s) - 1)^2`."""
    return squared_distance(score_t, 0.0) + squared_distance(score_s, 1.0)


def l1_loss(image: Tensor, target: Tensor) -> Tensor:
    """The L1 of Eqs. 3, 4, 7 and 8."""
    return F.l1_loss(widen(image), widen(target))


def style_loss(score_st: Tensor) -> Tensor:
    """Eq. 5, for E and G_t: `(D_t(x_st) - 1)^2`; also the adversarial part of Eqs. 3 and 8, with D_y."""
    return squared_distance(score_st, 1.0)


def style_discriminator_loss(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """Eq. 6, for D_t: `(D_t(x_st) - 0)^2 + (D_t(x_t) - 1)^2`; the same for D_y, whose formula is not printed."""
    scores = [squared_distance(score, 1.0) for score in real] + [squared_distance(score, 0.0) for score in made]
    return torch.stack(scores).sum()
