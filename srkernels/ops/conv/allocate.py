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
    return has_residual or scale <= 0 or not sign_survives(activation, negative_slope)


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


def gradients(
    x: Tensor,
    weight: Tensor,
    slope: Tensor | None,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    need_slope: bool,
) -> list[Tensor]:
    """Uninitialised gradients of those needed, in this order."""
    out = []
    if need_x:
        out.append(empty_nchw(x, x.shape))
    if need_weight:
        out.append(empty_nchw(weight, weight.shape))
    if need_bias:
        out.append(weight.new_empty(weight.shape[0]))
    if need_slope and slope is not None:
        out.append(slope.new_empty(slope.shape))
    return out


def block_forward(x: Tensor, weight1: Tensor, keep: bool) -> list[Tensor]:
    """Of ``residual_block``: [y], and with ``keep`` what its first convolution leaves behind."""
    y = empty_nchw(x, x.shape)
    return [y, image(x, weight1)] if keep else [y]


def block_gradients(
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    slope: Tensor | None,
    need_x: bool,
    need_weight1: bool,
    need_bias1: bool,
    need_weight2: bool,
    need_bias2: bool,
    need_slope: bool,
) -> list[Tensor]:
    """Uninitialised gradients of those needed, in this order."""
    out = []
    if need_x:
        out.append(empty_nchw(x, x.shape))
    if need_weight1:
        out.append(empty_nchw(weight1, weight1.shape))
    if need_bias1:
        out.append(weight1.new_empty(weight1.shape[0]))
    if need_weight2:
        out.append(empty_nchw(weight2, weight2.shape))
    if need_bias2:
        out.append(weight2.new_empty(weight2.shape[0]))
    if need_slope and slope is not None:
        out.append(slope.new_empty(slope.shape))
    return out


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
    out = [empty_nchw(like, (n, weights[4].shape[0], h, w))] if needs[0] else []
    out += [empty_nchw(t, t.shape) for t, need in zip(weights, needs[1:6], strict=True) if need]
    return out + [t.new_empty(t.shape[0]) for t, need in zip(weights, needs[6:], strict=True) if need]
