"""Convolution blocks as Triton kernels: products in Triton too, or PyTorch's own with Triton ``around`` them."""

from . import launch
from .blocks import Blocks

_blocks = Blocks(launch)
forward, backward = _blocks.forward, _blocks.backward
block_forward, block_backward = _blocks.block_forward, _blocks.block_backward
dense_forward, dense_backward = _blocks.dense_forward, _blocks.dense_backward
