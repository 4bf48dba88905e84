"""Convolution blocks of PyTorch's own convolutions, and everything between them in single passes, in Triton."""

from .triton import around
from .triton.blocks import Blocks

_blocks = Blocks(around)
forward, backward = _blocks.forward, _blocks.backward
block_forward, block_backward = _blocks.block_forward, _blocks.block_backward
dense_forward, dense_backward = _blocks.dense_forward, _blocks.dense_backward
