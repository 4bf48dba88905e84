"""Fused, differentiable ops for training super-resolution networks.

>>> import srkernels
>>> bands = srkernels.haar_highpass(images)              # DASR's discriminator input
>>> loss = srkernels.weighted_l1_loss(sr, hr, distance)  # map of any size, resized inside the kernel
"""

from . import functional, nn
from ._dispatch import use_backend
from ._explain import explain
from ._version import __version__
from .functional import (
    conv2d_act,
    convert_haar_weight,
    dense_block,
    haar_dwt2d,
    haar_highpass,
    haar_idwt2d,
    residual_block,
    weighted_l1_loss,
    weighted_loss,
)
from .ops.haar import HAAR_CONVENTIONS
from .patch import patch, unpatch
from .tuned.choose import tuning
from .tuned.report import tune

__all__ = [
    "HAAR_CONVENTIONS",
    "__version__",
    "conv2d_act",
    "convert_haar_weight",
    "dense_block",
    "explain",
    "functional",
    "haar_dwt2d",
    "haar_highpass",
    "haar_idwt2d",
    "nn",
    "patch",
    "residual_block",
    "tune",
    "tuning",
    "unpatch",
    "use_backend",
    "weighted_l1_loss",
    "weighted_loss",
]
