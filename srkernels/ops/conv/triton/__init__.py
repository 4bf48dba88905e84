from .blocks import backward, block_backward, block_forward, dense_backward, dense_forward, forward

__all__ = ["backward", "block_backward", "block_forward", "dense_backward", "dense_forward", "forward"]
