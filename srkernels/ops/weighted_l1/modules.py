"""L1 loss weighted by a map of any resolution, as a module."""

from __future__ import annotations

from torch import Tensor, nn

from ..._validate import boolean, choice, number
from .allocate import REDUCTIONS
from .api import NORMALIZE, weighted_l1_loss


class WeightedL1Loss(nn.Module):
    """Module form of ``weighted_l1_loss``: ``module(input, target, weight)``, times ``loss_weight``.

    The argument order (prediction, target, weight) and ``loss_weight`` are BasicSR's ``L1Loss``; its mean over
    the weights is ``normalize="weight_sum"``.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        *,
        normalize: str = "numel",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        choice("WeightedL1Loss", "reduction", reduction, REDUCTIONS)
        choice("WeightedL1Loss", "normalize", normalize, NORMALIZE)
        number("WeightedL1Loss", "loss_weight", loss_weight)
        boolean("WeightedL1Loss", "align_corners", align_corners)
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.normalize = normalize
        self.align_corners = align_corners

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        loss = weighted_l1_loss(
            input,
            target,
            weight,
            reduction=self.reduction,
            normalize=self.normalize,
            align_corners=self.align_corners,
        )
        return loss if self.loss_weight == 1.0 else self.loss_weight * loss

    def extra_repr(self) -> str:
        return (
            f"loss_weight={self.loss_weight}, reduction={self.reduction!r}, normalize={self.normalize!r}, "
            f"align_corners={self.align_corners}"
        )
