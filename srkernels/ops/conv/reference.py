"""Convolution blocks in eager PyTorch: the oracle. Any device, any dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._dispatch import without_autocast
from ..._layout import laid_out
from . import allocate
from .activation import activate, derivative, sign_survives, slope_gradient


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Stride 1, zero padding that keeps height and width."""
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    activation: int,
    negative_slope: float,
    scale: float,
) -> Tensor:
    """The formula, differentiable by autograd: what ``conv2d_act`` equals."""
    y = activate(convolution(x, weight, bias), activation, negative_slope, slope)
    if scale != 1:
        y = y * scale
    return y if residual is None else residual + y


@without_autocast
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    activation: int,
    negative_slope: float,
    scale: float,
    keep: bool,
) -> list[Tensor]:
    z = convolution(x, weight, bias)
    y = activate(z, activation, negative_slope, slope)
    if scale != 1:
        y = y * scale
    if residual is not None:
        y = residual + y
    return [laid_out(y, x), laid_out(z, x)] if keep else [laid_out(y, x)]


@without_autocast
def backward(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor,
    slope: Tensor | None,
    kept: Tensor | None,
    activation: int,
    negative_slope: float,
    scale: float,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    need_slope: bool,
) -> list[Tensor]:
    """Gradients of those needed. Made of differentiable operations, so that it also serves a second derivative.

    ``x`` is read for the weight's gradient alone; without it, ``grad`` has its dtype and layout.
    """
    if x is None:
        x = allocate.stand_in(grad, weight)
    grad = grad.to(x.dtype)
    if scale != 1:
        grad = grad * scale
    grad_z = derivative(grad, kept, activation, negative_slope, slope)
    grad_x, grad_weight = convolution_backward(grad_z, x, weight, need_x, need_weight)
    out = []
    if grad_x is not None:
        out.append(laid_out(grad_x, x))
    if grad_weight is not None:
        out.append(laid_out(grad_weight, weight))
    if need_bias:
        out.append(grad_z.sum((0, 2, 3)))
    if need_slope and slope is not None:
        assert kept is not None
        out.append(slope_gradient(grad, kept, slope))
    return out


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``x`` and ``weight``; None for what is not needed."""
    if not need_x and not need_weight:
        return None, None
    padding = [weight.shape[2] // 2, weight.shape[3] // 2]
    weight = laid_out(weight, weight)  # PyTorch's convolution of halves takes no permuted filters
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [need_x, need_weight, False]
    )
    return grad_x, grad_weight


def two_convolutions(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    slope: Tensor | None,
    activation: int,
    negative_slope: float,
    res_scale: float,
) -> Tensor:
    """The formula, differentiable by autograd: what ``residual_block`` equals."""
    h = activate(convolution(x, weight1, bias1), activation, negative_slope, slope)
    y = convolution(h, weight2, bias2)
    return x + (y if res_scale == 1 else y * res_scale)


def first_convolution(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, activation: int, negative_slope: float
) -> Tensor:
    """What a residual block keeps: its activation, or what goes into it where that does not tell its sign."""
    z = convolution(x, weight1, bias1)
    return activate(z, activation, negative_slope, None) if sign_survives(activation, negative_slope) else z


@without_autocast
def block_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    slope: Tensor | None,
    activation: int,
    negative_slope: float,
    res_scale: float,
    keep: bool,
) -> list[Tensor]:
    """[y], and with ``keep`` the first convolution's, as ``first_convolution``."""
    kept = first_convolution(x, weight1, bias1, activation, negative_slope)
    h = kept if sign_survives(activation, negative_slope) else activate(kept, activation, negative_slope, slope)
    y = convolution(h, weight2, bias2)
    y = laid_out(x + (y if res_scale == 1 else y * res_scale), x)
    return [y, laid_out(kept, x)] if keep else [y]


@without_autocast
def block_backward(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    slope: Tensor | None,
    kept: Tensor | None,
    activation: int,
    negative_slope: float,
    res_scale: float,
    need_x: bool,
    need_weight1: bool,
    need_bias1: bool,
    need_weight2: bool,
    need_bias2: bool,
    need_slope: bool,
) -> list[Tensor]:
    """Gradients of those needed; without ``kept`` it is computed again. Made of differentiable operations."""
    if kept is None:
        kept = first_convolution(x, weight1, bias1, activation, negative_slope)
    h = kept if sign_survives(activation, negative_slope) else activate(kept, activation, negative_slope, slope)
    scaled = grad if res_scale == 1 else grad * res_scale
    first = need_x or need_weight1 or need_bias1 or need_slope
    grad_h, grad_weight2 = convolution_backward(scaled, h, weight2, first, need_weight2)
    grad_x = grad_weight1 = grad_z = None
    if grad_h is not None:
        grad_z = derivative(grad_h, kept, activation, negative_slope, slope)
        grad_x, grad_weight1 = convolution_backward(grad_z, x, weight1, need_x, need_weight1)
    out = []
    if grad_x is not None:
        out.append(laid_out(grad + grad_x, x))
    if grad_weight1 is not None:
        out.append(laid_out(grad_weight1, weight1))
    if need_bias1 and grad_z is not None:
        out.append(grad_z.sum((0, 2, 3)))
    if grad_weight2 is not None:
        out.append(laid_out(grad_weight2, weight2))
    if need_bias2:
        out.append(scaled.sum((0, 2, 3)))
    if need_slope and slope is not None and grad_h is not None:
        out.append(slope_gradient(grad_h, kept, slope))
    return out


def dense_features(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], slope: float) -> Tensor:
    """x | x1 | x2 | x3 | x4: each convolution of a dense block reads all that was there before it."""
    parts = [x]
    for weight, bias in zip(weights[:4], biases[:4], strict=True):
        parts.append(F.leaky_relu(convolution(torch.cat(parts, 1), weight, bias), slope))
    return torch.cat(parts, 1)


def five_convolutions(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], slope: float, res_scale: float
) -> Tensor:
    """The formula, differentiable by autograd: what ``dense_block`` equals."""
    return x + convolution(dense_features(x, weights, biases, slope), weights[4], biases[4]) * res_scale


@without_autocast
def dense_forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    slope: float,
    res_scale: float,
    keep: bool,
) -> list[Tensor]:
    """[y], and with ``keep`` the features."""
    features = dense_features(x, weights, biases, slope)
    y = laid_out(x + convolution(features, weights[4], biases[4]) * res_scale, x)
    return [y, laid_out(features, x)] if keep else [y]


@without_autocast
def dense_backward(
    grad: Tensor,
    x: Tensor | None,
    features: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    slope: float,
    res_scale: float,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of those needed of x, weights and biases; from the features, or from x if there are none.

    Made of differentiable operations.
    """
    if features is None:
        assert x is not None
        features = dense_features(x, weights, biases, slope)
    c, growth = weights[4].shape[0], weights[0].shape[0]
    # Gradients of x, x1 ... x4 gathered so far; that of x starts as the skip's.
    of_features: list[Tensor | None] = [grad, None, None, None, None]
    of_weights: list[Tensor | None] = [None] * 5
    of_biases: list[Tensor | None] = [None] * 5
    grad_z = grad * res_scale
    for k in reversed(range(5)):
        if k < 4:
            g, x_k = of_features[k + 1], features[:, c + k * growth : c + (k + 1) * growth]
            assert g is not None
            grad_z = torch.where(x_k > 0, g, slope * g)
        read = features[:, : c + k * growth]
        grad_read, of_weights[k] = convolution_backward(grad_z, read, weights[k], True, needs[1 + k])
        of_biases[k] = grad_z.sum((0, 2, 3)) if needs[6 + k] else None
        assert grad_read is not None
        for slot, part in enumerate(grad_read.split([c] + [growth] * k, 1)):
            before = of_features[slot]
            of_features[slot] = part if before is None else before + part
    out = []
    if needs[0]:
        assert of_features[0] is not None
        out.append(laid_out(of_features[0], features if x is None else x))
    out += [laid_out(g, w) for g, w in zip(of_weights, weights, strict=True) if g is not None]
    return out + [g for g in of_biases if g is not None]
