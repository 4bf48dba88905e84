"""Convolution blocks: public functions and modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..._dispatch import autocasts, requested
from ..._layout import is_channels_last, laid_out
from ..._validate import boolean, check_image, check_vector, choice, describe, integer, number, shown
from . import schema
from .activation import ACTIVATIONS, LEAKY_RELU, NONE, PRELU, activate

DEFAULT_LEAKY_SLOPE = 0.2  # of super-resolution networks; torch's own default is 0.01


def conv2d_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "relu",
    slope: float | Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """``scale * act(conv2d(x, weight) + bias) + residual``: convolution of stride 1 and zero padding, in one pass.

    Args:
        x: (N, Cin, H, W), fp16, bf16, fp32 or fp64, any strides; channels_last is the fast layout.
        weight: (Cout, Cin, kh, kw), kh and kw odd; sizes other than 3x3 run in eager PyTorch.
        bias: (Cout,) or None.
        activation: "none", "relu", "leaky_relu" or "prelu".
        slope: of "leaky_relu" a number, 0.2 if None; of "prelu" a tensor of 1 or Cout slopes, differentiable.
        residual: (N, Cout, H, W), added last.
        scale: a number.

    Returns:
        (N, Cout, H, W), channels_last where ``x`` or ``weight`` is, as from ``F.conv2d``. Dtype of ``x`` promoted with
        the residual's; under autocast x, weight, bias and slope are cast to its dtype first, as ``F.conv2d`` does.

    Differentiable in every tensor; second derivatives are exact, on eager operations. Beyond its operands the backward
    pass keeps the output (relu, leaky_relu of a positive slope), or the pre-activation where the output does not tell
    its sign (prelu, other slopes, a residual behind an activation, a scale other than 1), or nothing ("none"); where
    the automatic choice is eager PyTorch (``explain`` says where), what its autograd keeps. Our kernels are
    deterministic.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    op = "conv2d_act"
    code = choice(op, "activation", activation, ACTIVATIONS)
    check_image(op, "x", x)
    _check_convolution(op, x, weight, "weight", bias, "bias", x.shape[1])
    negative_slope, slopes = _slope(op, code, slope, weight.shape[0], x)
    factor = number(op, "scale", scale)
    if residual is not None:
        check_image(op, "residual", residual)
        expected = (x.shape[0], weight.shape[0], *x.shape[2:])
        if tuple(residual.shape) != expected or residual.device != x.device:
            raise ValueError(f"{op}: residual must be {expected} on {x.device}, got {describe(residual)}")
    x, weight, bias, slopes = _autocast(x, weight, bias, slopes)
    _check_dtypes(op, x, weight=weight, bias=bias, slope=slopes)
    if is_channels_last(weight) and not is_channels_last(x):  # the first layer of a network that was turned so
        x = x.contiguous(memory_format=torch.channels_last)
    return schema.conv2d_act(x, weight, bias, slopes, residual, code, negative_slope, factor, requested())


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
        weight1: (Cmid, C, kh, kw); weight2: (C, Cmid, kh, kw); odd sizes, of which 3x3 is fused.
        bias1: (Cmid,) or None; bias2: (C,) or None.
        activation, slope: as ``conv2d_act``; DASR's down-sampling network has a "prelu" of one slope.
        res_scale: a number; EDSR's large networks have 0.1.
        save: what the backward pass finds: "activations" keeps one tensor besides ``x`` (the activation, or what goes
            into it for prelu and slopes below zero; plain eager PyTorch, where it is the automatic choice, what its
            autograd keeps), "recompute" none, at the cost of the first convolution once more.

    Returns:
        (N, C, H, W) in the layout and dtype of ``x``. Under autocast all tensors are cast to its dtype first, but an
        ``x`` of another dtype is added as it is, as in eager PyTorch.

    Differentiable in every tensor; second derivatives are exact, on eager operations. Our kernels are deterministic.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    op = "residual_block"
    code = choice(op, "activation", activation, ACTIVATIONS)
    keep = choice(op, "save", save, _SAVE)
    check_image(op, "x", x)
    _check_convolution(op, x, weight1, "weight1", bias1, "bias1", x.shape[1])
    _check_convolution(op, x, weight2, "weight2", bias2, "bias2", weight1.shape[0])
    if weight2.shape[0] != x.shape[1] or weight2.shape[2:] != weight1.shape[2:]:
        expected = (x.shape[1], weight1.shape[0], *weight1.shape[2:])
        raise ValueError(f"{op}: weight2 must be {expected}, got {tuple(weight2.shape)}")
    negative_slope, slopes = _slope(op, code, slope, weight1.shape[0], x)
    factor = number(op, "res_scale", res_scale)
    inside, weight1, bias1, weight2, bias2, slopes = _autocast(x, weight1, bias1, weight2, bias2, slopes)
    _check_dtypes(op, inside, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2, slope=slopes)
    if inside.dtype is not x.dtype:  # the skip keeps its dtype
        h = schema.conv2d_act(inside, weight1, bias1, slopes, None, code, negative_slope, 1.0, requested())
        return laid_out(schema.conv2d_act(h, weight2, bias2, None, x, NONE, 0.0, factor, requested()), x)
    operands = (x, weight1, bias1, weight2, bias2, slopes)
    return schema.residual_block(*operands, code, negative_slope, factor, keep, requested())


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
        slope: of the leaky ReLU behind the first four, above 0.
        res_scale: a number.
        save: what the backward pass finds: "activations" keeps the C + 4 G channels x | x1 | x2 | x3 | x4 once (plain
            eager PyTorch, where it is the automatic choice, every concatenation), "recompute" nothing but x.

    Returns:
        (N, C, H, W) in the layout and dtype of ``x``; under autocast in its dtype plus ``x`` as it is.

    Differentiable in every tensor; second derivatives are exact, on eager operations, which compute the features again.
    Our kernels are deterministic.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    op = "dense_block"
    keep = choice(op, "save", save, _SAVE)
    check_image(op, "x", x)
    weights = _five(op, "weights", weights)
    all_biases = (None,) * 5 if biases is None else _five(op, "biases", biases)
    slope, factor = _dense_slope(op, slope), number(op, "res_scale", res_scale)
    check_image(op, "weights[0]", weights[0], "(Cout, Cin, kh, kw)")
    for k, (weight, bias) in enumerate(zip(weights, all_biases, strict=True)):
        in_channels = x.shape[1] + k * weights[0].shape[0]
        _check_convolution(op, x, weight, f"weights[{k}]", bias, f"biases[{k}]", in_channels)
        out_channels = x.shape[1] if k == 4 else weights[0].shape[0]
        expected = (out_channels, in_channels, *weights[0].shape[2:])
        if tuple(weight.shape) != expected:
            raise ValueError(f"{op}: weights[{k}] must be {expected}, got {tuple(weight.shape)}")
    inside, *parameters = _autocast(x, *weights, *all_biases)
    names = [f"{name}[{k}]" for name in ("weights", "biases") for k in range(5)]
    _check_dtypes(op, inside, **dict(zip(names, parameters, strict=True)))
    if inside.dtype is not x.dtype:  # the skip keeps its dtype
        parts = [inside]
        for weight, bias in zip(parameters[:4], parameters[5:9], strict=True):
            parts.append(conv2d_act(torch.cat(parts, 1), weight, bias, activation="leaky_relu", slope=slope))
        last, bias = parameters[4], parameters[9]
        return laid_out(conv2d_act(torch.cat(parts, 1), last, bias, activation="none", residual=x, scale=factor), x)
    return schema.dense_block(x, parameters[:5], parameters[5:], slope, factor, keep, requested())


_SAVE = {"activations": True, "recompute": False}


def _five(op: str, argument: str, value: Any) -> tuple[Any, ...]:
    sequence = isinstance(value, (Sequence, nn.ParameterList)) and not isinstance(value, (str, bytes))
    if not sequence or len(value) != 5:
        count = f" of {len(value)}" if sequence else ""
        raise (ValueError if count else TypeError)(
            f"{op}: {argument} must be a sequence of five tensors, got {describe(value)}{count}"
        )
    return tuple(value)


def _dense_slope(op: str, slope: Any) -> float:
    value = number(op, "slope", slope)
    if not value > 0:
        raise ValueError(f"{op}: slope must be above 0, got {slope!r}")
    return value


def _check_convolution(op: str, x: Tensor, weight: Any, name: str, bias: Any, bias_name: str, in_channels: int) -> None:
    check_image(op, name, weight, "(Cout, Cin, kh, kw)")
    shape = tuple(weight.shape)
    if shape[1] != in_channels:
        raise ValueError(f"{op}: {name} must be (Cout, {in_channels}, kh, kw), got {shape}")
    if shape[2] % 2 == 0 or shape[3] % 2 == 0:
        raise ValueError(f"{op}: {name} must have odd kernel sizes, got {shape}")
    if weight.device != x.device:
        raise ValueError(f"{op}: {name} must be on x's device {x.device}, got {describe(weight)}")
    if bias is not None:
        check_vector(op, bias_name, bias, shape[:1], x.device)


def _slope(op: str, activation: int, slope: Any, channels: int, x: Tensor) -> tuple[float, Tensor | None]:
    """(slope of leaky_relu, slopes of prelu)."""
    if activation == PRELU:
        check_vector(op, "slope", slope, (1, channels), x.device)
        return 0.0, slope
    return _negative_slope(op, activation, slope), None


def _negative_slope(op: str, activation: int, slope: Any) -> float:
    """Of leaky_relu, 0 for activations that have none; refuses a slope that has no meaning."""
    if activation == LEAKY_RELU:
        return DEFAULT_LEAKY_SLOPE if slope is None else number(op, "slope", slope)
    if slope is not None:
        raise ValueError(f"{op}: slope has no meaning for {list(ACTIVATIONS)[activation]!r}, got {shown(slope)}")
    return 0.0


def _autocast(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """The operands in autocast's dtype where it is on, as ``F.conv2d`` would cast them (fp64 is left alone)."""
    if not autocasts(x) or x.dtype is torch.float64:
        return x, *others
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), *(None if t is None else t.to(dtype) for t in others)


def _check_dtypes(op: str, x: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.dtype is not x.dtype:
            raise TypeError(f"{op}: {name} must have x's dtype {x.dtype}, got {describe(tensor)}")


class Conv2dAct(nn.Conv2d):
    """``nn.Conv2d`` and an activation, in one op where ``conv2d_act`` has it: odd kernel, stride 1, zero padding.

    State-dict keys are those of ``nn.Conv2d``, and ``prelu.weight`` for "prelu". Strides, dilation, groups and other
    paddings run as ``nn.Conv2d`` and the eager activation.

    Args:
        padding: as ``nn.Conv2d``; None keeps height and width.
        activation: "none", "relu", "leaky_relu" or "prelu".
        slope: of "leaky_relu" (0.2 if None).
        slopes: number of slopes of "prelu", 1 or ``out_channels``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; in ``nn.Conv2d``'s words where its
            arguments do not go together.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        activation: str = "relu",
        slope: float | None = None,
        slopes: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        op = "Conv2dAct"
        code = choice(op, "activation", activation, ACTIVATIONS)
        _negative_slope(op, code, slope)
        in_channels, out_channels = (
            integer(op, name, value, least=1)
            for name, value in (("in_channels", in_channels), ("out_channels", out_channels))
        )
        slopes = _number_of_slopes(op, slopes, out_channels)
        kernel_size, stride = _pair(op, "kernel_size", kernel_size), _pair(op, "stride", stride)
        dilation, groups = _pair(op, "dilation", dilation), integer(op, "groups", groups, least=1)
        if padding is None:
            padding = dilation[0] * (kernel_size[0] // 2), dilation[1] * (kernel_size[1] // 2)
        elif not isinstance(padding, str):
            padding = _pair(op, "padding", padding, least=0)
        bias = boolean(op, "bias", bias)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.activation = activation
        self.slope = slope
        self.prelu = nn.PReLU(slopes, device=device, dtype=dtype) if code == PRELU else None

    def forward(self, x: Tensor) -> Tensor:
        slope = self.slope if self.prelu is None else self.prelu.weight
        if is_plain(self):
            return conv2d_act(x, self.weight, self.bias, activation=self.activation, slope=slope)
        code = ACTIVATIONS[self.activation]
        z = self._conv_forward(x, self.weight, self.bias)
        negative_slope, slopes = _slope("Conv2dAct", code, slope, self.out_channels, x)
        return activate(z, code, negative_slope, slopes)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


def _pair(op: str, argument: str, value: Any, least: int = 1) -> tuple[int, int]:
    """One size for both axes, or two."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        height, width = (integer(op, argument, size, least) for size in value)
        return height, width
    return (integer(op, argument, value, least),) * 2


def _number_of_slopes(op: str, slopes: Any, channels: int) -> int:
    count = integer(op, "slopes", slopes)
    if count not in (1, channels):
        raise ValueError(f"{op}: slopes must be 1 or {channels}, got {count}")
    return count


def is_plain(conv: nn.Conv2d) -> bool:
    """Whether a convolution is one that ``conv2d_act`` computes: stride 1, zero padding that keeps the size."""
    kernel_size = conv.kernel_size
    return (
        conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and all(k % 2 == 1 for k in kernel_size)
        and conv.padding in (tuple(k // 2 for k in kernel_size), "same")
    )


class ResidualBlock(nn.Module):
    """Module form of ``residual_block``, with the state-dict keys of BasicSR's ``ResidualBlockNoBN`` and DASR's block:
    ``conv1.weight``, ``conv1.bias``, ``conv2.weight``, ``conv2.bias``, and ``prelu.weight`` for "prelu".

    Args:
        channels: C; the block has as many in the middle.
        activation, slope, res_scale, save: as ``residual_block``.
        slopes: number of slopes of "prelu", 1 or ``channels``.
    """

    def __init__(
        self,
        channels: int = 64,
        *,
        activation: str = "relu",
        slope: float | None = None,
        slopes: int = 1,
        res_scale: float = 1.0,
        bias: bool = True,
        save: str = "activations",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        op = "ResidualBlock"
        code = choice(op, "activation", activation, ACTIVATIONS)
        choice(op, "save", save, _SAVE)
        channels = integer(op, "channels", channels, least=1)
        slopes = _number_of_slopes(op, slopes, channels)
        _negative_slope(op, code, slope)
        number(op, "res_scale", res_scale)
        bias = boolean(op, "bias", bias)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias, device=device, dtype=dtype)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias, device=device, dtype=dtype)
        self.prelu = nn.PReLU(slopes, device=device, dtype=dtype) if code == PRELU else None
        self.activation = activation
        self.slope = slope
        self.res_scale = res_scale
        self.save = save

    def forward(self, x: Tensor) -> Tensor:
        return residual_block(
            x,
            self.conv1.weight,
            self.conv1.bias,
            self.conv2.weight,
            self.conv2.bias,
            activation=self.activation,
            slope=self.slope if self.prelu is None else self.prelu.weight,
            res_scale=self.res_scale,
            save=self.save,
        )

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, res_scale={self.res_scale}, save={self.save!r}"


class ResidualDenseBlock(nn.Module):
    """Module form of ``dense_block``, with BasicSR's state-dict keys: ``conv1`` to ``conv5``, weight and bias."""

    def __init__(
        self,
        channels: int = 64,
        growth: int = 32,
        *,
        slope: float = DEFAULT_LEAKY_SLOPE,
        res_scale: float = 0.2,
        bias: bool = True,
        save: str = "activations",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        op = "ResidualDenseBlock"
        choice(op, "save", save, _SAVE)
        channels, growth = integer(op, "channels", channels, least=1), integer(op, "growth", growth, least=1)
        _dense_slope(op, slope)
        number(op, "res_scale", res_scale)
        bias = boolean(op, "bias", bias)
        for k in range(5):
            sizes = (channels + k * growth, channels if k == 4 else growth)
            conv = nn.Conv2d(*sizes, 3, padding=1, bias=bias, device=device, dtype=dtype)
            self.add_module(f"conv{k + 1}", conv)
        self.slope = slope
        self.res_scale = res_scale
        self.save = save

    def forward(self, x: Tensor) -> Tensor:
        convs: list[Any] = [self._modules[f"conv{k}"] for k in range(1, 6)]
        weights, biases = [c.weight for c in convs], [c.bias for c in convs]
        return dense_block(x, weights, biases, slope=self.slope, res_scale=self.res_scale, save=self.save)

    def extra_repr(self) -> str:
        return f"slope={self.slope}, res_scale={self.res_scale}, save={self.save!r}"


class RRDB(nn.Module):
    """ESRGAN's residual-in-residual block: three ``ResidualDenseBlock``, ``rdb1`` to ``rdb3``, ``0.2 * . + x``."""

    def __init__(self, channels: int = 64, growth: int = 32, **arguments: Any) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(channels, growth, **arguments)
        self.rdb2 = ResidualDenseBlock(channels, growth, **arguments)
        self.rdb3 = ResidualDenseBlock(channels, growth, **arguments)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rdb3(self.rdb2(self.rdb1(x))) * 0.2
