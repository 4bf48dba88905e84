"""Convolution blocks: public functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._layout import is_channels_last, laid_out
from ..._validate import check_image, choice, describe, number
from . import op as registered
from .activation import ACTIVATIONS, Epilogue
from .arguments import Block, Convolution, ConvolutionSettings, Dense, DenseSettings
from .checks import (
    DEFAULT_LEAKY_SLOPE,
    DENSE_PARAMETERS,
    SAVE,
    Passes,
    cast_by_autocast,
    check_convolution,
    check_dense,
    check_dtypes,
    check_groups,
    dense_slope,
    five_tensors,
    geometry_of,
    slopes_of,
)
from .geometry import PLAIN

_ONE, _ZEROS = 1, "zeros"


def conv2d_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "relu",
    slope: float | Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    stride: int | tuple[int, int] = _ONE,
    padding: str | int | tuple[int, int] | None = None,
    dilation: int | tuple[int, int] = _ONE,
    groups: int = _ONE,
    padding_mode: str = _ZEROS,
) -> Tensor:
    """``scale * act(conv2d(x, weight) + bias) + residual``: a convolution and what follows it, in one pass.

    Args:
        x: (N, Cin, H, W), fp16, bf16, fp32 or fp64, any strides; channels_last is the fast layout.
        weight: (Cout, Cin / groups, kh, kw). 3x3 that keeps height and width has kernels of ours; any other runs in
            PyTorch's own, with what follows in one pass on the backend "pointwise".
        bias: (Cout,) or None.
        activation: "none", "relu", "leaky_relu" or "prelu".
        slope: for "leaky_relu" a number, 0.2 if None; for "prelu" a tensor of 1 or Cout slopes, differentiable.
        residual: of the result's shape, added last.
        scale: a number.
        stride, dilation, groups: as in ``F.conv2d``.
        padding: as in ``F.conv2d``: a number of pixels, one for each axis, "valid" or "same"; None, for odd kernels,
            is half of what the filter spans: with stride 1 it keeps height and width.
        padding_mode: "zeros", "reflect", "replicate" or "circular", as in ``nn.Conv2d``.

    Returns:
        (N, Cout, H', W'), channels_last where ``x`` or ``weight`` is, as from ``F.conv2d``. Dtype of ``x`` promoted
        with the residual's; under autocast x, weight, bias and slope are cast to its dtype first, as ``F.conv2d`` does.

    Differentiable in every tensor; second derivatives are exact, by eager operations. Besides its operands it
    saves the output (relu, leaky_relu with a positive slope), or the pre-activation where the output does not tell its
    sign (prelu, other slopes, a residual after an activation, a scale other than 1), or nothing ("none"); where the
    automatic choice is eager PyTorch (see ``explain``), whatever its autograd saves. Our kernels are deterministic.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was passed.
    """
    op = "conv2d_act"
    code = choice(op, "activation", activation, ACTIVATIONS)
    check_image(op, "x", x)
    # By identity: the common call costs nothing more, and all else is looked at.
    if padding is not None or not (stride is dilation is groups is _ONE and padding_mode is _ZEROS):
        groups = check_groups(op, x, weight, groups)
        check_convolution(op, x, weight, "weight", bias, "bias", x.shape[1] // groups, padding is None)
        geometry, pad, size = geometry_of(op, x, weight, Passes(stride, padding, dilation, groups, padding_mode))
    else:
        check_convolution(op, x, weight, "weight", bias, "bias", x.shape[1])
        geometry, pad, size = PLAIN, None, x.shape[2:]
    negative_slope, slopes = slopes_of(op, code, slope, weight.shape[0], x)
    factor = number(op, "scale", scale)
    if residual is not None:
        check_image(op, "residual", residual)
        expected = (x.shape[0], weight.shape[0], *size)
        if tuple(residual.shape) != expected or residual.device != x.device:
            raise ValueError(f"{op}: residual must be {expected} on {x.device}, got {describe(residual)}")
    x, weight, bias, slopes = cast_by_autocast(x, weight, bias, slopes)
    check_dtypes(op, x, ("weight", "bias", "slope"), (weight, bias, slopes))
    if is_channels_last(weight) and not is_channels_last(x):  # the first layer of a channels_last network
        x = x.contiguous(memory_format=torch.channels_last)
    if pad is not None:
        x = registered.padded(x, *pad)
    operands = Convolution(x, weight, bias, slopes, residual)
    return registered.conv2d_act(operands, ConvolutionSettings(code, negative_slope, factor, geometry))[0]


def residual_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    activation: str = "relu",
    slope: float | Tensor | None = None,
    res_scale: float = 1.0,
    save: str = "activations",
) -> Tensor:
    """``x + res_scale * (conv2d(act(conv2d(x, weight1) + bias1), weight2) + bias2)``: EDSR's and DASR's residual block.

    Args:
        x: (N, C, H, W), fp16, bf16, fp32 or fp64, any strides; channels_last is the fast layout.
        weight1: (Cmid, C, kh, kw); weight2: (C, Cmid, kh, kw); odd sizes; only 3x3 is fused.
        bias1: (Cmid,) or None; bias2: (C,) or None.
        activation, slope: as in ``conv2d_act``; DASR's down-sampling network has a "prelu" with one slope.
        res_scale: a number; EDSR's large networks have 0.1.
        save: what is kept for the backward pass: "activations" keeps one tensor besides ``x`` (the activation, or its
            input for prelu and slopes below zero; where plain eager PyTorch is the automatic choice, whatever its
            autograd keeps), "recompute" none, at the cost of running the first convolution again.

    Returns:
        (N, C, H, W) in the layout and dtype of ``x``. Under autocast all tensors are cast to its dtype first, but an
        ``x`` of another dtype is added as it is, as in eager PyTorch.

    Differentiable in every tensor; second derivatives are exact, by eager operations. Our kernels are deterministic.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was passed.
    """
    op = "residual_block"
    code = choice(op, "activation", activation, ACTIVATIONS)
    keep = choice(op, "save", save, SAVE)
    check_image(op, "x", x)
    check_convolution(op, x, weight1, "weight1", bias1, "bias1", x.shape[1])
    check_convolution(op, x, weight2, "weight2", bias2, "bias2", weight1.shape[0])
    if weight2.shape[0] != x.shape[1] or weight2.shape[2:] != weight1.shape[2:]:
        expected = (x.shape[1], weight1.shape[0], *weight1.shape[2:])
        raise ValueError(f"{op}: weight2 must be {expected}, got {tuple(weight2.shape)}")
    negative_slope, slopes = slopes_of(op, code, slope, weight1.shape[0], x)
    factor = number(op, "res_scale", res_scale)
    inside, weight1, bias1, weight2, bias2, slopes = cast_by_autocast(x, weight1, bias1, weight2, bias2, slopes)
    names = ("weight1", "bias1", "weight2", "bias2", "slope")
    check_dtypes(op, inside, names, (weight1, bias1, weight2, bias2, slopes))
    if inside.dtype is not x.dtype:  # the skip keeps its dtype
        first = Convolution(inside, weight1, bias1, slopes, None)
        h = registered.conv2d_act(first, ConvolutionSettings(code, negative_slope))[0]
        second = Convolution(h, weight2, bias2, None, x)
        return laid_out(registered.conv2d_act(second, ConvolutionSettings(scale=factor))[0], x)
    operands = Block(x, weight1, bias1, weight2, bias2, slopes)
    return registered.residual_block(operands, Epilogue(code, negative_slope, factor), keep=keep)[0]


def dense_block(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    slope: float = DEFAULT_LEAKY_SLOPE,
    res_scale: float = 0.2,
    save: str = "activations",
) -> Tensor:
    """ESRGAN's residual dense block: ``x + res_scale * conv5(x | x1 | x2 | x3 | x4)``, x_k = lrelu(conv_k(x | ...)).

    Args:
        x: (N, C, H, W), fp16, bf16, fp32 or fp64, any strides; channels_last is the fast layout.
        weights: five, (G, C + (k - 1) G, kh, kw) for k = 1 to 4 and (C, C + 4 G, kh, kw); ESRGAN: C 64, G 32, 3x3.
        biases: five, (G,) four times and (C,); any of them, or all, may be None.
        slope: of the leaky ReLU after the first four, above 0.
        res_scale: a number.
        save: what is kept for the backward pass: "activations" keeps the C + 4 G channels x | x1 | x2 | x3 | x4 once
            (where plain eager PyTorch is the automatic choice, every concatenation), "recompute" only x.

    Returns:
        (N, C, H, W) in the layout and dtype of ``x``; under autocast computed in its dtype, plus ``x`` as it is.

    Differentiable in every tensor; second derivatives are exact, by eager operations that recompute the features.
    Our kernels are deterministic.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was passed.
    """
    op = "dense_block"
    keep = choice(op, "save", save, SAVE)
    check_image(op, "x", x)
    weights = five_tensors(op, "weights", weights)
    all_biases = (None,) * 5 if biases is None else five_tensors(op, "biases", biases)
    slope, factor = dense_slope(op, slope), number(op, "res_scale", res_scale)
    check_dense(op, x, weights, all_biases)
    inside, *parameters = cast_by_autocast(x, *weights, *all_biases)
    check_dtypes(op, inside, DENSE_PARAMETERS, parameters)
    if inside.dtype is not x.dtype:  # the skip keeps its dtype
        parts = [inside]
        for weight, bias in zip(parameters[:4], parameters[5:9], strict=True):
            parts.append(conv2d_act(torch.cat(parts, 1), weight, bias, activation="leaky_relu", slope=slope))
        last, bias = parameters[4], parameters[9]
        return laid_out(conv2d_act(torch.cat(parts, 1), last, bias, activation="none", residual=x, scale=factor), x)
    return registered.dense_block(Dense(x, *parameters), DenseSettings(slope, factor), keep=keep)[0]
