from .api import conv2d_act, residual_block

__all__ = ["conv2d_act", "residual_block"]
