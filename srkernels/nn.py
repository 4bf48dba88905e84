"""Modules of every op, mirroring ``torch.nn``."""

from .ops.conv import RRDB, Conv2dAct, ResidualBlock, ResidualDenseBlock
from .ops.haar import HaarDWT2d, HaarHighPass
from .ops.weighted_loss import BasicSRCharbonnierLoss, BasicSRL1Loss, BasicSRMSELoss, WeightedL1Loss, WeightedLoss

__all__ = [
    "RRDB",
    "BasicSRCharbonnierLoss",
    "BasicSRL1Loss",
    "BasicSRMSELoss",
    "Conv2dAct",
    "HaarDWT2d",
    "HaarHighPass",
    "ResidualBlock",
    "ResidualDenseBlock",
    "WeightedL1Loss",
    "WeightedLoss",
]
