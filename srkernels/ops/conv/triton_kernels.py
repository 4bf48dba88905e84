"""Convolution ops in Triton, each made of the launches of ``triton_launch``.

A residual block is two launches forward. Backward the first data gradient goes through the activation in its epilogue,
the second adds the skip's gradient in its own, and each weight gradient sums up its bias, in shares that a second
launch adds up: six.

A dense block has one buffer forward, x | x1 | x2 | x3 | x4, of which each convolution reads a prefix and writes the
next slice, and one backward, res_scale * grad | g4 | g3 | g2 | g1 with g_k the gradient ahead of activation k: that of
x_k is one convolution of all that came before it in this order, by the filters that read x_k, which are rows and
columns of all filters packed into one tensor. All weight gradients are one product of the two buffers. Forward that is
seven launches, six of filters in channels_last, and nine backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._triton import on_device
from . import allocate
from .activation import LEAKY_RELU, NONE, PRELU, activate, sign_survives
from .triton_launch import (
    activation_gradient,
    channels_last,
    convolve,
    gradient_of_weight,
    gradients_of_weights,
    packed,
)


def _like(x: Tensor, y: Tensor) -> Tensor:
    """``x`` in the layout of ``y``."""
    return x if x.stride() == y.stride() else torch.empty_like(y, dtype=x.dtype).copy_(x)


def _image(x: Tensor, channels: int) -> Tensor:
    """Uninitialised and channels_last, even where ``x``, of one channel, is contiguous as well."""
    n, _, h, w = x.shape
    return x.new_empty((n, h, w, channels)).permute(0, 3, 1, 2)


def _zeroed(out: list[Tensor]) -> list[Tensor]:
    for gradient in out:
        gradient.zero_()
    return out


def _gradients_of_parameters(
    x: Tensor | None, grad_z: Tensor, grad_weight: Tensor | None, grad_bias: Tensor | None, scale: float = 1.0
) -> None:
    """Fills in those that are there, times ``scale``; ``x`` is read for the weight's alone."""
    if grad_bias is not None and (grad_weight is None or grad_z.dtype is torch.float32):
        activation_gradient(channels_last(grad_z), None, None, NONE, 0.0, scale, False, grad_bias, None)
        grad_bias = None
    if grad_weight is not None:
        assert x is not None
        gradient_of_weight(x, grad_z, grad_weight, grad_bias, scale)


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
    """As ``reference.forward``."""
    out = allocate.forward(x, weight, residual, keep)
    y = out[0]
    if y.numel() == 0:
        return out
    with on_device(x.device):
        convolve(
            channels_last(x), weight, y, bias=bias, slope=slope, z=out[1] if keep else None,
            residual=None if residual is None else _like(residual, y),
            activation=activation, negative_slope=negative_slope, scale=scale,
        )  # fmt: skip
    return out


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
    """As ``reference.backward``."""
    need_slope = need_slope and slope is not None
    needs = (need_x, need_weight, need_bias, need_slope)
    out = allocate.gradients(grad, x, weight, slope, *needs)
    if grad.numel() == 0 or weight.numel() == 0:
        return _zeroed(out)
    results = iter(out)
    grad_x, grad_weight, grad_bias, grad_slope = (next(results) if need else None for need in needs)
    with on_device(grad.device):
        grad_z = channels_last(grad.to(weight.dtype))
        if activation != NONE or scale != 1:
            grad_z = activation_gradient(
                grad_z, kept, slope, activation, negative_slope, scale, need_x or need_weight, grad_bias, grad_slope
            )
            grad_bias = None
        if grad_x is not None:
            convolve(grad_z, weight, grad_x, adjoint=True)
        _gradients_of_parameters(None if x is None else channels_last(x), grad_z, grad_weight, grad_bias)
    return out


def _first_convolution(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    slope: Tensor | None,
    activation: int,
    negative_slope: float,
    kept: Tensor | None,
) -> Tensor:
    """The activations h of a residual block, channels_last; fills in ``kept``, which is h if that tells its sign."""
    survives = activation == NONE or sign_survives(activation, negative_slope)
    h = _image(x, weight1.shape[0]) if kept is None else kept if survives else torch.empty_like(kept)
    convolve(
        x, weight1, h, bias=bias1, slope=slope, z=None if survives else kept,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip
    return channels_last(h)


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
    """As ``reference.block_forward``."""
    out = allocate.block_forward(x, weight1, keep)
    y = out[0]
    if y.numel() == 0:
        return out
    with on_device(x.device):
        kept = out[1] if keep else None
        h = _first_convolution(channels_last(x), weight1, bias1, slope, activation, negative_slope, kept)
        convolve(h, weight2, y, bias=bias2, residual=_like(x, y), scale=res_scale)
    return out


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
    """As ``reference.block_backward``."""
    need_slope = need_slope and slope is not None
    needs = (need_x, need_weight1, need_bias1, need_weight2, need_bias2, need_slope)
    out = allocate.block_gradients(x, weight1, weight2, slope, *needs)
    if x.numel() == 0:
        return _zeroed(out)
    results = iter(out)
    grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2, grad_slope = (
        next(results) if need else None for need in needs
    )
    epilogue = (activation, negative_slope)
    survives = activation == NONE or sign_survives(*epilogue)
    with on_device(x.device):
        dense, grad = channels_last(x), channels_last(grad)
        if kept is None:
            kept = _image(dense, weight1.shape[0])
            h = _first_convolution(dense, weight1, bias1, slope, *epilogue, kept)
        else:
            kept = channels_last(kept)
            h = kept if survives or not need_weight2 else activate(kept, *epilogue, slope)
        if need_x or need_weight1 or need_bias1 or need_slope:
            grad_z = torch.empty_like(kept)
            if activation == PRELU:  # its slopes' gradient needs what comes before the derivative
                convolve(grad, weight2, grad_z, adjoint=True, scale=res_scale)
                grad_z = activation_gradient(
                    grad_z, kept, slope, *epilogue, 1.0, need_x or need_weight1, grad_bias1, grad_slope
                )
                grad_bias1 = None
            else:
                convolve(
                    grad, weight2, grad_z, kept=None if activation == NONE else kept, adjoint=True,
                    activation=activation, negative_slope=negative_slope, scale=res_scale,
                )  # fmt: skip
            if grad_x is not None:
                convolve(grad_z, weight1, grad_x, residual=_like(grad, grad_x), adjoint=True)
            _gradients_of_parameters(dense, grad_z, grad_weight1, grad_bias1)
        _gradients_of_parameters(h, grad, grad_weight2, grad_bias2, res_scale)
    return out


def _forward_filters(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """A dense block's, as ``convolve`` reads them: packed in one launch unless they are channels_last already."""
    if all(w.is_contiguous(memory_format=torch.channels_last) for w in weights):
        return weights
    every, row = packed(weights), weights[4].shape[0]
    found = [every[:row]]
    for weight in reversed(weights[:4]):
        found.insert(0, every[row : row + weight.shape[0], : weight.shape[1]])
        row += weight.shape[0]
    return found


def _dense_features(x: Tensor, filters: Sequence[Tensor], biases: Sequence[Tensor | None], slope: float) -> Tensor:
    """x | x1 | x2 | x3 | x4, channels_last as ``x`` is."""
    at, growth = x.shape[1], filters[0].shape[0]
    features = _image(x, at + 4 * growth)
    features[:, :at] = x
    for weight, bias in zip(filters[:4], biases[:4], strict=True):
        convolve(
            features[:, :at], weight, features[:, at : at + growth],
            bias=bias, activation=LEAKY_RELU, negative_slope=slope,
        )  # fmt: skip
        at += growth
    return features


def dense_forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    slope: float,
    res_scale: float,
    keep: bool,
) -> list[Tensor]:
    """As ``reference.dense_forward``."""
    out = allocate.dense_forward(x, weights[0], keep)
    y = out[0]
    if y.numel() == 0:
        return out
    with on_device(x.device):
        filters = _forward_filters(weights)
        features = _dense_features(channels_last(x), filters, biases, slope)
        convolve(features, filters[4], y, bias=biases[4], residual=_like(x, y), scale=res_scale)
    return [y, _like(features, out[1])] if keep else out


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
    """As ``reference.dense_backward``."""
    like = features if x is None else x
    assert like is not None
    out = allocate.dense_gradients(like, weights, needs)
    if grad.numel() == 0:
        return _zeroed(out)
    results = iter(out)
    grad_x, *of_parameters = (next(results) if need else None for need in needs)
    c, growth = weights[4].shape[0], weights[0].shape[0]
    with on_device(grad.device):
        if features is None:
            assert x is not None
            features = _dense_features(channels_last(x), _forward_filters(weights), biases, slope)
        features = channels_last(features)
        gradients = torch.empty_like(features)
        torch.mul(grad, res_scale, out=gradients[:, :c])
        # Where features and gradients have their slices of x_k, and how much of gradients g_k reads.
        slots = [slice(c + k * growth, c + (k + 1) * growth) for k in range(4)]
        ends = [c + (3 - k) * growth for k in range(4)]
        # Rows of ``every`` are in the order of ``gradients``, so that those which read x_k are its first ends[k].
        every = packed(weights)
        for k in (3, 2, 1, 0):
            convolve(
                gradients[:, : ends[k]], every[: ends[k], slots[k]], gradients[:, ends[k] : ends[k] + growth],
                kept=features[:, slots[k]], adjoint=True, activation=LEAKY_RELU, negative_slope=slope,
            )  # fmt: skip
        if grad_x is not None:
            convolve(gradients, every[:, :c], grad_x, residual=_like(grad, grad_x), adjoint=True)
        _gradients_of_dense_parameters(features, gradients, weights, of_parameters[:5], of_parameters[5:])
    return out


def _gradients_of_dense_parameters(
    features: Tensor,
    gradients: Tensor,
    weights: Sequence[Tensor],
    of_weights: Sequence[Tensor | None],
    of_biases: Sequence[Tensor | None],
) -> None:
    """Fills in those that are there, of the others none is kept."""
    biases = [torch.empty_like(w[:, 0, 0, 0]) if b is None else b for w, b in zip(weights, of_biases, strict=True)]
    wants_biases = any(b is not None for b in of_biases)
    if wants_biases and (gradients.dtype is torch.float32 or all(w is None for w in of_weights)):
        every = gradients.new_empty(gradients.shape[1])
        activation_gradient(gradients, None, None, NONE, 0.0, 1.0, False, every, None)
        for bias, found in zip(reversed(biases), every.split([len(b) for b in reversed(biases)]), strict=True):
            bias.copy_(found)
        wants_biases = False
    if all(w is None for w in of_weights):
        return
    last = all(w is None or w.is_contiguous(memory_format=torch.channels_last) for w in of_weights)
    layout = torch.channels_last if last else torch.contiguous_format
    found = [
        torch.empty_like(w, memory_format=layout) if g is None or not g.is_contiguous(memory_format=layout) else g
        for w, g in zip(weights, of_weights, strict=True)
    ]
    gradients_of_weights(features, gradients, found, biases if wants_biases else [])
    for wanted, g in zip(of_weights, found, strict=True):
        if wanted is not None and wanted is not g:
            wanted.copy_(g)
