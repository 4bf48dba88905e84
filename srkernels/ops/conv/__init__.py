from .api import conv2d_act, dense_block, residual_block
from .modules import RRDB, Conv2dAct, ResidualBlock, ResidualDenseBlock, is_plain

__all__ = [
    "RRDB",
    "Conv2dAct",
    "ResidualBlock",
    "ResidualDenseBlock",
    "conv2d_act",
    "dense_block",
    "is_plain",
    "residual_block",
]
