from .api import weighted_l1_loss, weighted_loss
from .modules import BasicSRCharbonnierLoss, BasicSRL1Loss, BasicSRMSELoss, WeightedL1Loss, WeightedLoss

__all__ = [
    "BasicSRCharbonnierLoss",
    "BasicSRL1Loss",
    "BasicSRMSELoss",
    "WeightedL1Loss",
    "WeightedLoss",
    "weighted_l1_loss",
    "weighted_loss",
]
