"""Convolution blocks as Triton kernels: products in Triton too, or PyTorch's own with Triton ``around`` them."""

from collections.abc import Sequence

from ..arguments import Block, Convolution, Dense
from . import launch
from .blocks import Blocks
from .configuration import Configured, names

_blocks = Blocks(launch)
forward, backward = _blocks.forward, _blocks.backward
block_forward, block_backward = _blocks.block_forward, _blocks.block_backward
dense_forward, dense_backward = _blocks.dense_forward, _blocks.dense_backward


def configured(chosen: Sequence[str]) -> Blocks:
    """The same functions with blocks of these configurations."""
    return Blocks(Configured(chosen))


def configurations(operands: Convolution | Block | Dense) -> Sequence[Sequence[str]]:
    """Names that ``configured`` takes, one of each pass; first those that run without."""
    weights = [
        x for name, x in zip(operands._fields, operands, strict=True) if name.startswith("weight") and x is not None
    ]
    return names(operands.x, weights, getattr(operands, "residual", None))
