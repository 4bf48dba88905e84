"""Convolution blocks on CPU: oneDNN's own fused convolution through torch, and one C++ pass for what is between them.

``mkldnn._convolution_pointwise`` adds bias, activation and residual before it stores; it has no autograd of its own.
The data gradient is such a convolution too, with the filters flipped and their channels swapped, so a residual's
gradient is added in its epilogue. The pass between two convolutions of a backward pass multiplies by the activation's
derivative and sums up the gradients of bias and slopes on the way. Dtypes that oneDNN does not know go through
PyTorch's own convolution, epilogues apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._layout import is_channels_last, laid_out
from ..._native import launch
from . import allocate, reference
from .activation import LEAKY_RELU, NONE, PRELU, RELU, activate, sign_survives
from .support import KERNEL_SIZE, amx_available, onednn_runs

_pointwise = torch.ops.mkldnn._convolution_pointwise.default
_pointwise_add = torch.ops.mkldnn._convolution_pointwise.binary
_ONE = [1, 1]
# Halves are summed in fp32, in any order; fp32 itself keeps the order that eager PyTorch adds in.
_HALVES = (torch.bfloat16, torch.float16)


def _dense(x: Tensor) -> Tensor:
    """``x`` in the layout that the output for it has."""
    return x if is_channels_last(x) else x.contiguous()


def _like(x: Tensor, layout: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if is_channels_last(layout) else torch.contiguous_format)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: int = NONE,
    negative_slope: float = 0.0,
    residual: Tensor | None = None,
) -> Tensor:
    """act(conv(x) + bias), or conv(x) + bias + residual, in the layout of dense ``x``."""
    assert residual is None or activation == NONE
    if not onednn_runs(x.dtype):
        y = activate(reference.convolution(x, weight, bias), activation, negative_slope, None)
        return _like(y if residual is None else y.add_(residual), x)
    if residual is not None and is_channels_last(x):
        return _pointwise_add(x, residual, weight, bias, _ONE, _ONE, _ONE, 1, "add", 1.0, None, [], None)
    if activation == LEAKY_RELU:
        return _pointwise(x, weight, bias, _ONE, _ONE, _ONE, 1, "leaky_relu", [negative_slope], "")
    y = _pointwise(x, weight, bias, _ONE, _ONE, _ONE, 1, "none", [], "")
    if activation == RELU:
        launch(y, "relu_in_place", y)  # oneDNN's own ReLU makes zeros of NaNs
        return y
    return y if residual is None else y.add_(residual)


def _data_gradient(grad: Tensor, x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """Of the convolution of ``x``, plus ``residual``, all in one layout."""
    if x.dtype in _HALVES:
        flipped = weight.flip(2, 3).transpose(0, 1).contiguous()
        return _convolution(grad, flipped, None, residual=residual)
    found, _ = reference.convolution_backward(grad, x, weight, True, False)
    assert found is not None
    found = _like(found, x)
    return found if residual is None else found.add_(residual)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """``scale`` times the gradient of ``weight``."""
    if weight.shape[2:] == KERNEL_SIZE and _on_amx(grad, x):
        found = torch.empty(weight.shape, dtype=weight.dtype)
        launch(x, "amx_weight_gradient", x, grad, found, scale)
    else:
        gradient = reference.convolution_backward(grad, x, weight, False, True)[1]
        assert gradient is not None
        found = gradient if scale == 1 else gradient.mul_(scale)
    return laid_out(found, weight)


def _on_amx(grad: Tensor, x: Tensor) -> bool:
    """Whether the core's own weight gradient runs, where it was measured faster than oneDNN's: a quarter.

    It pads rows to 32 pixels, and its sums of more channels leave the cache.
    """
    if x.dtype is not torch.bfloat16 or not amx_available():
        return False
    width, ci, co = x.shape[3], x.shape[1], grad.shape[1]
    fits = ci % 32 == 0 and co % 32 == 0 and ci * co <= 64 * 64 and 8 * width >= 7 * (-(-width // 32) * 32)
    return fits and _pixels(grad) and _pixels(x)


def _pixels(x: Tensor) -> bool:
    """Channels contiguous, pixels one after another, with other channels between them perhaps."""
    n, c, h, w = x.stride()
    return c == 1 and h == x.shape[3] * w and n == x.shape[2] * h


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
    if not x.numel() or not weight.numel() or (residual is not None and residual.dtype is not x.dtype):
        return reference.forward(x, weight, bias, slope, residual, activation, negative_slope, scale, keep)
    x = _dense(x)
    if activation == NONE:
        if scale != 1:
            weight, bias = weight * scale, None if bias is None else bias * scale
        y = _convolution(x, weight, bias, residual=None if residual is None else _like(residual, x))
        return [laid_out(y, x)]
    if not keep and activation != PRELU:
        y = _convolution(x, weight, bias, activation, negative_slope)
    else:
        z = _convolution(x, weight, bias)
        y = activate(z, activation, negative_slope, slope)
    if scale != 1:
        y = y.mul_(scale)
    if residual is not None:
        y = y.add_(residual)
    return [laid_out(y, x), laid_out(z, x)] if keep else [laid_out(y, x)]


def backward(
    grad: Tensor,
    x: Tensor,
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
    needs = (need_x, need_weight, need_bias, need_slope)
    if not x.numel() or not weight.numel():
        return reference.backward(grad, x, weight, slope, kept, activation, negative_slope, scale, *needs)
    dense = _dense(x)
    grad = _like(grad.to(x.dtype), dense)
    grad_z, bias_sum, slope_sum = through_activation(
        grad, kept, activation, negative_slope, slope, scale, need_bias, need_slope
    )
    out = []
    if need_x:
        out.append(laid_out(_data_gradient(grad_z, dense, weight), x))
    if need_weight:
        out.append(_weight_gradient(grad_z, dense, weight))
    if need_bias:
        out.append(bias_sum.to(weight.dtype))
    if need_slope and slope is not None:
        out.append(_of_slopes(slope_sum, slope))
    return out


def _of_slopes(by_channel: Tensor, slope: Tensor) -> Tensor:
    return (by_channel if slope.numel() > 1 else by_channel.sum().view(1)).to(slope.dtype)


def _sums_in(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def through_activation(
    grad: Tensor,
    kept: Tensor | None,
    activation: int,
    negative_slope: float,
    slope: Tensor | None,
    scale: float,
    need_bias: bool,
    need_slope: bool,
    in_place: bool = False,
) -> tuple[Tensor, Any, Any]:
    """(scale * grad * act', its sum for each channel, the slopes' gradient for each channel), of dense operands.

    ``in_place``: ``grad`` is a temporary and may be written over.
    """
    channels = grad.shape[1]
    changes = activation != NONE or scale != 1
    grad_z = torch.empty_like(grad) if changes and not in_place else grad
    bias_sum = grad.new_empty(channels, dtype=torch.float64) if need_bias else None
    slope_sum = grad.new_empty(channels, dtype=torch.float64) if need_slope else None
    if not changes and not need_bias:
        return grad, None, None
    launch(
        grad,
        "activation_backward",
        grad,
        None if kept is None else _like(kept, grad),
        grad_z if changes else None,
        None if slope is None else slope.to(_sums_in(grad)),
        activation,
        negative_slope,
        scale,
        bias_sum,
        slope_sum,
    )
    return grad_z, bias_sum, slope_sum


def _first_convolution(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, activation: int, negative_slope: float
) -> Tensor:
    known = activation if sign_survives(activation, negative_slope) else NONE
    return _convolution(x, weight1, bias1, known, negative_slope)


def _activated(kept: Tensor, activation: int, negative_slope: float, slope: Tensor | None) -> Tensor:
    return kept if sign_survives(activation, negative_slope) else activate(kept, activation, negative_slope, slope)


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
    if not x.numel():
        return reference.block_forward(
            x, weight1, bias1, weight2, bias2, slope, activation, negative_slope, res_scale, keep
        )
    dense = _dense(x)
    kept = _first_convolution(dense, weight1, bias1, activation, negative_slope)
    h = _activated(kept, activation, negative_slope, slope)
    if res_scale != 1:  # on the small operands
        weight2, bias2 = weight2 * res_scale, None if bias2 is None else bias2 * res_scale
    y = laid_out(_convolution(h, weight2, bias2, residual=dense), x)
    return [y, laid_out(kept, x)] if keep else [y]


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
    needs = (need_x, need_weight1, need_bias1, need_weight2, need_bias2, need_slope)
    epilogue = (activation, negative_slope)
    if not x.numel():
        return reference.block_backward(grad, x, weight1, bias1, weight2, slope, kept, *epilogue, res_scale, *needs)
    dense = _dense(x)
    grad = _like(grad, dense)
    kept = _first_convolution(dense, weight1, bias1, *epilogue) if kept is None else _like(kept, dense)
    grad_z: Tensor | None = None
    bias_sum1: Any = None
    slope_sum: Any = None
    if need_x or need_weight1 or need_bias1 or need_slope:
        scaled = weight2 if res_scale == 1 else weight2 * res_scale
        grad_h = _data_gradient(grad, kept, scaled)
        grad_z, bias_sum1, slope_sum = through_activation(
            grad_h, kept, *epilogue, slope, 1.0, need_bias1, need_slope, in_place=True
        )
    out = []
    if need_x and grad_z is not None:
        out.append(laid_out(_data_gradient(grad_z, dense, weight1, residual=grad), x))
    if need_weight1 and grad_z is not None:
        out.append(_weight_gradient(grad_z, dense, weight1))
    if need_bias1:
        out.append(bias_sum1.to(weight1.dtype))
    if need_weight2:
        out.append(_weight_gradient(grad, _activated(kept, *epilogue, slope), weight2, res_scale))
    if need_bias2:
        _, bias_sum2, _ = through_activation(grad, None, NONE, 0.0, None, 1.0, True, False)
        out.append((res_scale * bias_sum2).to(weight2.dtype))
    if need_slope and slope is not None:
        out.append(_of_slopes(slope_sum, slope))
    return out


def _dense_features(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], slope: float) -> Tensor:
    features = allocate.dense_features(x, weights[0])
    at, growth = x.shape[1], weights[0].shape[0]
    features[:, :at] = x
    read = x
    for weight, bias in zip(weights[:4], biases[:4], strict=True):
        features[:, at : at + growth] = _convolution(read, weight, bias, LEAKY_RELU, slope)
        at += growth
        read = _like(features[:, :at], x)
    return features


def dense_forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    slope: float,
    res_scale: float,
    keep: bool,
) -> list[Tensor]:
    if not x.numel():
        return reference.dense_forward(x, weights, biases, slope, res_scale, keep)
    dense = _dense(x)
    features = _dense_features(dense, weights, biases, slope)
    bias = biases[4]
    bias = None if bias is None else bias * res_scale
    y = laid_out(_convolution(features, weights[4] * res_scale, bias, residual=dense), x)
    return [y, features] if keep else [y]


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
    """The gradient of a dense block is a dense block: that of x_k is one convolution of all that came before it,

    grad | g4 | g3 | g2 | g1 with g_k the gradient ahead of activation k, by the filters that read x_k.
    """
    if not grad.numel():
        return reference.dense_backward(grad, x, features, weights, biases, slope, res_scale, needs)
    if features is None:
        assert x is not None
        features = _dense_features(_dense(x), weights, biases, slope)
    grad = _like(grad, features)
    c, growth = weights[4].shape[0], weights[0].shape[0]
    scaled = [*weights[:4], weights[4] * res_scale]
    gradients = torch.empty_like(features)
    gradients[:, :c] = grad
    sums: list[Any] = [None] * 5
    if needs[10]:
        _, sums[4], _ = through_activation(grad, None, NONE, 0.0, None, 1.0, True, False)
        sums[4] = sums[4] * res_scale
    read = grad
    for k in (3, 2, 1, 0):
        slot = slice(c + k * growth, c + (k + 1) * growth)
        readers = torch.cat([w[:, slot] for w in reversed(scaled[k + 1 :])])
        x_k = _like(features[:, slot], grad)
        grad_k, sums[k], _ = through_activation(
            _data_gradient(read, x_k, readers), x_k, LEAKY_RELU, slope, None, 1.0, needs[6 + k], False, in_place=True
        )
        at = c + (3 - k) * growth
        gradients[:, at : at + growth] = grad_k
        read = _like(gradients[:, : at + growth], grad)
    out = []
    if needs[0]:
        readers = torch.cat([w[:, :c] for w in reversed(scaled)])
        out.append(laid_out(_data_gradient(gradients, grad, readers, residual=grad), features if x is None else x))
    slots = [slice(c + (3 - k) * growth, c + (4 - k) * growth) for k in range(4)] + [slice(0, c)]
    every = None
    if any(needs[1:6]) and grad.dtype in _HALVES:
        # One gradient over both buffers: blocks that no filter has are computed too, but nothing is copied.
        all_channels = (features.shape[1], features.shape[1], *KERNEL_SIZE)
        every = _weight_gradient(gradients, features, weights[0].new_empty(all_channels))
    for k, (weight, slot) in enumerate(zip(weights, slots, strict=True)):
        if not needs[1 + k]:
            continue
        if every is not None:
            block = every[slot, : weight.shape[1]].contiguous()
        else:
            block = _weight_gradient(
                _like(gradients[:, slot], grad), _like(features[:, : weight.shape[1]], grad), weight
            )
        out.append(laid_out(block * res_scale if k == 4 else block, weight))
    return out + [s.to(weights[0].dtype) for s, need in zip(sums, needs[6:], strict=True) if need]
