"""Shapes, dtypes and layouts of the convolution ops' outputs: one place for every backend and for the fakes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._layout import empty_nchw
from .activation import NONE, sign_survives


def keeps_preactivation(activation: int, negative_slope: float, scale: float, has_residual: bool) -> bool:
    """Whether the backward pass of ``conv2d_act`` needs what went into the activation.

    Otherwise it needs nothing (no activation) or reads the sign of the output, which carries it.
    """
    if activation == NONE:
        return False
    # A scale other than 1 can flip the output's sign, or take a small value of a half to zero.
    return has_residual or scale != 1 or not sign_survives(activation, negative_slope)


def image(x: Tensor, weight: Tensor) -> Tensor:
    """Uninitialised result of a convolution that keeps height and width, in the layout of ``x``."""
    n, _, h, w = x.shape
    return empty_nchw(x, (n, weight.shape[0], h, w))


def output(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    y = image(x, weight)
    if residual is None or residual.dtype is y.dtype:
        return y
    return torch.empty_like(y, dtype=torch.promote_types(y.dtype, residual.dtype))


def forward(x: Tensor, weight: Tensor, residual: Tensor | None, keep: bool) -> list[Tensor]:
    """[y], and with ``keep`` the pre-activation."""
    return [output(x, weight, residual), image(x, weight)] if keep else [output(x, weight, residual)]


def _wanted(likes: Sequence[tuple[Tensor, Sequence[int]]], needs: Sequence[bool]) -> list[Tensor]:
    """Uninitialised gradients of those needed: an image or filters in the layout of its tensor, or a vector."""
    return [
        empty_nchw(like, shape) if len(shape) == 4 else like.new_empty(shape)
        for (like, shape), need in zip(likes, needs, strict=False)
        if need
    ]


def _input_shape(grad: Tensor, weight: Tensor) -> tuple[int, ...]:
    n, _, h, w = grad.shape
    return n, weight.shape[1], h, w


def stand_in(grad: Tensor, weight: Tensor) -> Tensor:
    """Uninitialised, for the input of a convolution whose values nobody reads; laid out as ``grad``."""
    return empty_nchw(grad, _input_shape(grad, weight))


def gradients(grad: Tensor, x: Tensor | None, weight: Tensor, slope: Tensor | None, *needs: bool) -> list[Tensor]:
    """Of ``conv2d_act``: those needed of x, weight, bias, slope. Without x, ``grad`` has its dtype and layout."""
    like = grad if x is None else x
    likes = [(like, _input_shape(grad, weight)), (weight, weight.shape), (weight, weight.shape[:1])]
    return _wanted(likes if slope is None else [*likes, (slope, slope.shape)], needs)


def block_forward(x: Tensor, weight1: Tensor, keep: bool) -> list[Tensor]:
    """Of ``residual_block``: [y], and with ``keep`` what its first convolution leaves behind."""
    y = empty_nchw(x, x.shape)
    return [y, image(x, weight1)] if keep else [y]


def block_gradients(x: Tensor, weight1: Tensor, weight2: Tensor, slope: Tensor | None, *needs: bool) -> list[Tensor]:
    """Of ``residual_block``: those needed of x, weight1, bias1, weight2, bias2, slope."""
    likes = [(x, x.shape)]
    for weight in (weight1, weight2):
        likes += [(weight, weight.shape), (weight, weight.shape[:1])]
    return _wanted(likes if slope is None else [*likes, (slope, slope.shape)], needs)


def dense_features(x: Tensor, weight1: Tensor) -> Tensor:
    """Uninitialised x | x1 | x2 | x3 | x4 of ``dense_block``."""
    n, c, h, w = x.shape
    return empty_nchw(x, (n, c + 4 * weight1.shape[0], h, w))


def dense_forward(x: Tensor, weight1: Tensor, keep: bool) -> list[Tensor]:
    """Of ``dense_block``: [y], and with ``keep`` its features."""
    y = empty_nchw(x, x.shape)
    return [y, dense_features(x, weight1)] if keep else [y]


def dense_gradients(like: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    """Uninitialised gradients of x, five weights, five biases: of those needed, in this order.

    ``like``: x or the features, whose layout is that of x.
    """
    n, _, h, w = like.shape
    x = (like, (n, weights[4].shape[0], h, w))
    return _wanted([x, *((t, t.shape) for t in weights), *((t, t.shape[:1]) for t in weights)], needs)
