from .api import weighted_l1_loss
from .modules import WeightedL1Loss

__all__ = ["WeightedL1Loss", "weighted_l1_loss"]
