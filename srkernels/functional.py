"""Functions of every op, mirroring ``torch.nn.functional``."""

from .ops.conv import conv2d_act, dense_block, residual_block
from .ops.haar import convert_haar_weight, haar_dwt2d, haar_highpass, haar_idwt2d
from .ops.weighted_loss import weighted_l1_loss, weighted_loss

__all__ = [
    "conv2d_act",
    "convert_haar_weight",
    "dense_block",
    "haar_dwt2d",
    "haar_highpass",
    "haar_idwt2d",
    "residual_block",
    "weighted_l1_loss",
    "weighted_loss",
]
