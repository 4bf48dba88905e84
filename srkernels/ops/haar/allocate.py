"""Shapes and strides of the Haar ops' outputs: one place for the kernels of every backend and for the fakes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._layout import empty_nchw, in_layout, inside_vmap, is_channels_last
from .arguments import Analysis, Bands, Synthesis
from .conventions import HIGH, LOW, PADS, PLANS


def cells(size: int, pad: int) -> int:
    """Along an axis of ``size`` samples, padded to whole cells or cut to them."""
    return size // 2 if PADS[pad] == "floor" else (size + 1) // 2


def covered(x: Tensor, pad: int) -> Tensor:
    """What of the image the cells cover: under "floor" all but the last of an odd number of rows or columns, a view."""
    if PADS[pad] != "floor":
        return x
    rows, columns = x.shape[-2:]
    return x[..., : rows - rows % 2, : columns - columns % 2]


def clear_dropped(x: Tensor, pad: int) -> None:
    """Zeros in the row and column of a new image that ``covered`` leaves out: synthesis writes the rest."""
    if PADS[pad] == "floor":
        for dim in (-2, -1):
            if x.shape[dim] % 2:
                x.narrow(dim, -1, 1).zero_()


def bands(x: Tensor, settings: Analysis) -> list[Tensor]:
    """Uninitialised [low][, high] for the bands wanted; high in its convention's layout, "tuple" as (3, N, C, h, w)."""
    plan, pad, wanted = settings
    n, c, rows, columns = x.shape
    h, w = cells(rows, pad), cells(columns, pad)
    out = []
    if wanted & LOW:
        out.append(empty_nchw(x, (n, c, h, w)))
    if wanted & HIGH:
        layout = PLANS[plan].layout
        if layout == "band_major":
            out.append(empty_nchw(x, (n, 3 * c, h, w)))
        elif layout == "sum":
            out.append(empty_nchw(x, (n, c, h, w)))
        else:
            shape = (n, c, 3, h, w) if layout == "channel_major" else (3, n, c, h, w)
            stride = _high_stride(shape, layout, is_channels_last(x))
            out.append(torch.empty_strided(shape, stride, dtype=x.dtype, device=x.device))
    return out


def high_strides(high: Tensor, plan: int) -> tuple[int, int, int, int, int]:
    """Strides of ``high`` over (n, band, c, h, w); the band stride is 0 where the bands are summed."""
    s = high.stride()
    layout = PLANS[plan].layout
    if layout == "band_major":
        return s[0], high.shape[1] // 3 * s[1], s[1], s[2], s[3]
    if layout == "channel_major":
        return s[0], s[2], s[1], s[3], s[4]
    if layout == "sum":
        return s[0], 0, s[1], s[2], s[3]
    return s[1], s[0], s[2], s[3], s[4]


def channels(low: Tensor | None, high: Tensor | None, plan: int) -> int:
    """C of the image that ``low`` and ``high`` (at least one given) come from."""
    if low is not None:
        return low.shape[1]
    assert high is not None
    layout = PLANS[plan].layout
    return high.shape[1] // 3 if layout == "band_major" else high.shape[2] if layout == "tuple" else high.shape[1]


def image(bands: Bands, settings: Synthesis) -> Tensor:
    """Uninitialised (N, C, rows, columns) image in the layout of the bands."""
    (low, high), (rows, columns, plan, _) = bands, settings
    one = low if low is not None else high
    assert one is not None
    n = one.shape[1] if one.dim() == 5 and PLANS[plan].layout == "tuple" else one.shape[0]
    shape = (n, channels(low, high, plan), rows, columns)
    if one.dim() == 4:
        return empty_nchw(one, shape)
    memory_format = torch.channels_last if high_is_channels_last(one, plan) else torch.contiguous_format
    return torch.empty(shape, dtype=one.dtype, device=one.device, memory_format=memory_format)


def high_is_channels_last(high: Tensor, plan: int) -> bool:
    """``is_channels_last`` of high bands: of the image that all channels make up, or of each of three."""
    if high.dim() == 4:
        return is_channels_last(high)
    pixels = high.permute(0, 3, 4, 1, 2) if PLANS[plan].layout == "channel_major" else high.permute(0, 1, 3, 4, 2)
    return not high.is_contiguous() and pixels.is_contiguous()


def _high_stride(shape: Sequence[int], layout: str, channels_last: bool) -> tuple[int, ...]:
    """Of high bands that have an axis of their own."""
    h, w = shape[-2:]
    if layout == "channel_major":
        c = shape[1]
        # channels_last of the (N, 3C, h, w) image that its two channel axes flatten to
        return (3 * c * h * w, 3, 1, 3 * c * w, 3 * c) if channels_last else (3 * c * h * w, 3 * h * w, h * w, w, 1)
    _, n, c = shape[:3]
    plane = n * c * h * w
    return (plane, c * h * w, 1, c * w, c) if channels_last else (plane, c * h * w, h * w, w, 1)


def in_layout_of_high(high: Tensor, plan: int, channels_last: bool) -> Tensor:
    """``in_layout`` of high bands."""
    if high.dim() == 4:
        return in_layout(high, channels_last)
    stride = _high_stride(high.shape, PLANS[plan].layout, channels_last)
    if high.stride() == stride or inside_vmap():
        return high
    return torch.empty_strided(high.shape, stride, dtype=high.dtype, device=high.device).copy_(high)
