"""Haar transform in eager PyTorch: the oracle. Any device, any dtype, differentiable to any order by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._dispatch import without_autocast
from . import allocate
from .arguments import Analysis, Bands, Image, Synthesis
from .conventions import HIGH, LOW, PADS, PLANS


def butterfly(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a, b, c, d) -> (S, V, H, D). The matrix is symmetric and its square is 4 I: it is its own adjoint."""
    return a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d


def pad_to_even(x: Tensor, pad: int) -> Tensor:
    """Append what the mode has to odd sizes, one row and/or column, or cut them ("floor")."""
    x = allocate.covered(x, pad)
    rows, columns = x.shape[-2:]
    mode = PADS[pad]
    if rows % 2:
        x = torch.cat((x, _appended(x, rows, mode, -2)), dim=-2)
    if columns % 2:
        x = torch.cat((x, _appended(x, columns, mode, -1)), dim=-1)
    return x


def _appended(x: Tensor, size: int, mode: str, dim: int) -> Tensor:
    line = x.narrow(dim, _source(size, mode), 1)
    return torch.zeros_like(line) if mode == "zero" else line


def _source(size: int, mode: str) -> int:
    """Which sample the appended one repeats."""
    # A single sample reflects onto itself, as in numpy.pad. PyWavelets' periodization repeats the last sample
    # of an odd signal before it wraps; its periodic mode wraps at once.
    if mode == "periodic":
        return 0
    return max(size - 2, 0) if mode == "reflect" else size - 1


@without_autocast
def analysis(operands: Image, settings: Analysis) -> list[Tensor]:
    """[low][, high] of an image (N, C, H, W); see conventions.py for formulas and layouts."""
    (x,), (plan, pad, wanted) = operands, settings
    p = PLANS[plan]
    even = pad_to_even(x, pad)
    s, v, h, d = butterfly(even[..., ::2, ::2], even[..., ::2, 1::2], even[..., 1::2, ::2], even[..., 1::2, 1::2])
    out = []
    if wanted & LOW:
        out.append(p.low * s)
    if wanted & HIGH:
        if p.layout == "sum":
            high = p.v * v + p.h * h + p.d * d + p.shift
        else:
            by_slot = {p.slot_v: p.v * v, p.slot_h: p.h * h, p.slot_d: p.d * d}
            ordered = [by_slot[slot] + p.shift if p.shift else by_slot[slot] for slot in range(3)]
            if p.layout == "band_major":
                high = torch.cat(ordered, dim=1)
            else:
                high = torch.stack(ordered, dim=2 if p.layout == "channel_major" else 0)
        out.append(high)
    return [_conform(value, like) for value, like in zip(out, allocate.bands(x, settings), strict=True)]


@without_autocast
def synthesis(operands: Bands, settings: Synthesis) -> list[Tensor]:
    """Adjoint of ``analysis`` for the plan's factors; with inverse factors and "zero" or "floor", its inverse."""
    (low, high), (rows, columns, plan, pad) = operands, settings
    p = PLANS[plan]
    n, c = allocate.image(operands, settings).shape[:2]
    height, width = allocate.cells(rows, pad), allocate.cells(columns, pad)
    one = low if low is not None else high
    assert one is not None
    zero = one.new_zeros((n, c, height, width))
    s = zero if low is None else p.low * low
    v = h = d = zero
    if high is not None:
        if p.shift:
            high = high - p.shift
        if p.layout == "sum":
            planes = [high, high, high]
        elif p.layout == "band_major":
            planes = list(high.chunk(3, dim=1))
        else:
            planes = list(high.unbind(2 if p.layout == "channel_major" else 0))
        v, h, d = p.v * planes[p.slot_v], p.h * planes[p.slot_h], p.d * planes[p.slot_d]
    a, b, e, f = butterfly(s, v, h, d)
    cells = torch.stack((a, b, e, f), dim=-1).unflatten(-1, (2, 2))
    x = cells.permute(0, 1, 2, 4, 3, 5).reshape(n, c, 2 * height, 2 * width)
    x = _fold(x, rows, pad, -2)
    x = _fold(x, columns, pad, -1)
    return [_conform(x, allocate.image(operands, settings))]


def _fold(x: Tensor, size: int, pad: int, dim: int) -> Tensor:
    """Adjoint of the padding: add the appended sample to the one it was copied from, then drop it; and of the cut."""
    if x.shape[dim] == size:
        return x
    mode = PADS[pad]
    if mode == "floor":
        return torch.cat((x, torch.zeros_like(x.narrow(dim, 0, 1))), dim=dim)
    appended, kept = x.narrow(dim, size, 1), x.narrow(dim, 0, size)
    if mode == "zero":
        return kept
    source = _source(size, mode)
    before, at, after = (
        kept.narrow(dim, 0, source),
        kept.narrow(dim, source, 1),
        kept.narrow(dim, source + 1, size - source - 1),
    )
    return torch.cat((before, at + appended, after), dim=dim)


def _conform(value: Tensor, like: Tensor) -> Tensor:
    """``value`` in exactly the strides of ``like``, which the fakes promise; no copy where they agree already."""
    return value if value.stride() == like.stride() else like.copy_(value)
