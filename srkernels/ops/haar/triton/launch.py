"""How the Haar kernels are launched: which one, by how many programs, on what part of memory."""

from __future__ import annotations

import functools
from math import gcd

import torch
import triton
from torch import Tensor

from ...._launch import Launch, Launcher
from ...._layout import is_channels_last
from ...._triton import WARPS_128, on_device
from .. import allocate
from ..arguments import Analysis, Bands, Image, Synthesis
from ..conventions import HIGH, LOW, PADS, PLANS
from .kernels import REFLECT, REPEAT, WRAP, ZERO, analysis_any, analysis_even, synthesis_any, synthesis_even

# Chosen by machine code, not yet by timing: one 128-bit vector of every band per thread, 128 threads.
_EVEN_BLOCK = 128
_ANY_BLOCK = 128
_INT32 = 2**31 - 1024


@functools.cache
def plan_constant(plan: int) -> tuple[float | int | bool, ...]:
    """The kernels' PLAN."""
    p = PLANS[plan]
    return (p.low, p.v, p.h, p.d, p.slot_v, p.slot_h, p.slot_d, p.shift, p.layout == "sum")


def _edge(size: int, pad: int) -> int:
    mode = PADS[pad]
    if size % 2 == 0 or mode == "floor":
        return 0
    if mode == "zero":
        return ZERO.value
    return {"reflect": REFLECT, "periodic": WRAP}.get(mode if size > 1 else "", REPEAT).value


def _high_layout(
    layout: str, channels_last: bool, n: int, c: int, cells: int, vec: int
) -> tuple[int | None, int | None, int, int]:
    """(group, group_step, slot_step, HIGH_STRIDE): where ``_high_offsets`` finds bands laid out by ``allocate.bands``.

    Slots follow each other ``slot_step`` vectors apart; where a slot is longer than that, the other two interrupt it
    every ``group`` vectors. ``cells`` are those of one channel.
    """
    if layout == "sum":
        return None, None, 0, 1
    if layout == "tuple":
        return None, None, n * c * cells // vec, 1
    if layout == "channel_major" and channels_last:
        return None, None, 1, 3
    group = (cells if layout == "channel_major" else c if channels_last else c * cells) // vec
    return group, 2 * group, group, 1


def _vector(x: Tensor, channels_last: bool, channels: int, width: int, rows: int, columns: int) -> int:
    """Elements per 128-bit access of an even kernel, fewer if the innermost size is not divisible; 1: it cannot run."""
    if rows % 2 or columns % 2:
        return 1
    vec = gcd(channels if channels_last else width, 16 // x.element_size())
    return vec if x.numel() // (4 * vec) < _INT32 else 1


def analysis(operands: Image, settings: Analysis) -> list[Tensor]:
    """As ``reference.analysis``."""
    (x,), wanted = operands, settings.wanted
    out = allocate.bands(x, settings)
    if not any(band.numel() for band in out):
        return out
    with on_device(x.device):
        _analysis((x, out[0] if wanted & LOW else None, out[-1] if wanted & HIGH else None), settings)
    return out


@Launcher
def _analysis(x: Tensor, low: Tensor | None, high: Tensor | None, settings: Analysis) -> Launch:
    plan, pad, _ = settings
    n, c, rows, columns = x.shape
    height, width = allocate.cells(rows, pad), allocate.cells(columns, pad)
    cells = n * c * height * width
    layout = PLANS[plan].layout
    channels_last = is_channels_last(x)
    dense = channels_last or x.is_contiguous()
    vec = _vector(x, channels_last, c, width, rows, columns) if dense else 1
    group, group_step, slot_step, high_stride = _high_layout(layout, channels_last, n, c, height * width, vec)
    if vec > 1:
        vectors = cells // vec
        inner = c // vec if channels_last else 1
        row = width * c // vec if channels_last else width // vec
        return Launch(
            analysis_even, triton.cdiv(vectors, _EVEN_BLOCK), vectors, row, inner, group, group_step, slot_step,
            plan_constant(plan), channels_last, high_stride, vec, _EVEN_BLOCK, num_warps=WARPS_128,
        )  # fmt: skip
    return Launch(
        analysis_any, triton.cdiv(cells, _ANY_BLOCK),
        cells, c, height, width, rows, columns, *x.stride(), group, group_step, slot_step,
        plan_constant(plan), channels_last, high_stride, _edge(rows, pad), _edge(columns, pad),
        cells >= _INT32, _ANY_BLOCK, num_warps=WARPS_128,
    )  # fmt: skip


def synthesis(operands: Bands, settings: Synthesis) -> list[Tensor]:
    """As ``reference.synthesis``."""
    x = allocate.image(operands, settings)
    if not any(band is not None and band.numel() for band in operands):
        return [x]
    with on_device(x.device):
        _synthesis((x, *operands), settings)
    allocate.clear_dropped(x, settings.pad)
    return [x]


@Launcher
def _synthesis(x: Tensor, low: Tensor | None, high: Tensor | None, settings: Synthesis) -> Launch:
    rows, columns, plan, pad = settings
    n, c = x.shape[:2]
    height, width = allocate.cells(rows, pad), allocate.cells(columns, pad)
    cells = n * c * height * width
    layout = PLANS[plan].layout
    channels_last = is_channels_last(x)
    vec = _vector(x, channels_last, c, width, rows, columns)
    if vec > 1 and _dense(low, high, layout, channels_last):
        group, group_step, slot_step, high_stride = _high_layout(layout, channels_last, n, c, height * width, vec)
        vectors = cells // vec
        inner = c // vec if channels_last else 1
        row = width * c // vec if channels_last else width // vec
        return Launch(
            synthesis_even, triton.cdiv(vectors, _EVEN_BLOCK), vectors, row, inner, group, group_step, slot_step,
            plan_constant(plan), channels_last, high_stride, vec, _EVEN_BLOCK, num_warps=WARPS_128,
        )  # fmt: skip
    low_strides = low.stride() if low is not None else (None,) * 4
    high_strides = allocate.high_strides(high, plan) if high is not None else (None,) * 5
    return Launch(
        synthesis_any, triton.cdiv(cells, _ANY_BLOCK),
        cells, c, height, width, rows, columns, *low_strides, *high_strides,
        plan_constant(plan), channels_last, _edge(rows, pad), _edge(columns, pad),
        cells >= _INT32, _ANY_BLOCK, num_warps=WARPS_128,
    )  # fmt: skip


def _dense(low: Tensor | None, high: Tensor | None, layout: str, channels_last: bool) -> bool:
    """Whether the bands given lie as ``allocate.bands`` lays them out for an image of this layout."""
    if not channels_last:
        return (low is None or low.is_contiguous()) and (high is None or high.is_contiguous())
    if low is not None and not low.is_contiguous(memory_format=torch.channels_last):
        return False
    if high is None:
        return True
    if high.dim() == 4:
        return high.is_contiguous(memory_format=torch.channels_last)
    return high.permute((0, 1, 3, 4, 2) if layout == "tuple" else (0, 3, 4, 1, 2)).is_contiguous()
