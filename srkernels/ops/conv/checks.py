"""Argument checks of the convolution ops and modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..._dispatch import autocasts
from ..._validate import check_image, check_vector, describe, number, shown
from .activation import ACTIVATIONS, LEAKY_RELU, PRELU

DEFAULT_LEAKY_SLOPE = 0.2  # of super-resolution networks; torch's own default is 0.01
SAVE = {"activations": True, "recompute": False}


def five_tensors(op: str, argument: str, value: Any) -> tuple[Any, ...]:
    sequence = isinstance(value, (Sequence, nn.ParameterList)) and not isinstance(value, (str, bytes))
    if not sequence or len(value) != 5:
        count = f" of {len(value)}" if sequence else ""
        raise (ValueError if count else TypeError)(
            f"{op}: {argument} must be a sequence of five tensors, got {describe(value)}{count}"
        )
    return tuple(value)


def dense_slope(op: str, slope: Any) -> float:
    value = number(op, "slope", slope)
    if not value > 0:
        raise ValueError(f"{op}: slope must be above 0, got {slope!r}")
    return value


def check_convolution(op: str, x: Tensor, weight: Any, name: str, bias: Any, bias_name: str, in_channels: int) -> None:
    check_image(op, name, weight, "(Cout, Cin, kh, kw)")
    shape = weight.shape
    if shape[1] != in_channels:
        raise ValueError(f"{op}: {name} must be (Cout, {in_channels}, kh, kw), got {tuple(shape)}")
    if shape[0] < 1 or shape[1] < 1:
        raise ValueError(f"{op}: {name} must have channels in and out, got {tuple(shape)}")
    if shape[2] % 2 == 0 or shape[3] % 2 == 0:
        raise ValueError(f"{op}: {name} must have odd kernel sizes, got {tuple(shape)}")
    device = x.device
    if weight.device != device:
        raise ValueError(f"{op}: {name} must be on x's device {device}, got {describe(weight)}")
    if bias is not None:
        check_vector(op, bias_name, bias, shape[:1], device)


DENSE_PARAMETERS = tuple(f"{name}[{k}]" for name in ("weights", "biases") for k in range(5))


def check_dense(op: str, x: Tensor, weights: Sequence[Any], biases: Sequence[Any]) -> None:
    check_image(op, "weights[0]", weights[0], "(Cout, Cin, kh, kw)")
    growth, _, *kernel = weights[0].shape
    channels = x.shape[1]
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        expected = (channels if k == 4 else growth, channels + k * growth, *kernel)
        check_convolution(op, x, weight, DENSE_PARAMETERS[k], bias, DENSE_PARAMETERS[5 + k], expected[1])
        if weight.shape != expected:
            raise ValueError(f"{op}: {DENSE_PARAMETERS[k]} must be {expected}, got {tuple(weight.shape)}")


def slopes_of(op: str, activation: int, slope: Any, channels: int, x: Tensor) -> tuple[float, Tensor | None]:
    """(slope of leaky_relu, slopes of prelu)."""
    if activation == PRELU:
        check_vector(op, "slope", slope, (1, channels), x.device)
        return 0.0, slope
    return leaky_slope(op, activation, slope), None


def leaky_slope(op: str, activation: int, slope: Any) -> float:
    """Slope of leaky_relu, 0 for activations that have none; raises on a meaningless slope."""
    if activation == LEAKY_RELU:
        return DEFAULT_LEAKY_SLOPE if slope is None else number(op, "slope", slope)
    if slope is not None:
        raise ValueError(f"{op}: slope has no meaning for {list(ACTIVATIONS)[activation]!r}, got {shown(slope)}")
    return 0.0


def cast_by_autocast(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """The operands in autocast's dtype where it is on, as ``F.conv2d`` would cast them (fp64 is left alone)."""
    if not autocasts(x) or x.dtype is torch.float64:
        return x, *others
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), *(None if t is None else t.to(dtype) for t in others)


def check_dtypes(op: str, x: Tensor, names: Sequence[str], others: Sequence[Tensor | None]) -> None:
    dtype = x.dtype
    for name, tensor in zip(names, others, strict=True):
        if tensor is not None and tensor.dtype is not dtype:
            raise TypeError(f"{op}: {name} must have x's dtype {dtype}, got {describe(tensor)}")
