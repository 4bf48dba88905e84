from .api import WeightedL1Loss, weighted_l1_loss

__all__ = ["WeightedL1Loss", "weighted_l1_loss"]
