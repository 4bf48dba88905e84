"""Convolution blocks of PyTorch's own convolutions, and everything between them in single passes, in Triton."""

from ..._dispatch import without_autocast
from .triton import around
from .triton.blocks import Blocks

# A backward pass may run under an autocast that its forward pass did not see.
_blocks = Blocks(around)
forward, backward = without_autocast(_blocks.forward), without_autocast(_blocks.backward)
block_forward, block_backward = without_autocast(_blocks.block_forward), without_autocast(_blocks.block_backward)
dense_forward, dense_backward = without_autocast(_blocks.dense_forward), without_autocast(_blocks.dense_backward)
