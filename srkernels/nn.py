"""Modules of every op, mirroring ``torch.nn``."""

from .ops.conv import RRDB, Conv2dAct, ResidualBlock, ResidualDenseBlock
from .ops.haar import HaarDWT2d, HaarHighPass
from .ops.weighted_l1 import WeightedL1Loss

__all__ = ["RRDB", "Conv2dAct", "HaarDWT2d", "HaarHighPass", "ResidualBlock", "ResidualDenseBlock", "WeightedL1Loss"]
