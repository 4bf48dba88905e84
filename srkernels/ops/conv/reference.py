"""Convolution blocks in eager PyTorch: the oracle. Any device, any dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._dispatch import without_autocast
from ..._layout import laid_out
from . import allocate
from .activation import Epilogue, activate, derivative, sign_survives, slope_gradient
from .arguments import (
    Block,
    Convolution,
    ConvolutionSettings,
    Dense,
    DenseSettings,
    SavedBlock,
    SavedConvolution,
    SavedDense,
)
from .library import convolution, convolution_backward


def block(operands: Convolution, settings: ConvolutionSettings) -> Tensor:
    """The formula, differentiable by autograd: what ``conv2d_act`` equals."""
    x, weight, bias, slope, residual = operands
    y = activate(convolution(x, weight, bias, settings.geometry), settings, slope)
    if settings.scale != 1:
        y = y * settings.scale
    return y if residual is None else residual + y


@without_autocast
def forward(operands: Convolution, settings: ConvolutionSettings, keep: bool) -> list[Tensor]:
    """[y], and with ``keep`` the pre-activation."""
    x, weight, bias, slope, residual = operands
    z = convolution(x, weight, bias, settings.geometry)
    y = activate(z, settings, slope)
    if settings.scale != 1:
        y = y * settings.scale
    if residual is not None:
        y = residual + y
    return [laid_out(y, x), laid_out(z, x)] if keep else [laid_out(y, x)]


@without_autocast
def backward(
    grad: Tensor, saved: SavedConvolution, settings: ConvolutionSettings, needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of x, weight, bias and slope: of those needed. Made of differentiable operations, so that it also
    serves a second derivative.

    ``x`` is read for the weight's gradient alone; without it, ``grad`` has its dtype and layout.
    """
    x, weight, _, slope, kept = saved
    need_x, need_weight, need_bias, need_slope = needs
    if x is None:
        x = allocate.stand_in(grad, weight, settings.geometry)
    grad = grad.to(x.dtype)
    if settings.scale != 1:
        grad = grad * settings.scale
    grad_z = derivative(grad, kept, settings, slope)
    grad_x, grad_weight = convolution_backward(grad_z, x, weight, need_x, need_weight, settings.geometry)
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


def two_convolutions(operands: Block, epilogue: Epilogue) -> Tensor:
    """The formula, differentiable by autograd: what ``residual_block`` equals."""
    x, weight1, bias1, weight2, bias2, slope = operands
    h = activate(convolution(x, weight1, bias1), epilogue, slope)
    y = convolution(h, weight2, bias2)
    return x + (y if epilogue.scale == 1 else y * epilogue.scale)


def first_convolution(x: Tensor, weight1: Tensor, bias1: Tensor | None, epilogue: Epilogue) -> Tensor:
    """What a residual block keeps: its activation, or its input where that does not tell its sign."""
    z = convolution(x, weight1, bias1)
    return activate(z, epilogue, None) if sign_survives(epilogue) else z


@without_autocast
def block_forward(operands: Block, epilogue: Epilogue, keep: bool) -> list[Tensor]:
    """[y], and with ``keep`` the result of ``first_convolution``."""
    x, weight1, bias1, weight2, bias2, slope = operands
    kept = first_convolution(x, weight1, bias1, epilogue)
    h = kept if sign_survives(epilogue) else activate(kept, epilogue, slope)
    y = convolution(h, weight2, bias2)
    y = laid_out(x + (y if epilogue.scale == 1 else y * epilogue.scale), x)
    return [y, laid_out(kept, x)] if keep else [y]


@without_autocast
def block_backward(grad: Tensor, saved: SavedBlock, epilogue: Epilogue, needs: Sequence[bool]) -> list[Tensor]:
    """Gradients of x, weight1, bias1, weight2, bias2 and slope: of those needed.

    Without ``kept`` it is recomputed. Made of differentiable operations.
    """
    x, weight1, bias1, weight2, slope, kept = saved
    need_x, need_weight1, need_bias1, need_weight2, need_bias2, need_slope = needs
    if kept is None:
        kept = first_convolution(x, weight1, bias1, epilogue)
    h = kept if sign_survives(epilogue) else activate(kept, epilogue, slope)
    scaled = grad if epilogue.scale == 1 else grad * epilogue.scale
    first = need_x or need_weight1 or need_bias1 or need_slope
    grad_h, grad_weight2 = convolution_backward(scaled, h, weight2, first, need_weight2)
    grad_x = grad_weight1 = grad_z = None
    if grad_h is not None:
        grad_z = derivative(grad_h, kept, epilogue, slope)
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
    """x | x1 | x2 | x3 | x4: each convolution of a dense block reads everything before it."""
    parts = [x]
    for weight, bias in zip(weights[:4], biases[:4], strict=True):
        parts.append(F.leaky_relu(convolution(torch.cat(parts, 1), weight, bias), slope))
    return torch.cat(parts, 1)


def five_convolutions(operands: Dense, settings: DenseSettings) -> Tensor:
    """The formula, differentiable by autograd: what ``dense_block`` equals."""
    x, weights, biases = operands.x, operands.weights, operands.biases
    features = dense_features(x, weights, biases, settings.slope)
    return x + convolution(features, weights[4], biases[4]) * settings.res_scale


@without_autocast
def dense_forward(operands: Dense, settings: DenseSettings, keep: bool) -> list[Tensor]:
    """[y], and with ``keep`` the features."""
    x, weights, biases = operands.x, operands.weights, operands.biases
    features = dense_features(x, weights, biases, settings.slope)
    y = laid_out(x + convolution(features, weights[4], biases[4]) * settings.res_scale, x)
    return [y, laid_out(features, x)] if keep else [y]


@without_autocast
def dense_backward(grad: Tensor, saved: SavedDense, settings: DenseSettings, needs: Sequence[bool]) -> list[Tensor]:
    """Gradients of those needed of x, weights and biases; from the features, or from x if there are none.

    Made of differentiable operations.
    """
    features, weights = saved.features, saved.weights
    if features is None:
        assert saved.x is not None
        features = dense_features(saved.x, weights, saved.biases, settings.slope)
    c, growth = weights[4].shape[0], weights[0].shape[0]
    # Gradients of x, x1 ... x4 gathered so far; that of x starts as the skip's.
    of_features: list[Tensor | None] = [grad, None, None, None, None]
    of_weights: list[Tensor | None] = [None] * 5
    of_biases: list[Tensor | None] = [None] * 5
    grad_z = grad * settings.res_scale
    for k in reversed(range(5)):
        if k < 4:
            g, x_k = of_features[k + 1], features[:, c + k * growth : c + (k + 1) * growth]
            assert g is not None
            grad_z = torch.where(x_k > 0, g, settings.slope * g)
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
        out.append(laid_out(of_features[0], saved.like))
    out += [laid_out(g, w) for g, w in zip(of_weights, weights, strict=True) if g is not None]
    return out + [g for g in of_biases if g is not None]
