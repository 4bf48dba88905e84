from .api import Conv2dAct, ResidualBlock, conv2d_act, is_plain, residual_block

__all__ = ["Conv2dAct", "ResidualBlock", "conv2d_act", "is_plain", "residual_block"]
