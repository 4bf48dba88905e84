"""Shapes, dtypes and layouts of the convolution ops' outputs: one place for every backend and for the fakes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._layout import empty_nchw
from .activation import NONE, Follows, sign_survives
from .arguments import Convolution, SavedBlock, SavedConvolution, SavedDense
from .geometry import PLAIN, groups_of, input_size, output_size


def keeps_preactivation(epilogue: Follows, has_residual: bool) -> bool:
    """Whether the backward pass of ``conv2d_act`` needs what went into the activation.

    Otherwise it needs nothing (no activation) or reads the sign of the output, which carries it.
    """
    if epilogue.activation == NONE:
        return False
    # A scale other than 1 can flip the output's sign, or underflow a small half to zero.
    return has_residual or epilogue.scale != 1 or not sign_survives(epilogue)


def image(x: Tensor, weight: Tensor, dtype: torch.dtype | None = None, geometry: Sequence[int] = PLAIN) -> Tensor:
    """Uninitialised result of a convolution, in the layout of ``x``."""
    n, _, h, w = x.shape
    if geometry:
        h, w = output_size(geometry, (h, w), weight.shape[2:])
    return empty_nchw(x, (n, weight.shape[0], h, w), dtype)


def forward(operands: Convolution, keep: bool, geometry: Sequence[int] = PLAIN) -> list[Tensor]:
    """For ``conv2d_act``: [y], and with ``keep`` the pre-activation."""
    x, weight, _, _, residual = operands
    y = image(x, weight, None if residual is None else torch.promote_types(x.dtype, residual.dtype), geometry)
    return [y, image(x, weight, None, geometry)] if keep else [y]


def _wanted(likes: Sequence[tuple[Tensor | None, Sequence[int]]], needs: Sequence[bool]) -> list[Tensor]:
    """Uninitialised gradients of those needed: an image or filters in the layout of its tensor, or a vector."""
    return [
        empty_nchw(like, shape) if len(shape) == 4 else like.new_empty(shape)
        for (like, shape), need in zip(likes, needs, strict=True)
        if need and like is not None
    ]


def _read(grad: Tensor, weight: Tensor, geometry: Sequence[int]) -> tuple[int, ...]:
    """Shape of the image that a convolution has read."""
    n, _, h, w = grad.shape
    if not geometry:
        return n, weight.shape[1], h, w
    return n, weight.shape[1] * groups_of(geometry), *input_size(geometry, (h, w), weight.shape[2:])


def stand_in(grad: Tensor, weight: Tensor, geometry: Sequence[int] = PLAIN) -> Tensor:
    """Uninitialised stand-in for a convolution's input that nobody reads; laid out as ``grad``."""
    return empty_nchw(grad, _read(grad, weight, geometry))


def _of_convolution(weight: Tensor) -> list[tuple[Tensor | None, Sequence[int]]]:
    return [(weight, weight.shape), (weight, weight.shape[:1])]


def _of_slopes(slope: Tensor | None) -> tuple[Tensor | None, Sequence[int]]:
    return slope, () if slope is None else slope.shape


def gradients(
    grad: Tensor, saved: SavedConvolution, needs: Sequence[bool], geometry: Sequence[int] = PLAIN
) -> list[Tensor]:
    """``conv2d_act``'s gradients needed of x, weight, bias, slope. Without x, ``grad`` has its dtype and layout."""
    x = (grad, _read(grad, saved.weight, geometry)) if saved.x is None else (saved.x, saved.x.shape)
    return _wanted([x, *_of_convolution(saved.weight), _of_slopes(saved.slope)], needs)


def block_forward(x: Tensor, weight1: Tensor, keep: bool) -> list[Tensor]:
    """Outputs of ``residual_block``: [y], with ``keep`` also what its first convolution keeps."""
    y = empty_nchw(x, x.shape)
    return [y, image(x, weight1)] if keep else [y]


def block_gradients(saved: SavedBlock, needs: Sequence[bool]) -> list[Tensor]:
    """``residual_block``'s gradients needed of x, weight1, bias1, weight2, bias2, slope."""
    convolutions = [*_of_convolution(saved.weight1), *_of_convolution(saved.weight2)]
    return _wanted([(saved.x, saved.x.shape), *convolutions, _of_slopes(saved.slope)], needs)


def dense_features(x: Tensor, weight1: Tensor) -> Tensor:
    """Uninitialised x | x1 | x2 | x3 | x4 of ``dense_block``."""
    n, c, h, w = x.shape
    return empty_nchw(x, (n, c + 4 * weight1.shape[0], h, w))


def dense_forward(x: Tensor, weight1: Tensor, keep: bool) -> list[Tensor]:
    """Outputs of ``dense_block``: [y], with ``keep`` also its features."""
    y = empty_nchw(x, x.shape)
    return [y, dense_features(x, weight1)] if keep else [y]


def dense_gradients(saved: SavedDense, needs: Sequence[bool]) -> list[Tensor]:
    """Uninitialised gradients of x, five weights, five biases: of those needed, in this order."""
    like, weights = saved.like, saved.weights
    n, _, h, w = like.shape
    x = (like, (n, weights[4].shape[0], h, w))
    return _wanted([x, *((t, t.shape) for t in weights), *((t, t.shape[:1]) for t in weights)], needs)
