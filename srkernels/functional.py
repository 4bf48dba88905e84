"""Functions of every op, mirroring ``torch.nn.functional``."""

from .ops.haar import convert_haar_weight, haar_dwt2d, haar_highpass, haar_idwt2d
from .ops.weighted_l1 import weighted_l1_loss

__all__ = ["convert_haar_weight", "haar_dwt2d", "haar_highpass", "haar_idwt2d", "weighted_l1_loss"]
