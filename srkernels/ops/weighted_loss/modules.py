"""Losses weighted by a map of any resolution, as modules."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ..._validate import choice, number
from .api import weighted_loss
from .arguments import REDUCTIONS
from .checks import NORMALIZE, form_of


class WeightedLoss(nn.Module):
    """Module form of ``weighted_loss``: ``module(input, target, weight)``, times ``loss_weight``."""

    def __init__(
        self,
        kind: str = "l1",
        loss_weight: float = 1.0,
        reduction: str = "mean",
        *,
        eps: float = 1e-12,
        delta: float = 1.0,
        normalize: str = "numel",
        interpolation: str = "bilinear",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        choice(name, "reduction", reduction, REDUCTIONS)
        choice(name, "normalize", normalize, NORMALIZE)
        number(name, "loss_weight", loss_weight)
        form_of(name, kind, eps, delta, interpolation, align_corners)
        self.kind, self.eps, self.delta = kind, eps, delta
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.normalize = normalize
        self.interpolation = interpolation
        self.align_corners = align_corners

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | float | None = None) -> Tensor:
        loss = weighted_loss(
            input,
            target,
            weight,
            kind=self.kind,
            eps=self.eps,
            delta=self.delta,
            reduction=self.reduction,
            normalize=self.normalize,
            interpolation=self.interpolation,
            align_corners=self.align_corners,
        )
        return loss if self.loss_weight == 1.0 else self.loss_weight * loss

    def extra_repr(self) -> str:
        names = inspect.signature(type(self)).parameters
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class WeightedL1Loss(WeightedLoss):
    """``WeightedLoss`` of the kind "l1". The argument order (prediction, target, weight) and ``loss_weight`` are
    BasicSR's ``L1Loss``; its mean over the weights is ``normalize="weight_sum"``, see ``BasicSRL1Loss``.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        *,
        normalize: str = "numel",
        align_corners: bool = False,
    ) -> None:
        super().__init__("l1", loss_weight, reduction, normalize=normalize, align_corners=align_corners)


class _BasicSRLoss(WeightedLoss):
    """A loss of BasicSR's, to put in its place: same arguments, same numbers, and maps of any size besides.

    A "mean" with a weight is divided by the sum of the weights. BasicSR takes that sum of the weight as it is passed,
    so one that is repeated along an axis counts once there (channels excepted, which it multiplies by); so it is here.
    """

    def forward(  # type: ignore[override]
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        loss = super().forward(pred, target, weight)
        if self.reduction == "mean" and isinstance(weight, Tensor) and weight.dim() == 4:
            n, _, height, width = pred.shape
            for own, size in zip((weight.shape[0], *weight.shape[2:]), (n, height, width), strict=True):
                if own == 1 and size != 1:
                    loss = size * loss
        return loss


class BasicSRL1Loss(_BasicSRLoss):
    """BasicSR's ``L1Loss(loss_weight, reduction)``."""

    def __init__(self, loss_weight: float = 1.0, reduction: str = "mean") -> None:
        super().__init__("l1", loss_weight, reduction, normalize="weight_sum")


class BasicSRMSELoss(_BasicSRLoss):
    """BasicSR's ``MSELoss(loss_weight, reduction)``."""

    def __init__(self, loss_weight: float = 1.0, reduction: str = "mean") -> None:
        super().__init__("mse", loss_weight, reduction, normalize="weight_sum")


class BasicSRCharbonnierLoss(_BasicSRLoss):
    """BasicSR's ``CharbonnierLoss(loss_weight, reduction, eps)``."""

    def __init__(self, loss_weight: float = 1.0, reduction: str = "mean", eps: float = 1e-12) -> None:
        super().__init__("charbonnier", loss_weight, reduction, eps=eps, normalize="weight_sum")
