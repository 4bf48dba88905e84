from .api import (
    RRDB,
    Conv2dAct,
    ResidualBlock,
    ResidualDenseBlock,
    conv2d_act,
    dense_block,
    is_plain,
    residual_block,
)

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
