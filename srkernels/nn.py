"""Modules of every op, mirroring ``torch.nn``."""

from .ops.haar import HaarDWT2d, HaarHighPass
from .ops.weighted_l1 import WeightedL1Loss

__all__ = ["HaarDWT2d", "HaarHighPass", "WeightedL1Loss"]
