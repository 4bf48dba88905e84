"""Argument checks of the convolution ops and modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._dispatch import autocasts
from ..._validate import check_image, check_vector, choice, describe, integer, number, shown
from .activation import ACTIVATIONS, LEAKY_RELU, PRELU
from .geometry import PLAIN, Geometry

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


def check_convolution(
    op: str, x: Tensor, weight: Any, name: str, bias: Any, bias_name: str, in_channels: int, odd: bool = True
) -> None:
    check_image(op, name, weight, "(Cout, Cin, kh, kw)")
    shape = weight.shape
    if shape[1] != in_channels:
        raise ValueError(f"{op}: {name} must be (Cout, {in_channels}, kh, kw), got {tuple(shape)}")
    if shape[0] < 1 or shape[1] < 1:
        raise ValueError(f"{op}: {name} must have channels in and out, got {tuple(shape)}")
    if odd and (shape[2] % 2 == 0 or shape[3] % 2 == 0):
        given = " where padding is not given" if op == "conv2d_act" else ""
        raise ValueError(f"{op}: {name} must have odd kernel sizes{given}, got {tuple(shape)}")
    device = x.device
    if weight.device != device:
        raise ValueError(f"{op}: {name} must be on x's device {device}, got {describe(weight)}")
    if bias is not None:
        check_vector(op, bias_name, bias, shape[:1], device)


def pair(op: str, argument: str, value: Any, least: int = 1) -> tuple[int, int]:
    """One size for both axes, or two."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        height, width = (integer(op, argument, size, least) for size in value)
        return height, width
    return (integer(op, argument, value, least),) * 2


class Passes(NamedTuple):
    """How filters pass over an image, as the caller says it."""

    stride: Any = 1
    padding: Any = None
    dilation: Any = 1
    groups: Any = 1
    padding_mode: Any = "zeros"


class Pad(NamedTuple):
    """What ``F.pad`` does ahead of a convolution: padding by other than zeros, or of one side alone."""

    amounts: tuple[int, int, int, int]
    mode: str


class Convolved(NamedTuple):
    """``Geometry.flat``, or ``PLAIN``, for the image once padded, and (height, width) of the output."""

    geometry: tuple[int, ...]
    pad: Pad | None
    size: Sequence[int]


PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def check_groups(op: str, x: Tensor, weight: Any, groups: Any) -> int:
    """``groups``, which must divide the channels in and out."""
    count = integer(op, "groups", groups, least=1)
    check_image(op, "weight", weight, "(Cout, Cin / groups, kh, kw)")
    for channels, whose in ((x.shape[1], "x"), (weight.shape[0], "weight")):
        if channels % count:
            raise ValueError(f"{op}: groups must divide the {channels} channels of {whose}, got {count}")
    return count


def geometry_of(op: str, x: Tensor, weight: Tensor, passes: Passes) -> Convolved:
    """What an operator takes for ``passes``, which are checked; ``groups`` were."""
    stride, dilation = pair(op, "stride", passes.stride), pair(op, "dilation", passes.dilation)
    mode = choice(op, "padding_mode", passes.padding_mode, PADDING_MODES)
    size, kernel = x.shape[2:], weight.shape[2:]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    before, after = _paddings(op, passes.padding, stride, reach)
    if mode == "constant":
        padding, amounts = before, (0, after[1] - before[1], 0, after[0] - before[0])
    else:
        padding, amounts = (0, 0), (before[1], after[1], before[0], after[0])
        most = [n - (mode == "reflect") for n in size]
        if mode != "replicate" and any(p > m for p, m in zip((*before, *after), most * 2, strict=True)):
            raise ValueError(f"{op}: padding must be at most {most} for {mode!r}, got {list(map(max, before, after))}")
    left, right, top, bottom = amounts
    geometry, output = Geometry(stride, padding, dilation, passes.groups).over(
        (size[0] + top + bottom, size[1] + left + right), kernel
    )
    if output[0] < 1 or output[1] < 1:
        span = [r + 1 for r in reach]
        raise ValueError(f"{op}: weight must fit the padded image, got one of {span} for {tuple(size)} in x")
    keeps = padding == (kernel[0] // 2, kernel[1] // 2) and kernel[0] % 2 == kernel[1] % 2 == 1
    plain = keeps and stride == dilation == (1, 1) and geometry.groups == 1
    return Convolved(PLAIN if plain else geometry.flat, Pad(amounts, mode) if any(amounts) else None, output)


def _paddings(
    op: str, padding: Any, stride: tuple[int, int], reach: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows above, columns to the left), (rows below, columns to the right); ``reach``: of a filter past a pixel."""
    if isinstance(padding, str):
        padding = choice(op, "padding", padding, {"valid": 0, "same": padding})
        if padding and stride != (1, 1):
            raise ValueError(f"{op}: stride must be 1 where padding is 'same', got {stride}")
    if padding is None or isinstance(padding, str):
        rows, columns = reach
        return (rows // 2, columns // 2), (rows - rows // 2, columns - columns // 2)
    around = pair(op, "padding", padding, least=0)
    return around, around


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
