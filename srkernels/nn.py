"""Modules of every op, mirroring ``torch.nn``."""

from .ops.conv import Conv2dAct, ResidualBlock
from .ops.haar import HaarDWT2d, HaarHighPass
from .ops.weighted_l1 import WeightedL1Loss

__all__ = ["Conv2dAct", "HaarDWT2d", "HaarHighPass", "ResidualBlock", "WeightedL1Loss"]
