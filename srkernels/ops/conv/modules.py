"""Convolution blocks as modules, with the state-dict keys of published networks."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from ..._validate import boolean, choice, integer, number
from .activation import ACTIVATIONS, PRELU
from .api import conv2d_act, dense_block, residual_block
from .checks import DEFAULT_LEAKY_SLOPE, SAVE, dense_slope, leaky_slope, pair


class Conv2dAct(nn.Conv2d):
    """``nn.Conv2d`` and an activation, in one op: ``conv2d_act``.

    State-dict keys are those of ``nn.Conv2d``, and ``prelu.weight`` for "prelu".

    Args:
        padding: as in ``nn.Conv2d``; None keeps height and width.
        activation: "none", "relu", "leaky_relu" or "prelu".
        slope: for "leaky_relu" (0.2 if None).
        slopes: number of slopes of "prelu", 1 or ``out_channels``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was passed; in ``nn.Conv2d``'s words
            where its arguments contradict each other.
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
        leaky_slope(op, code, slope)
        in_channels, out_channels = (
            integer(op, name, value, least=1)
            for name, value in (("in_channels", in_channels), ("out_channels", out_channels))
        )
        slopes = _number_of_slopes(op, slopes, out_channels)
        kernel_size, stride = pair(op, "kernel_size", kernel_size), pair(op, "stride", stride)
        dilation, groups = pair(op, "dilation", dilation), integer(op, "groups", groups, least=1)
        if padding is None:
            padding = dilation[0] * (kernel_size[0] // 2), dilation[1] * (kernel_size[1] // 2)
        elif not isinstance(padding, str):
            padding = pair(op, "padding", padding, least=0)
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
        return conv2d_act(
            x,
            self.weight,
            self.bias,
            activation=self.activation,
            slope=slope,
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=self.groups,
            padding_mode=self.padding_mode,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


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
        channels: C, also in the middle of the block.
        activation, slope, res_scale, save: as in ``residual_block``.
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
        choice(op, "save", save, SAVE)
        channels = integer(op, "channels", channels, least=1)
        slopes = _number_of_slopes(op, slopes, channels)
        leaky_slope(op, code, slope)
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
        choice(op, "save", save, SAVE)
        channels, growth = integer(op, "channels", channels, least=1), integer(op, "growth", growth, least=1)
        dense_slope(op, slope)
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
