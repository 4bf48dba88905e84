"""Convolution blocks on CPU: the core's own convolution on Intel AMX or oneDNN's through torch, and the passes between.

oneDNN's ``mkldnn._convolution_pointwise`` adds bias, activation and residual before it stores; it has no autograd of
its own, and takes dense tensors only. The data gradient is such a convolution too, with the filters flipped and their
channels swapped, so a residual's gradient is added in its epilogue. One pass then multiplies by the activation's
derivative and sums up the gradients of bias and slopes, where AMX does not do so in the epilogue (``amx``). Dtypes that
oneDNN does not support go through PyTorch's own convolution, with separate epilogues.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._layout import is_channels_last, laid_out
from ..._native import launch
from . import allocate, amx, library
from .activation import CONVOLUTION, LEAKY_RELU, NONE, PRELU, RELU, Epilogue, Follows, activate, sign_survives
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
from .support import KERNEL_SIZE, onednn_runs

_pointwise = torch.ops.mkldnn._convolution_pointwise.default
_pointwise_add = torch.ops.mkldnn._convolution_pointwise.binary
_ONE = [1, 1]
# Halves are summed in fp32, in any order; fp32 itself keeps the order that eager PyTorch adds in.
_HALVES = (torch.bfloat16, torch.float16)
# Before 2.13 torch converted the operands of ``_pointwise`` to channels_last, whose sums err three times as much.
_TURNS_IMAGES = torch.__version__ < "2.13"  # compares as versions, not as text


def _dense(x: Tensor) -> Tensor:
    """``x`` in the layout of the output for it."""
    return x if is_channels_last(x) else x.contiguous()


def _like(x: Tensor, layout: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if is_channels_last(layout) else torch.contiguous_format)


def _packed(x: Tensor) -> Tensor:
    """``x``, copied where it is a channel slice."""
    if x.is_contiguous() or is_channels_last(x):
        return x
    return x.contiguous(memory_format=torch.channels_last if x.stride(1) == 1 else torch.contiguous_format)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    epilogue: Follows = CONVOLUTION,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """scale * act(conv(x) + bias) + residual, in the layout of ``x``; ``x`` and ``out`` may be channel slices."""
    bias = None if bias is None else bias.contiguous()  # oneDNN reads it as such, whatever its stride
    if amx.convolves(x, weight):
        return amx.convolution(x, weight, bias, epilogue, residual=residual, out=out)
    y = _convolution_of_dense(_packed(x), weight, bias, epilogue, residual)
    return y if out is None else out.copy_(y)


def _convolution_of_dense(
    x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Follows, residual: Tensor | None
) -> Tensor:
    activation, negative_slope, scale = epilogue.activation, epilogue.negative_slope, epilogue.scale
    if activation == NONE and scale != 1:  # scales the small operands
        weight, bias, scale = weight * scale, None if bias is None else bias * scale, 1.0
    turned = _TURNS_IMAGES and x.dtype not in _HALVES and not is_channels_last(x)
    if turned or not onednn_runs(x.dtype):
        y = activate(library.convolution(x, weight, bias), epilogue, None)
    elif activation == NONE and residual is not None and is_channels_last(x):
        return _pointwise_add(x, residual, weight, bias, _ONE, _ONE, _ONE, 1, "add", 1.0, None, [], None)
    elif activation == LEAKY_RELU:
        y = _pointwise(x, weight, bias, _ONE, _ONE, _ONE, 1, "leaky_relu", [negative_slope], "")
    else:
        y = _pointwise(x, weight, bias, _ONE, _ONE, _ONE, 1, "none", [], "")
        if activation == RELU:
            launch(y, "relu_in_place", y)  # oneDNN's own ReLU turns NaNs into zeros
    y = _like(y, x)  # channels_last filters make the image channels_last
    if scale != 1:
        y = y.mul_(scale)
    return y if residual is None else y.add_(residual)


def _data_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, scale: float = 1.0, residual: Tensor | None = None
) -> Tensor:
    """``scale`` times the convolution's gradient of ``x``, plus ``residual``, all in one layout."""
    if amx.convolves(grad, weight, adjoint=True):
        return amx.convolution(grad, weight, None, Epilogue(scale=scale), adjoint=True, residual=residual)
    grad = _packed(grad)
    if x.dtype in _HALVES:
        flipped = weight.flip(2, 3).transpose(0, 1).contiguous()
        return _convolution_of_dense(grad, flipped, None, Epilogue(scale=scale), residual)
    found, _ = library.convolution_backward(grad, x, weight if scale == 1 else weight * scale, True, False)
    assert found is not None
    found = _like(found, x)
    return found if residual is None else found.add_(residual)


def _gradient_before(
    grad: Tensor,
    weight: Tensor,
    activated: Activated,
    scale: float,
    need_bias: bool,
    need_slope: bool,
    out: Tensor | None = None,
) -> tuple[Tensor, Any, Any]:
    """``scale`` times the data gradient of a convolution whose input was ``activated``, ahead of the activation.

    Returns what ``through_activation`` does. With ``out``, ``grad`` and what was kept may also be channel slices.
    """
    kept, epilogue, slope = activated
    if epilogue.activation != PRELU and amx.convolves(grad, weight, adjoint=True):
        sums = grad.new_empty(weight.shape[1], dtype=torch.float64) if need_bias else None
        scaled = Epilogue(epilogue.activation, epilogue.negative_slope, scale)
        return amx.convolution(grad, weight, None, scaled, adjoint=True, kept=kept, out=out, sums=sums), sums, None
    kept = _packed(kept)
    by_activation = _data_gradient(grad, kept, weight, scale)
    unscaled = Activated(kept, Epilogue(epilogue.activation, epilogue.negative_slope), slope)
    found, bias_sum, slope_sum = through_activation(by_activation, unscaled, need_bias, need_slope, in_place=True)
    return found if out is None else out.copy_(found), bias_sum, slope_sum


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """``scale`` times the gradient of ``weight``."""
    if amx.takes_weight_gradients(grad, x, [weight]):
        return laid_out(amx.weight_gradients(grad, x, [weight], [scale])[0], weight)
    if scale != 1 and grad.dtype is torch.float16:  # unscaled sums may leave its range
        grad, scale = grad * scale, 1.0
    found = library.convolution_backward(grad, x, weight, False, True)[1]
    assert found is not None
    return laid_out(found if scale == 1 else found.mul_(scale), weight)


def _zeroed(out: list[Tensor]) -> list[Tensor]:
    for gradient in out:
        gradient.zero_()
    return out


def forward(operands: Convolution, settings: ConvolutionSettings, keep: bool) -> list[Tensor]:
    """As ``reference.forward``."""
    x, weight, bias, slope, residual = operands
    scale = settings.scale
    if not x.numel():
        return allocate.forward(operands, keep)
    x = _dense(x)
    residual = None if residual is None else _like(residual, x)
    alike = residual is None or residual.dtype is x.dtype
    if settings.activation != PRELU and not keep and alike:
        return [laid_out(_convolution(x, weight, bias, settings, residual), x)]
    z = _convolution(x, weight, bias)
    y = activate(z, settings, slope)
    if scale != 1:
        y = y.mul_(scale)
    if residual is not None:
        y = y.add_(residual) if alike else residual + y
    return [laid_out(y, x), laid_out(z, x)] if keep else [laid_out(y, x)]


def backward(
    grad: Tensor, saved: SavedConvolution, settings: ConvolutionSettings, needs: Sequence[bool]
) -> list[Tensor]:
    """As ``reference.backward``."""
    x, weight, _, slope, kept = saved
    need_x, need_weight, need_bias, need_slope = needs
    if not grad.numel():
        return _zeroed(allocate.gradients(grad, saved, needs))
    if x is None:
        x = allocate.stand_in(grad, weight)
    dense = _dense(x)
    grad = _like(grad.to(x.dtype), dense)
    grad_z, bias_sum, slope_sum = through_activation(grad, Activated(kept, settings, slope), need_bias, need_slope)
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


class Activated(NamedTuple):
    """What a derivative of an activation needs: output or input of it, ``epilogue``, PReLU's slopes."""

    kept: Any
    epilogue: Follows
    slope: Tensor | None


def through_activation(
    grad: Tensor, activated: Activated, need_bias: bool, need_slope: bool, in_place: bool = False
) -> tuple[Tensor, Any, Any]:
    """(scale * grad * act', its sum per channel, the slopes' gradient per channel), of dense operands.

    ``in_place``: ``grad`` is a temporary and may be overwritten.
    """
    kept, epilogue, slope = activated
    channels = grad.shape[1]
    changes = epilogue.activation != NONE or epilogue.scale != 1
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
        None if slope is None else slope.to(_sums_in(grad)).contiguous(),
        epilogue.activation,
        epilogue.negative_slope,
        epilogue.scale,
        bias_sum,
        slope_sum,
    )
    return grad_z, bias_sum, slope_sum


def _bias_sum(grad: Tensor) -> Any:
    """Sum of each channel, in fp64."""
    return through_activation(grad, Activated(None, CONVOLUTION, None), True, False)[1]


def _first_convolution(x: Tensor, weight1: Tensor, bias1: Tensor | None, epilogue: Epilogue) -> Tensor:
    known = epilogue._replace(scale=1.0) if sign_survives(epilogue) else CONVOLUTION
    return _convolution(x, weight1, bias1, known)


def _activation_of(kept: Tensor, epilogue: Epilogue, slope: Tensor | None) -> Tensor:
    return kept if sign_survives(epilogue) else activate(kept, epilogue, slope)


def block_forward(operands: Block, epilogue: Epilogue, keep: bool) -> list[Tensor]:
    """As ``reference.block_forward``."""
    x, weight1, bias1, weight2, bias2, slope = operands
    if not x.numel():
        return allocate.block_forward(x, weight1, keep)
    dense = _dense(x)
    kept = _first_convolution(dense, weight1, bias1, epilogue)
    h = _activation_of(kept, epilogue, slope)
    y = laid_out(_convolution(h, weight2, bias2, Epilogue(scale=epilogue.scale), dense), x)
    return [y, laid_out(kept, x)] if keep else [y]


def block_backward(grad: Tensor, saved: SavedBlock, epilogue: Epilogue, needs: Sequence[bool]) -> list[Tensor]:
    """As ``reference.block_backward``."""
    x, weight1, bias1, weight2, slope, kept = saved
    need_x, need_weight1, need_bias1, need_weight2, need_bias2, need_slope = needs
    if not x.numel():
        return _zeroed(allocate.block_gradients(saved, needs))
    dense = _dense(x)
    grad = _like(grad, dense)
    kept = _first_convolution(dense, weight1, bias1, epilogue) if kept is None else _like(kept, dense)
    grad_z: Tensor | None = None
    bias_sum1: Any = None
    slope_sum: Any = None
    if need_x or need_weight1 or need_bias1 or need_slope:
        activated = Activated(kept, epilogue, slope)
        grad_z, bias_sum1, slope_sum = _gradient_before(
            grad, weight2, activated, epilogue.scale, need_bias1, need_slope
        )
    out = []
    if need_x and grad_z is not None:
        out.append(laid_out(_data_gradient(grad_z, dense, weight1, residual=grad), x))
    if need_weight1 and grad_z is not None:
        out.append(_weight_gradient(grad_z, dense, weight1))
    if need_bias1:
        out.append(bias_sum1.to(weight1.dtype))
    if need_weight2:
        out.append(_weight_gradient(grad, _activation_of(kept, epilogue, slope), weight2, epilogue.scale))
    if need_bias2:
        out.append((epilogue.scale * _bias_sum(grad)).to(weight2.dtype))
    if need_slope and slope is not None:
        out.append(_of_slopes(slope_sum, slope))
    return out


def _dense_features(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], slope: float) -> Tensor:
    features = allocate.dense_features(x, weights[0])
    at, growth = x.shape[1], weights[0].shape[0]
    features[:, :at] = x
    for weight, bias in zip(weights[:4], biases[:4], strict=True):
        slot = features[:, at : at + growth]
        _convolution(features[:, :at], weight, bias, Epilogue(LEAKY_RELU, slope), out=slot)
        at += growth
    return features


def dense_forward(operands: Dense, settings: DenseSettings, keep: bool) -> list[Tensor]:
    """As ``reference.dense_forward``."""
    x, weights, biases = operands.x, operands.weights, operands.biases
    if not x.numel():
        return allocate.dense_forward(x, weights[0], keep)
    dense = _dense(x)
    features = _dense_features(dense, weights, biases, settings.slope)
    y = laid_out(_convolution(features, weights[4], biases[4], Epilogue(scale=settings.res_scale), dense), x)
    return [y, features] if keep else [y]


def dense_backward(grad: Tensor, saved: SavedDense, settings: DenseSettings, needs: Sequence[bool]) -> list[Tensor]:
    """The gradient of a dense block is a dense block: that of x_k is one convolution of all that came before it,

    res_scale * grad | g4 | g3 | g2 | g1 with g_k the gradient ahead of activation k, by the filters that read x_k.
    """
    if not grad.numel():
        return _zeroed(allocate.dense_gradients(saved, needs))
    features, weights, like = saved.features, saved.weights, saved.like
    slope, res_scale = settings
    if features is None:
        features = _dense_features(_dense(like), weights, saved.biases, slope)
    grad = _like(grad, features)
    if grad.dtype not in _HALVES:
        return _dense_backward_in_order(grad, features, like, weights, settings, needs)
    c, growth = weights[4].shape[0], weights[0].shape[0]
    gradients = torch.empty_like(features)
    torch.mul(grad, res_scale, out=gradients[:, :c])
    sums: list[Any] = [None] * 5
    if needs[10]:
        sums[4] = _bias_sum(grad) * res_scale
    for k in (3, 2, 1, 0):
        slot = slice(c + k * growth, c + (k + 1) * growth)
        at = c + (3 - k) * growth
        readers = torch.cat([w[:, slot] for w in reversed(weights[k + 1 :])])
        activated = Activated(features[:, slot], Epilogue(LEAKY_RELU, slope), None)
        before = gradients[:, at : at + growth]
        _, sums[k], _ = _gradient_before(gradients[:, :at], readers, activated, 1.0, needs[6 + k], False, out=before)
    out = []
    if needs[0]:
        readers = torch.cat([w[:, :c] for w in reversed(weights)])
        out.append(laid_out(_data_gradient(gradients, grad, readers, residual=grad), like))
    if any(needs[1:6]):
        out += _dense_weight_gradients(gradients, features, weights, needs[1:6])
    return out + [s.to(weights[0].dtype) for s, need in zip(sums, needs[6:], strict=True) if need]


def _dense_backward_in_order(
    grad: Tensor,
    features: Tensor,
    like: Tensor,
    weights: Sequence[Tensor],
    settings: DenseSettings,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Convolution by convolution, adding as eager PyTorch does: in fp32 one convolution's longer sums would show."""
    c, growth = weights[4].shape[0], weights[0].shape[0]
    grads: list[Any] = [None] * 5
    sums: list[Any] = [None] * 5
    last = Activated(None, Epilogue(scale=settings.res_scale), None)
    grad_z, sums[4], _ = through_activation(grad, last, needs[10], False)
    # Gradients of x | x1 | x2 | x3 | x4, accumulated.
    gathered, grads[4] = library.convolution_backward(grad_z, features, weights[4], True, needs[5])
    assert gathered is not None
    gathered[:, :c] += grad
    for k in (3, 2, 1, 0):
        before = c + k * growth
        slot = slice(before, before + growth)
        read, x_k = (_like(features[:, part], grad) for part in (slice(before), slot))
        activated = Activated(x_k, Epilogue(LEAKY_RELU, settings.slope), None)
        grad_z, sums[k], _ = through_activation(_like(gathered[:, slot], grad), activated, needs[6 + k], False)
        grad_read, grads[k] = library.convolution_backward(grad_z, read, weights[k], True, needs[1 + k])
        assert grad_read is not None
        gathered[:, :before] += grad_read
    out = [laid_out(gathered[:, :c], like)] if needs[0] else []
    out += [laid_out(g, w) for g, w, need in zip(grads, weights, needs[1:], strict=False) if need]
    return out + [s.to(weights[0].dtype) for s, need in zip(sums, needs[6:], strict=True) if need]


def _dense_weight_gradients(
    gradients: Tensor, features: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients needed of a dense block's filters in halves, from the buffers of ``dense_backward``."""
    c, growth = weights[4].shape[0], weights[0].shape[0]
    slots = [slice(c + (3 - k) * growth, c + (4 - k) * growth) for k in range(4)] + [slice(0, c)]
    if amx.takes_weight_gradients(gradients, features, weights):
        found = amx.weight_gradients(gradients, features, weights[::-1], [1.0] * 5)[::-1]
    else:
        # One gradient over both buffers: blocks that belong to no filter are computed too, but nothing is copied.
        every = weights[0].new_empty((features.shape[1], features.shape[1], *KERNEL_SIZE))
        every = _weight_gradient(gradients, features, every)
        found = [every[slot, : w.shape[1]].contiguous() for slot, w in zip(slots, weights, strict=True)]
    return [laid_out(f, w) for f, w, need in zip(found, weights, needs, strict=True) if need]
