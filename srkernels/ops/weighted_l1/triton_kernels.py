"""Weighted L1 in Triton: one launch each way, the resized weight map never in memory.

Forward. With x the input, y the target, u the weight map at its own resolution and w = R u its bilinear resize,

    loss = Z sum_e w_e |x_e - y_e|        Z = 1 (sum), 1 / numel (mean) or 1 / sum_e w_e (mean by weight).

R is separable: along one axis output i reads ``(1 - f) u[low] + f u[low + 1]`` at source position

    at = (i + 1/2) in / out - 1/2, not below 0          (align_corners: at = i (in - 1) / (out - 1))
    low = floor(at), f = at - low

in fp32, as PyTorch computes it. w is rebuilt where it is needed from four reads of u, which stays in cache, so that a
pass reads x and y once and writes nothing of their size.

Backward. For an incoming gradient g of the loss,

    d loss / d x_e =   g Z w_e sign(x_e - y_e) = - d loss / d y_e,        sign(0) = sign(NaN) = 0
    d loss / d u_k =   g Z sum_e R_ek (|x_e - y_e| - m)                   m = loss in the mean by weight, else 0

The last line because Z depends on u there: d(A/B) = (dA - (A/B) dB) / B. x, y and u are read again: nothing but the
operands themselves is kept between the passes. R^T is written as a gather, each cell k of u adding up its footprint

    { e : low(e) = k or low(e) + 1 = k },

a rectangle, found in closed form by inverting ``at``. Nothing is added to memory twice, hence no atomics on floats.

Determinism in one launch. Every program writes its share of the sum to its own place and draws a ticket from a counter;
whoever draws the last one knows that all shares are there, adds them up in order and sets the counter back to zero for
the next launch. Shares are sums of fp32 lanes, added up in fp64.

How the images are walked. Lanes are vectors of VEC elements, whole 128-bit accesses where sizes and strides allow: along
x, each lane going through CHUNK channels with the same weights, or (ALONG_C, channels_last) along c. Strides come in
units of vectors except along the vector, so that the compiler sees what every address is divisible by. VEC = 1 is the
general case: any strides at all.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._layout import is_channels_last
from ..._triton import WARPS_128, WORKSPACE, on_device, workspace
from . import allocate
from .allocate import MEAN, NONE


@triton.jit
def _divide(a, b, T: tl.constexpr):
    # `/` on fp32 is off by up to 2 ulp, and a scale off by an ulp is a source position off by many at a far edge.
    return a / b if T == tl.float64 else tl.div_rn(a, b)


@triton.jit
def _axis(i, source_size, size, ALIGN: tl.constexpr, T: tl.constexpr):
    """(low, high, f): sample i of an axis resized to ``size`` is ``(1 - f) * source[low] + f * source[high]``."""
    if ALIGN:
        scale = _divide((source_size - 1).to(T), tl.maximum(size - 1, 1).to(T), T)
        at = tl.where(size > 1, scale, 0.0) * i.to(T)
    else:
        scale = _divide(source_size.to(T), size.to(T), T)
        at = tl.maximum(scale * (i.to(T) + 0.5) - 0.5, 0.0)
    low = tl.minimum(at.to(tl.int32), source_size - 1)
    high = tl.minimum(low + 1, source_size - 1)
    return low, high, tl.minimum(at - low.to(T), 1.0)


@triton.jit
def _resized(
    weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width, n, c, y, x, inside,
    ALIGN: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The resized map at (n, c, y, x)."""
    top, bottom, f = _axis(y, source_height, height, ALIGN, T)
    left, right, g = _axis(x, source_width, width, ALIGN, T)
    plane = weight + n.to(tl.int64) * w_n + c.to(tl.int64) * w_c
    above, below = plane + top.to(tl.int64) * w_h, plane + bottom.to(tl.int64) * w_h
    left, right = left.to(tl.int64) * w_w, right.to(tl.int64) * w_w
    above_left = tl.load(above + left, mask=inside, other=0.0).to(T)
    above_right = tl.load(above + right, mask=inside, other=0.0).to(T)
    below_left = tl.load(below + left, mask=inside, other=0.0).to(T)
    below_right = tl.load(below + right, mask=inside, other=0.0).to(T)
    first = (1.0 - g) * above_left + g * above_right
    second = (1.0 - g) * below_left + g * below_right
    return (1.0 - f) * first + f * second


@triton.jit
def _position(p, lanes, height, width, ALONG_C: tl.constexpr):
    """(n, c, y, x) of lane p, the one along the vector in vectors; c is 0 where channels are gone through in a loop."""
    lane = p % lanes
    p = p // lanes
    if ALONG_C:
        x = p % width
        p = p // width
        return p // height, lane, p % height, x
    return p // height, tl.zeros_like(lane), p % height, lane


@triton.jit
def _offset(n, c, y, x, s_n, s_c, s_h, s_w):
    return n.to(tl.int64) * s_n + c.to(tl.int64) * s_c + y.to(tl.int64) * s_h + x.to(tl.int64) * s_w


@triton.jit
def _element(n, c, y, x, s_n, s_c, s_h, s_w, ALONG_C: tl.constexpr, VEC: tl.constexpr):
    """As ``_offset``, for all of n, c, y, x in elements."""
    n, c, y, x = n.to(tl.int64), c.to(tl.int64), y.to(tl.int64), x.to(tl.int64)
    if ALONG_C:
        return (n * s_n + y * s_h + x * s_w) * VEC + c * s_c
    return (n * s_n + c * s_c + y * s_h) * VEC + x * s_w


@triton.jit
def _dense(n, c, y, x, channels, height, lanes, CHANNELS_LAST: tl.constexpr, ALONG_C: tl.constexpr):
    """Vector of a dense output at (n, c, y, x); ``lanes``: vectors along the vectors' axis."""
    if CHANNELS_LAST:
        return ((n.to(tl.int64) * height + y) * lanes + x) * channels + c
    return ((n.to(tl.int64) * channels + c) * height + y) * lanes + x


_WALK = (
    "groups", "positions", "lanes", "channels", "height", "width",
    "i_n", "i_c", "i_h", "i_w", "t_n", "t_c", "t_h", "t_w",
    "source_height", "source_width", "w_n", "w_c", "w_h", "w_w",
)  # fmt: skip


@triton.jit(do_not_specialize=[*_WALK, "tiles", "divisor"])
def loss_total(
    input, target, weight, loss, statistics, shares, counters, tiles, divisor,
    groups, positions, lanes, channels, height, width,
    i_n, i_c, i_h, i_w, t_n, t_c, t_h, t_w, source_height, source_width, w_n, w_c, w_h, w_w,
    PER_CHANNEL: tl.constexpr,
    ALIGN: tl.constexpr,
    ALONG_C: tl.constexpr,
    CHUNK: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Sum over everything, divided by ``divisor`` or, with ``statistics``, by the sum of the resized map."""
    I: tl.constexpr = tl.int64 if WIDE else tl.int32
    t = tl.arange(0, VEC)[None, :]
    total = tl.zeros([BLOCK, VEC], dtype=T)
    total_weight = tl.zeros([BLOCK, VEC], dtype=T)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        p = (tile // groups).to(I) * BLOCK + tl.arange(0, BLOCK)[:, None]
        n, c, y, x = _position(p, lanes, height, width, ALONG_C)
        valid = (p < positions) & (t < VEC)
        # Positions of the elements: along the vector they differ.
        column, channel = x, c
        if ALONG_C:
            channel = c * VEC + t
        else:
            column = x * VEC + t
            c += (tile % groups) * CHUNK
            channel = c
        w = tl.full([BLOCK, VEC], 1.0, dtype=T)
        if weight is not None and not PER_CHANNEL:
            w = _resized(
                weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
                n, channel * 0, y, column, p < positions, ALIGN, T,
            )  # fmt: skip
            w = tl.broadcast_to(w, [BLOCK, VEC])
        for _ in tl.static_range(CHUNK):
            inside = valid
            if not ALONG_C:
                inside = valid & (c < channels)
            if weight is not None and PER_CHANNEL:
                w = _resized(
                    weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
                    n, channel, y, column, inside, ALIGN, T,
                )  # fmt: skip
            a = tl.load(input + (_offset(n, c, y, x, i_n, i_c, i_h, i_w) * VEC + t), mask=inside, other=0.0)
            b = tl.load(target + (_offset(n, c, y, x, t_n, t_c, t_h, t_w) * VEC + t), mask=inside, other=0.0)
            # A weight of inf times a masked zero would be NaN.
            total += tl.where(inside, w * tl.abs(a.to(T) - b.to(T)), 0.0)
            if statistics is not None:
                total_weight += tl.where(inside, w, 0.0)
            c += 1
            channel += 1

    share, count = tl.program_id(0), tl.num_programs(0)
    tl.store(shares + share, tl.sum(total.to(tl.float64)))
    if statistics is not None:
        tl.store(shares + PROGRAMS + share, tl.sum(total_weight.to(tl.float64)))
    # All threads' stores before the ticket; the ticket (acquire, release) before anybody's loads.
    tl.debug_barrier()
    ticket = tl.atomic_add(counters, 1)
    if ticket == count - 1:
        i = tl.arange(0, PROGRAMS)
        numerator = tl.sum(tl.load(shares + i, mask=i < count, other=0.0, cache_modifier=".cg"))
        denominator = divisor.to(tl.float64)
        if statistics is not None:
            denominator = tl.sum(tl.load(shares + PROGRAMS + i, mask=i < count, other=0.0, cache_modifier=".cg"))
        result = numerator / denominator
        tl.store(loss, result.to(loss.dtype.element_ty))
        if statistics is not None:
            tl.store(statistics, result.to(T))
            tl.store(statistics + 1, denominator.to(T))
        tl.store(counters, 0)


@triton.jit(do_not_specialize=_WALK)
def loss_map(
    input, target, weight, loss,
    groups, positions, lanes, channels, height, width,
    i_n, i_c, i_h, i_w, t_n, t_c, t_h, t_w, source_height, source_width, w_n, w_c, w_h, w_w,
    PER_CHANNEL: tl.constexpr,
    ALIGN: tl.constexpr,
    ALONG_C: tl.constexpr,
    CHUNK: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr,
    LOSS_CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Every element's share, unsummed."""
    I: tl.constexpr = tl.int64 if WIDE else tl.int32
    tile = tl.program_id(0)
    t = tl.arange(0, VEC)[None, :]
    p = (tile // groups).to(I) * BLOCK + tl.arange(0, BLOCK)[:, None]
    n, c, y, x = _position(p, lanes, height, width, ALONG_C)
    valid = (p < positions) & (t < VEC)
