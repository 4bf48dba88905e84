"""Weighted L1 in Triton: one launch each way, the resized weight map never in memory.

Forward. With x the input, y the target, u the weight map at its own resolution and w = R u its bilinear resize,

    loss = Z sum_e w_e |x_e - y_e|        Z = 1 (sum), 1 / numel (mean) or 1 / sum_e w_e (mean by weight).

R is separable. Along an axis, sample i of the resized map is ``(1 - f) u[low] + f u[low + 1]`` with

    at = max((i + 1/2) in / out - 1/2, 0)          or, with align_corners, i (in - 1) / (out - 1)
    low = floor(at), f = at - low

in fp32, as PyTorch computes it. w is rebuilt where it is needed by four reads of u, which stays in cache: a pass reads
x and y once and writes nothing of their size.

Backward. For an incoming gradient g of the loss,

    d loss / d x_e = g Z w_e sign(x_e - y_e) = -d loss / d y_e        sign(0) = sign(NaN) = 0
    d loss / d u_k = g Z sum_e R_ek (|x_e - y_e| - m)                 m = loss for the mean by weight, 0 otherwise

m because Z depends on u there: d(A / B) = (dA - (A / B) dB) / B. Both read x, y and u again; nothing but the operands
is kept from one pass to the other. The transpose of R is written as a gather: cell k of u adds up its footprint
{e : low(e) = k or low(e) + 1 = k}, a rectangle that comes from inverting ``at``. Nothing in memory is added to twice,
so there are no float atomics.

One launch, and deterministic. Every program writes its share of the sum to a place of its own and then draws a ticket.
Whoever draws the last ticket knows that all shares are there, adds them up in order and sets the counter back to zero
for the next launch. Lanes sum in fp32, shares in fp64.

How images are walked. A lane holds VEC neighbouring elements, 128 bits where sizes and strides allow: along x, going
through CHUNK channels with the same weights, or along c (ALONG_C) in channels_last. Strides come in units of VEC
elements, so that the compiler sees what addresses are divisible by, except along the vector, where they count steps
from lane to lane. VEC = 1 is the general case, any strides at all; layouts that disagree need no copy.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._layout import is_channels_last
from ..._triton import COUNTERS, SHARES, WARPS_128, cores, on_device, workspace
from . import allocate
from .allocate import MEAN, NONE


@triton.jit
def _divide(a, b):
    # On fp32 `/` may be off by 2 ulp, and a scale that is off by one moves far positions by many.
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def _as(value, pointer):
    """``value`` in the type that ``pointer`` points to."""
    if pointer.dtype.element_ty == tl.bfloat16:
        value = value.to(tl.float32)  # the interpreter cannot convert fp64 to bf16
    return value.to(pointer.dtype.element_ty)


@triton.jit
def _axis(i, source_size, size, ALIGN: tl.constexpr, T: tl.constexpr):
    """(low, high, f): sample i of an axis resized to ``size`` is ``(1 - f) * source[low] + f * source[high]``."""
    if ALIGN:
        scale = _divide((source_size - 1).to(T), tl.maximum(size - 1, 1).to(T))
        at = tl.where(size > 1, scale, 0.0) * i.to(T)
    else:
        scale = _divide(source_size.to(T), size.to(T))
        at = tl.maximum(scale * (i.to(T) + 0.5) - 0.5, 0.0)
    low = tl.minimum(at.to(tl.int32), source_size - 1)
    # An axis that keeps its size is copied: f is 0, but 0 times a neighbour's NaN or inf would not be.
    high = tl.minimum(low + (source_size != size).to(tl.int32), source_size - 1)
    return low, high, tl.where(high > low, tl.minimum(at - low.to(T), 1.0), 0.0)


@triton.jit
def _resized(
    weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width, n, c, y, x, inside,
    ALIGN: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The resized map at (n, c, y, x)."""
    top, bottom, f = _axis(y, source_height, height, ALIGN, T)
    left, right, g = _axis(x, source_width, width, ALIGN, T)
    plane = weight + (n.to(tl.int64) * w_n + c.to(tl.int64) * w_c)
    above, below = plane + top.to(tl.int64) * w_h, plane + bottom.to(tl.int64) * w_h
    has_right, has_below = inside & (right > left), inside & (bottom > top)
    left, right = left.to(tl.int64) * w_w, right.to(tl.int64) * w_w
    # A second sample that is the first again is not read: f is 0 there, and 0 times inf would not be.
    above_left = tl.load(above + left, mask=inside, other=0.0).to(T)
    above_right = tl.load(above + right, mask=has_right, other=0.0).to(T)
    below_left = tl.load(below + left, mask=has_below, other=0.0).to(T)
    below_right = tl.load(below + right, mask=has_right & has_below, other=0.0).to(T)
    first = (1.0 - g) * above_left + g * above_right
    second = (1.0 - g) * below_left + g * below_right
    return (1.0 - f) * first + f * second


@triton.jit
def _tile(
    tile, groups, positions, lanes, height, width,
    ALONG_C: tl.constexpr, CHUNK: tl.constexpr, VEC: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(n, c, y, x) of a tile's vectors, c being the first of CHUNK; c and x of their elements; which vectors exist."""
    p = (tile // groups).to(tl.int64 if WIDE else tl.int32) * BLOCK + tl.arange(0, BLOCK)[:, None]
    t = tl.arange(0, VEC)[None, :]
    exists = p < positions
    lane = p % lanes
    p = p // lanes
    if ALONG_C:
        c, x = lane, p % width
        p = p // width
        channel, column = c * VEC + t, x
    else:
        c, x = tl.zeros_like(lane) + (tile % groups) * CHUNK, lane
        channel, column = c, x * VEC + t
    return p // height, c, p % height, x, channel, column, exists


@triton.jit
def _read(image, n, c, y, x, s_n, s_c, s_h, s_w, inside, UNIT: tl.constexpr, VEC: tl.constexpr, T: tl.constexpr):
    """The vectors at (n, c, y, x); UNIT 0: one value stands for all."""
    at = n.to(tl.int64) * s_n + c.to(tl.int64) * s_c + y.to(tl.int64) * s_h + x.to(tl.int64) * s_w
    t = tl.arange(0, VEC)[None, :] * UNIT
    return tl.load(image + (at * VEC + t), mask=inside, other=0.0).to(T)


@triton.jit
def _write(
    image, value, n, c, y, x, channels, height, width, lanes, inside,
    CHANNELS_LAST: tl.constexpr, ALONG_C: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """``_read``'s counterpart for a dense image."""
    n, c = n.to(tl.int64), c.to(tl.int64)
    if ALONG_C:
        at = ((n * height + y) * width + x) * lanes + c
    elif CHANNELS_LAST:
        at = ((n * height + y) * lanes + x) * channels + c
    else:
        at = ((n * channels + c) * height + y) * lanes + x
    tl.store(image + (at * VEC + tl.arange(0, VEC)[None, :]), _as(value, image), mask=inside)


@triton.jit
def _read_element(
    image, n, c, y, x, s_n, s_c, s_h, s_w, inside, ALONG_C: tl.constexpr, VEC: tl.constexpr, T: tl.constexpr
):
    """Single elements, for positions counted in elements but strides in vectors."""
    n, c, y, x = n.to(tl.int64), c.to(tl.int64), y.to(tl.int64), x.to(tl.int64)
    if ALONG_C:
        along, across = c * s_c, x * s_w
    else:
        along, across = x * s_w, c * s_c
    at = (n * s_n + y * s_h + across) * VEC + along
    return tl.load(image + at, mask=inside, other=0.0).to(T)


_WALK = (
    "groups", "positions", "lanes", "channels", "height", "width",
    "i_n", "i_c", "i_h", "i_w", "t_n", "t_c", "t_h", "t_w",
    "source_height", "source_width", "w_n", "w_c", "w_h", "w_w",
)  # fmt: skip


@triton.jit(do_not_specialize=[*_WALK, "tiles", "divisor"])
def loss_total(
    input, target, weight, loss, statistics, shares, counters, tiles, divisor,
    groups, positions, lanes, channels, height, width, i_n, i_c, i_h, i_w, t_n, t_c, t_h, t_w,
    source_height, source_width, w_n, w_c, w_h, w_w,
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
    total = tl.zeros([BLOCK, VEC], dtype=T)
    total_weight = tl.zeros([BLOCK, VEC], dtype=T)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        n, c, y, x, channel, column, exists = _tile(
            tile, groups, positions, lanes, height, width, ALONG_C, CHUNK, VEC, BLOCK, WIDE
        )
        w = tl.full([BLOCK, VEC], 1.0, dtype=T)
        if weight is not None and not PER_CHANNEL:
            w = _resized(
                weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
                n, tl.zeros_like(c), y, column, exists, ALIGN, T,
            )  # fmt: skip
        for k in tl.static_range(CHUNK):
            inside = exists & (c + k < channels)
            if weight is not None and PER_CHANNEL:
                w = _resized(
                    weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
                    n, channel + k, y, column, inside, ALIGN, T,
                )  # fmt: skip
            a = _read(input, n, c + k, y, x, i_n, i_c, i_h, i_w, inside, 1, VEC, T)
            b = _read(target, n, c + k, y, x, t_n, t_c, t_h, t_w, inside, 1, VEC, T)
            # Selected, not multiplied by the zeros read outside: a weight may be inf.
            total += tl.where(inside, w * tl.abs(a - b), 0.0)
            if statistics is not None:
                total_weight += tl.where(inside, w, 0.0)

    share, count = tl.program_id(0), tl.num_programs(0)
    tl.store(shares + share, tl.sum(total.to(tl.float64)))
    if statistics is not None:
        tl.store(shares + PROGRAMS + share, tl.sum(total_weight.to(tl.float64)))
    # Every thread's store comes before the ticket, which releases it; drawing a ticket acquires everybody else's.
    tl.debug_barrier()
    ticket = tl.atomic_add(counters, 1)
    if ticket == count - 1:
        i = tl.arange(0, PROGRAMS)
        numerator = tl.sum(tl.load(shares + i, mask=i < count, other=0.0, cache_modifier=".cg"))
        denominator = divisor.to(tl.float64)
        if statistics is not None:
            denominator = tl.sum(tl.load(shares + PROGRAMS + i, mask=i < count, other=0.0, cache_modifier=".cg"))
            tl.store(statistics, (numerator / denominator).to(T))
            tl.store(statistics + 1, denominator.to(T))
        tl.store(loss, _as(numerator / denominator, loss))
        tl.store(counters, 0)


@triton.jit(do_not_specialize=_WALK)
def loss_map(
    input, target, weight, loss,
    groups, positions, lanes, channels, height, width, i_n, i_c, i_h, i_w, t_n, t_c, t_h, t_w,
    source_height, source_width, w_n, w_c, w_h, w_w,
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
    """Every element's share, not summed."""
    n, c, y, x, channel, column, exists = _tile(
        tl.program_id(0), groups, positions, lanes, height, width, ALONG_C, CHUNK, VEC, BLOCK, WIDE
    )
    w = tl.full([BLOCK, VEC], 1.0, dtype=T)
    if weight is not None and not PER_CHANNEL:
        w = _resized(
            weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
            n, tl.zeros_like(c), y, column, exists, ALIGN, T,
        )  # fmt: skip
    for k in tl.static_range(CHUNK):
        inside = exists & (c + k < channels)
        if weight is not None and PER_CHANNEL:
            w = _resized(
                weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
                n, channel + k, y, column, inside, ALIGN, T,
            )  # fmt: skip
        a = _read(input, n, c + k, y, x, i_n, i_c, i_h, i_w, inside, 1, VEC, T)
        b = _read(target, n, c + k, y, x, t_n, t_c, t_h, t_w, inside, 1, VEC, T)
        _write(
            loss, w * tl.abs(a - b), n, c + k, y, x, channels, height, width, lanes, inside,
            LOSS_CHANNELS_LAST, ALONG_C, VEC,
        )  # fmt: skip


@triton.jit
def _footprint(k, source_size, size, ALIGN: tl.constexpr):
    """First sample of the resized axis that reads source cell k, and how many can (bounded over all cells)."""
    # The samples with k - 1 < at < k + 1; exact in integers. Clamping only widens the first and last cell's.
    if ALIGN:
        numerator, denominator = (k - 1).to(tl.int64) * (size - 1), tl.maximum(source_size - 1, 1)
        count = tl.where(source_size > 1, (2 * (size - 1) + denominator - 1) // denominator, size)
    else:
        numerator, denominator = (2 * k - 1).to(tl.int64) * size - source_size, 2 * source_size
        count = (2 * size + source_size - 1) // source_size
    # A single sample is at 0 with align_corners, not at a bound.
    first = tl.where((numerator < 0) | (size == 1), 0, numerator // denominator + 1)
    return first, tl.minimum(tl.maximum(count, 1), size)


@triton.jit(
    do_not_specialize=[
        *_WALK,
        "tiles",
        "divisor",
        "g_n",
        "g_c",
        "g_h",
        "g_w",
        "source_batch",
        "source_channels",
        "batch",
        "parts",
    ]
)
def gradients(
    input, target, weight, grad, statistics, grad_input, grad_target, grad_weight, shares, counters,
    tiles, divisor,
    groups, positions, lanes, channels, height, width, i_n, i_c, i_h, i_w, t_n, t_c, t_h, t_w,
    source_height, source_width, w_n, w_c, w_h, w_w,
    g_n, g_c, g_h, g_w, source_batch, source_channels, batch, parts,
    PER_CHANNEL: tl.constexpr,
    ALIGN: tl.constexpr,
    ALONG_C: tl.constexpr,
    CHUNK: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr,
    MAP: tl.constexpr,
    GRAD_UNIT: tl.constexpr,
    INPUT_CHANNELS_LAST: tl.constexpr,
    TARGET_CHANNELS_LAST: tl.constexpr,
    WEIGHT_CHANNELS_LAST: tl.constexpr,
    CELLS: tl.constexpr,
    REACH: tl.constexpr,
    SPLIT: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Programs below ``tiles`` do the images' gradients, the others the map's: CELLS cells by REACH elements at a time.

    MAP: ``grad`` has the images' size. SPLIT: ``parts`` programs share one cell, for maps of few cells.
    """
    scale = tl.full((), 1.0, T)
    if not MAP:
        if statistics is not None:
            scale = _divide(tl.load(grad).to(T), tl.load(statistics + 1))
        else:
            scale = _divide(tl.load(grad).to(T), divisor.to(T))
    if tl.program_id(0) < tiles:
        n, c, y, x, channel, column, exists = _tile(
            tl.program_id(0), groups, positions, lanes, height, width, ALONG_C, CHUNK, VEC, BLOCK, WIDE
        )
        w = tl.full([BLOCK, VEC], 1.0, dtype=T)
        if weight is not None and not PER_CHANNEL:
            w = _resized(
                weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
                n, tl.zeros_like(c), y, column, exists, ALIGN, T,
            )  # fmt: skip
        for k in tl.static_range(CHUNK):
            inside = exists & (c + k < channels)
            if weight is not None and PER_CHANNEL:
                w = _resized(
                    weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
                    n, channel + k, y, column, inside, ALIGN, T,
                )  # fmt: skip
            a = _read(input, n, c + k, y, x, i_n, i_c, i_h, i_w, inside, 1, VEC, T)
            b = _read(target, n, c + k, y, x, t_n, t_c, t_h, t_w, inside, 1, VEC, T)
            slope = scale * w
            if MAP:
                slope *= _read(grad, n, c + k, y, x, g_n, g_c, g_h, g_w, inside, GRAD_UNIT, VEC, T)
            slope *= (a > b).to(T) - (a < b).to(T)
            if grad_input is not None:
                _write(
                    grad_input, slope, n, c + k, y, x, channels, height, width, lanes, inside,
                    INPUT_CHANNELS_LAST, ALONG_C, VEC,
                )  # fmt: skip
            if grad_target is not None:
                _write(
                    grad_target, -slope, n, c + k, y, x, channels, height, width, lanes, inside,
                    TARGET_CHANNELS_LAST, ALONG_C, VEC,
                )  # fmt: skip
    else:
        if grad_weight is not None:
            # k_: cells of the map, e_: the elements that they gather from.
            block = (tl.program_id(0) - tiles) // parts
            part = (tl.program_id(0) - tiles) % parts
            id = block.to(tl.int64 if WIDE else tl.int32) * CELLS + tl.arange(0, CELLS)[:, None]
            k_x = id % source_width
            k_y = (id // source_width) % source_height
            plane = id // source_width // source_height
            k_c, k_n = plane % source_channels, plane // source_channels
            x_first, x_count = _footprint(k_x, source_width, width, ALIGN)
            y_first, y_count = _footprint(k_y, source_height, height, ALIGN)
            # A map shared by all channels, or all samples, gathers from all of them.
            c_count, n_count = channels // source_channels, batch // source_batch
            reach = x_count.to(tl.int64 if WIDE else tl.int32) * y_count * c_count * n_count
            mean = tl.full((), 0.0, T)
            if statistics is not None:
                mean = tl.load(statistics)
            gathered = tl.zeros([CELLS, REACH], dtype=T)
            step = tl.cdiv(tl.cdiv(reach, REACH), parts) * REACH
            for begin in range(part * step, tl.minimum(reach, (part + 1) * step), REACH):
                r = begin + tl.arange(0, REACH)[None, :]
                reached = (r < reach) & (k_n < source_batch)
                if ALONG_C:
                    e_c = k_c + r % c_count
                    r = r // c_count
                e_x = x_first + r % x_count
                r = r // x_count
                e_y = y_first + r % y_count
                r = r // y_count
                if not ALONG_C:
                    e_c = k_c + r % c_count
                    r = r // c_count
                e_n = k_n + r
                top, bottom, f = _axis(e_y, source_height, height, ALIGN, T)
                left, right, g = _axis(e_x, source_width, width, ALIGN, T)
                reached &= (e_x < width) & ((left == k_x) | (right == k_x))
                reached &= (e_y < height) & ((top == k_y) | (bottom == k_y))
                share_x = tl.where(left == k_x, 1.0 - g, 0.0) + tl.where(right == k_x, g, 0.0)
                share_y = tl.where(top == k_y, 1.0 - f, 0.0) + tl.where(bottom == k_y, f, 0.0)
                p = _read_element(input, e_n, e_c, e_y, e_x, i_n, i_c, i_h, i_w, reached, ALONG_C, VEC, T)
                q = _read_element(target, e_n, e_c, e_y, e_x, t_n, t_c, t_h, t_w, reached, ALONG_C, VEC, T)
                residual = tl.abs(p - q) - mean
                if MAP:
                    residual *= _read_element(grad, e_n, e_c, e_y, e_x, g_n, g_c, g_h, g_w, reached, ALONG_C, VEC, T)
                gathered += tl.where(reached, share_x * share_y * residual, 0.0)

            sums = tl.sum(gathered, axis=1, keep_dims=True)
            if WEIGHT_CHANNELS_LAST:
                at = ((k_n.to(tl.int64) * source_height + k_y) * source_width + k_x) * source_channels + k_c
            else:
                at = id.to(tl.int64)
            if SPLIT:
                mine = shares + block * parts
                tl.store(mine + part, tl.sum(sums.to(tl.float64)))
                tl.debug_barrier()
                ticket = tl.atomic_add(counters + 1 + block, 1)
                if ticket == parts - 1:
                    i = tl.arange(0, PROGRAMS)
                    whole = tl.sum(tl.load(mine + i, mask=i < parts, other=0.0, cache_modifier=".cg"))
                    whole = tl.zeros_like(sums) + whole.to(T) * scale
                    tl.store(grad_weight + at, _as(whole, grad_weight), mask=k_n < source_batch)
                    tl.store(counters + 1 + block, 0)
            else:
                tl.store(grad_weight + at, _as(sums * scale, grad_weight), mask=k_n < source_batch)


# Launchers. Chosen by machine code, not yet by the clock: 128 threads, a vector of each operand and channel per thread.
_BLOCK = 128
_PROGRAMS = 1024
_PROGRAMS_PER_CORE = 4
_CHUNK = 4
_INT32 = 2**31 - 1024
_SPLIT_CELLS = 512
_SPLIT_REACH = 2048
assert 2 * _PROGRAMS <= SHARES and 1 + _SPLIT_CELLS <= COUNTERS

_Strides = tuple[int, ...]


class Walk(NamedTuple):
    """How a launch goes through the images: sizes, strides and constants, in the kernels' order."""

    tiles: int
    groups: int
    positions: int
    lanes: int
    channels: int
    height: int
    width: int
    input: _Strides
    target: _Strides
    grad: _Strides
    along_c: bool
    chunk: int
    vec: int
    wide: bool
    flat: bool

    @property
    def sizes_and_strides(self) -> _Strides:
        return (*self[1:7], *self.input, *self.target)


def _walk(input: Tensor, target: Tensor, weight: Tensor | None, grad: Tensor | None) -> Walk:
    n, c, height, width = input.shape
    numel = input.numel()
    i, t = input.stride(), target.stride()
    # The gradient of a summed map is one value, expanded.
    g = (0, 0, 0, 0) if grad is None else grad.stride()
    constant = not any(g)
    vec = 16 // min(input.element_size(), target.element_size())
    if input.is_contiguous():
        rows = t[3] == 1 and (constant or g[3] == 1)
        nhwc = False
        flat = weight is None and target.is_contiguous() and (grad is None or constant or grad.is_contiguous())
    else:
        nhwc = is_channels_last(input) and is_channels_last(target)
        nhwc = nhwc and (grad is None or constant or is_channels_last(grad))
        rows = i[3] == 1 and t[3] == 1 and (constant or g[3] == 1)
        flat = weight is None and nhwc
    if flat:
        n = c = height = 1
        width = numel
        i = t = (0, 0, 0, 1)
        g = g if constant else i
        nhwc, rows = False, True
    along_c = False
    if nhwc:
        vec = gcd(vec, c)
        along_c = vec > 1
    elif rows:
        vec = gcd(vec, width, *i[:3], *t[:3], *(() if constant else g[:3]))
    else:
        vec = 1
    if along_c:
        lanes, chunk, groups = c // vec, 1, 1
        positions = n * height * width * lanes
        i, t, g = (_units(s, vec, 1) for s in (i, t, g))
    else:
        lanes, chunk = width // vec, max(1, min(c, _CHUNK))
        groups = max(1, triton.cdiv(c, chunk))
        positions = n * height * lanes
        if vec > 1:
            i, t, g = (_units(s, vec, 3) for s in (i, t, g))
    tiles = triton.cdiv(positions, _BLOCK) * groups
    wide = numel >= _INT32
    return Walk(tiles, groups, positions, lanes, c, height, width, i, t, g, along_c, chunk, vec, wide, flat)


def _units(stride: _Strides, vec: int, along: int) -> _Strides:
    """Strides in vectors; along them, from vector to vector: 1, or 0 for one value that stands for all."""
    n, c, h, w = stride
    if along == 1:
        return n // vec, c, h // vec, w // vec
    return n // vec, c // vec, h // vec, w


def _weight(weight: Tensor | None) -> tuple[int | None, ...]:
    """Sizes and strides of the map; one shared by all samples or channels has stride 0 there."""
    if weight is None:
        return (None,) * 6
    n, c, height, width = weight.shape
    w_n, w_c, w_h, w_w = weight.stride()
    return height, width, w_n if n > 1 else 0, w_c if c > 1 else 0, w_h, w_w


def _compute(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype is torch.float64 else tl.float32


def forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    by_weight: bool,
    align_corners: bool,
    fp32: bool,
) -> list[Tensor]:
    """As ``reference.forward``."""
    out = allocate.loss(input, target, weight, reduction, by_weight, fp32)
    numel = input.numel()
    if numel == 0:
        if reduction != NONE:
            out[0].fill_(float("nan") if reduction == MEAN else 0.0)
        if by_weight:
            out[1].copy_(torch.tensor((float("nan"), 0.0)))
        return out
    walk = _walk(input, target, weight, None)
    per_channel = weight is not None and weight.shape[1] > 1
    compute = _compute(allocate.compute_dtype(input, target, weight))
    with on_device(input.device):
        if reduction == NONE:
            loss_map[(walk.tiles,)](
                input, target, weight, out[0], *walk.sizes_and_strides, *_weight(weight),
                per_channel, align_corners, walk.along_c, walk.chunk, walk.vec, _BLOCK, walk.wide, compute,
                not walk.flat and is_channels_last(out[0]), num_warps=WARPS_128,
            )  # fmt: skip
            return out
        shares, counters = workspace(input.device)
        # One wave: what the last stragglers wait for is one tile, and the lanes' sums are as short as that allows.
        programs = min(_PROGRAMS_PER_CORE, _PROGRAMS // cores(input.device)) * cores(input.device)
        loss_total[(min(walk.tiles, programs),)](
            input, target, weight, out[0], out[1] if by_weight else None, shares, counters,
            walk.tiles, numel if reduction == MEAN else 1, *walk.sizes_and_strides, *_weight(weight),
            per_channel, align_corners, walk.along_c, walk.chunk, walk.vec, _BLOCK, walk.wide, compute,
            _PROGRAMS, num_warps=WARPS_128,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    statistics: Tensor | None,
    reduction: int,
    align_corners: bool,
    need_input: bool,
    need_target: bool,
    need_weight: bool,
) -> list[Tensor]:
    """As ``reference.backward``."""
    out = allocate.gradients(input, target, weight, need_input, need_target, need_weight)
    numel = input.numel()
    if numel == 0 or not out:
        for empty in out:
            empty.zero_()
        return out
    need_weight = need_weight and weight is not None
    grad_input = out[0] if need_input else None
    grad_target = out[need_input] if need_target else None
    grad_weight = out[-1] if need_weight else None
    walk = _walk(input, target, weight, grad if reduction == NONE else None)
    tiles = walk.tiles if need_input or need_target else 0
    batch = input.shape[0]
    source_batch, source_channels = weight.shape[:2] if weight is not None else (None, None)
    cells, reach, parts, programs = 1, 1, 1, tiles
    if need_weight:
        assert weight is not None
        cells, reach, parts = _gather_shape(input, weight)
        programs += triton.cdiv(weight.numel(), cells) * parts
    split = parts > 1
    with on_device(input.device):
        shares, counters = workspace(input.device) if split else (None, None)
        gradients[(programs,)](
            input, target, weight, grad, statistics, grad_input, grad_target, grad_weight, shares, counters,
            tiles, numel if reduction == MEAN else 1, *walk.sizes_and_strides, *_weight(weight), *walk.grad,
            source_batch, source_channels, batch, parts,
            weight is not None and weight.shape[1] > 1, align_corners, walk.along_c, walk.chunk, walk.vec, _BLOCK,
            walk.wide, _compute(allocate.compute_dtype(input, target, weight)), reduction == NONE,
            int(any(walk.grad)), not walk.flat and grad_input is not None and is_channels_last(grad_input),
            not walk.flat and grad_target is not None and is_channels_last(grad_target),
            grad_weight is not None and is_channels_last(grad_weight), cells, reach, split, _PROGRAMS,
            num_warps=WARPS_128,
        )  # fmt: skip
    return out


def _gather_shape(input: Tensor, weight: Tensor) -> tuple[int, int, int]:
    """(CELLS, REACH, parts) of the map's gradient: lanes go to a cell's footprint as far as it fills them."""
    cells = weight.numel()
    # Every pixel of every sample and channel belongs to about four cells.
    footprint = 4 * input.numel() // cells
    if cells <= _SPLIT_CELLS and footprint > 2 * _SPLIT_REACH:
        return 1, 4 * _BLOCK, min(triton.cdiv(footprint, _SPLIT_REACH), SHARES // cells, _PROGRAMS)
    reach = 16 if footprint <= 64 else _BLOCK if footprint <= 1024 else 4 * _BLOCK
    return 4 * _BLOCK // reach, reach, 1
