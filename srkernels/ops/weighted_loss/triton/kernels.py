"""Weighted losses in Triton: one launch forward, one for the images' gradients, one for the map's.

The resized weight map is never in memory.

Forward. With x the input, y the target, u the weight map at its own resolution and w = R u its bilinear resize,

    loss = Z sum_e w_e rho(x_e - y_e)     Z = 1 (sum), 1 / numel (mean) or 1 / sum_e w_e (mean by weight).

rho(d) is |d|, or another penalty (``_penalty``). R is separable. Along an axis, sample i of the resized map is
``(1 - f) u[low] + f u[low + 1]`` with

    at = max((i + 1/2) in / out - 1/2, 0)          or, with align_corners, i (in - 1) / (out - 1)
    low = floor(at), f = at - low         or, nearest, low = floor(i in / out) and f = 0

in fp32, as PyTorch computes it. w is rebuilt where it is needed by four reads of u, which stays in cache: a pass reads
x and y once and writes nothing of their size.

Backward. For an incoming gradient g of the loss,

    d loss / d x_e = g Z w_e rho'(x_e - y_e) = -d loss / d y_e        |d|' = sign(d), sign(0) = sign(NaN) = 0
    d loss / d u_k = g Z sum_e R_ek (rho(x_e - y_e) - m)              m = loss for the mean by weight, 0 otherwise

m is there because Z depends on u: d(A / B) = (dA - (A / B) dB) / B. Both read x, y and u again; nothing but the
operands is kept between the passes. The transpose of R is written as a gather: cell k of u adds up its footprint
{e : low(e) = k or low(e) + 1 = k}, a rectangle that comes from inverting ``at``. Nothing in memory is added to twice,
so there are no float atomics.

One launch, and deterministic. Every program writes its share of the sum to a place of its own and then draws a ticket.
The one that draws the last knows that all shares are there, adds them up in order and sets the counter back to zero
for the next launch. Lanes sum in fp32, shares in fp64.

How images are walked. A lane holds VEC neighbouring elements, 128 bits where sizes and strides allow: along x, going
through CHUNK channels with the same weights, or along c (ALONG_C) in channels_last. Strides come in units of VEC
elements, so that the compiler sees what addresses are divisible by, except along the vector, where they count steps
from lane to lane. VEC = 1 is the general case, any strides at all; layouts that disagree need no copy.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..arguments import BILINEAR_CORNERS, CHARBONNIER, HUBER, L1, MSE, NEAREST

_CORNERS, _NEAREST = tl.constexpr(BILINEAR_CORNERS), tl.constexpr(NEAREST)
_L1, _CHARBONNIER, _MSE, _HUBER = tl.constexpr(L1), tl.constexpr(CHARBONNIER), tl.constexpr(MSE), tl.constexpr(HUBER)


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
def _root(x):
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def _penalty(d, KIND: tl.constexpr, PARAMETER: tl.constexpr, T: tl.constexpr):
    if KIND == _L1:
        return tl.abs(d)
    elif KIND == _MSE:
        return d * d
    else:
        parameter = tl.full((), PARAMETER, T)
        if KIND == _CHARBONNIER:
            return _root(d * d + parameter)
        else:
            size = tl.abs(d)
            return tl.where(size <= parameter, 0.5 * d * d, parameter * (size - 0.5 * parameter))


@triton.jit
def _slope(a, b, KIND: tl.constexpr, PARAMETER: tl.constexpr, T: tl.constexpr):
    """The derivative of ``_penalty(a - b)`` by a."""
    if KIND == _L1:
        return (a > b).to(T) - (a < b).to(T)
    elif KIND == _MSE:
        return 2.0 * (a - b)
    else:
        d, parameter = a - b, tl.full((), PARAMETER, T)
        if KIND == _CHARBONNIER:
            return _divide(d, _root(d * d + parameter))
        else:
            return tl.where(d > parameter, parameter, tl.where(d < -parameter, -parameter, d))


@triton.jit
def _axis(i, source_size, size, RESIZE: tl.constexpr, T: tl.constexpr):
    """(low, high, f): sample i of an axis resized to ``size`` is ``(1 - f) * source[low] + f * source[high]``."""
    if RESIZE == _NEAREST:
        # Rounded to fp32 before it is cut, as in PyTorch.
        at = (_divide(source_size.to(T), size.to(T)) * i.to(T)).to(tl.float32)
        low = tl.minimum(at.to(tl.int32), source_size - 1)
        return low, low, tl.zeros_like(at).to(T)
    if RESIZE == _CORNERS:
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
    RESIZE: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The resized map at (n, c, y, x)."""
    top, bottom, f = _axis(y, source_height, height, RESIZE, T)
    left, right, g = _axis(x, source_width, width, RESIZE, T)
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
def _weight(
    weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width, n, c, y, x, inside,
    RESIZE: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The resized map at (n, c, y, x); ones without a map."""
    if weight is None:
        return tl.full([BLOCK, VEC], 1.0, dtype=T)
    else:
        return _resized(
            weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width, n, c, y, x, inside, RESIZE, T
        )


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
    RESIZE: tl.constexpr,
    KIND: tl.constexpr,
    PARAMETER: tl.constexpr,
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
        if not PER_CHANNEL:
            w = _weight(
                weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
                n, tl.zeros_like(c), y, column, exists, RESIZE, BLOCK, VEC, T,
            )  # fmt: skip
        for k in tl.static_range(CHUNK):
            inside = exists & (c + k < channels)
            if PER_CHANNEL:
                w = _weight(
                    weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
                    n, channel + k, y, column, inside, RESIZE, BLOCK, VEC, T,
                )  # fmt: skip
            a = _read(input, n, c + k, y, x, i_n, i_c, i_h, i_w, inside, 1, VEC, T)
            b = _read(target, n, c + k, y, x, t_n, t_c, t_h, t_w, inside, 1, VEC, T)
            # Selected, not multiplied by the zeros read outside: a weight may be inf.
            total += tl.where(inside, w * _penalty(a - b, KIND, PARAMETER, T), 0.0)
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
    RESIZE: tl.constexpr,
    KIND: tl.constexpr,
    PARAMETER: tl.constexpr,
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
    if not PER_CHANNEL:
        w = _weight(
            weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
            n, tl.zeros_like(c), y, column, exists, RESIZE, BLOCK, VEC, T,
        )  # fmt: skip
    for k in tl.static_range(CHUNK):
        inside = exists & (c + k < channels)
        if PER_CHANNEL:
            w = _weight(
                weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
                n, channel + k, y, column, inside, RESIZE, BLOCK, VEC, T,
            )  # fmt: skip
        a = _read(input, n, c + k, y, x, i_n, i_c, i_h, i_w, inside, 1, VEC, T)
        b = _read(target, n, c + k, y, x, t_n, t_c, t_h, t_w, inside, 1, VEC, T)
        _write(
            loss, w * _penalty(a - b, KIND, PARAMETER, T), n, c + k, y, x, channels, height, width, lanes, inside,
            LOSS_CHANNELS_LAST, ALONG_C, VEC,
        )  # fmt: skip


@triton.jit
def _footprint(k, source_size, size, RESIZE: tl.constexpr):
    """First sample of the resized axis that reads source cell k, and how many can (bounded over all cells)."""
    # The samples with k - 1 < at < k + 1; exact in integers. Clamping only widens the first and last cell's.
    if RESIZE == _NEAREST:
        numerator, denominator = (k.to(tl.int64) * size - 2 * source_size), source_size  # and one for rounding
        count = size // source_size + 4
    elif RESIZE == _CORNERS:
        numerator, denominator = (k - 1).to(tl.int64) * (size - 1), tl.maximum(source_size - 1, 1)
        count = tl.where(source_size > 1, (2 * (size - 1) + denominator - 1) // denominator, size)
    else:
        numerator, denominator = (2 * k - 1).to(tl.int64) * size - source_size, 2 * source_size
        count = (2 * size + source_size - 1) // source_size
    # A single sample is at 0 with align_corners, not at a bound.
    first = tl.where((numerator < 0) | (size == 1), 0, numerator // denominator + 1)
    return first, tl.minimum(tl.maximum(count, 1), size)


@triton.jit
def _scale(grad, statistics, divisor, MAP: tl.constexpr, T: tl.constexpr):
    """g Z; 1 where ``grad`` has the images' size and is read element by element."""
    if MAP:
        return tl.full((), 1.0, T)
    elif statistics is not None:
        return _divide(tl.load(grad).to(T), tl.load(statistics + 1))
    else:
        return _divide(tl.load(grad).to(T), divisor.to(T))


@triton.jit(do_not_specialize=[*_WALK, "divisor", "g_n", "g_c", "g_h", "g_w"])
def image_gradients(
    input, target, weight, grad, statistics, grad_input, grad_target, divisor,
    groups, positions, lanes, channels, height, width, i_n, i_c, i_h, i_w, t_n, t_c, t_h, t_w,
    source_height, source_width, w_n, w_c, w_h, w_w,
    g_n, g_c, g_h, g_w,
    PER_CHANNEL: tl.constexpr,
    RESIZE: tl.constexpr,
    KIND: tl.constexpr,
    PARAMETER: tl.constexpr,
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
):  # fmt: skip
    """Gradients of the images, a tile each program. MAP: ``grad`` has the images' size."""
    n, c, y, x, channel, column, exists = _tile(
        tl.program_id(0), groups, positions, lanes, height, width, ALONG_C, CHUNK, VEC, BLOCK, WIDE
    )
    if not PER_CHANNEL:
        w = _weight(
            weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
            n, tl.zeros_like(c), y, column, exists, RESIZE, BLOCK, VEC, T,
        )  # fmt: skip
    scale = _scale(grad, statistics, divisor, MAP, T)  # after the map: before it, registers spill on Triton 3.6
    for k in tl.static_range(CHUNK):
        inside = exists & (c + k < channels)
        if PER_CHANNEL:
            w = _weight(
                weight, w_n, w_c, w_h, w_w, source_height, source_width, height, width,
                n, channel + k, y, column, inside, RESIZE, BLOCK, VEC, T,
            )  # fmt: skip
        a = _read(input, n, c + k, y, x, i_n, i_c, i_h, i_w, inside, 1, VEC, T)
        b = _read(target, n, c + k, y, x, t_n, t_c, t_h, t_w, inside, 1, VEC, T)
        slope = scale * w
        if MAP:
            slope *= _read(grad, n, c + k, y, x, g_n, g_c, g_h, g_w, inside, GRAD_UNIT, VEC, T)
        slope *= _slope(a, b, KIND, PARAMETER, T)
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


@triton.jit(
    do_not_specialize=[
        *(name for name in _WALK if name not in ("groups", "positions", "lanes", "w_n", "w_c", "w_h", "w_w")),
        *("divisor", "g_n", "g_c", "g_h", "g_w", "source_batch", "source_channels", "batch", "parts"),
    ]
)
def map_gradient(
    input, target, grad, statistics, grad_weight, shares, counters, divisor,
    channels, height, width, i_n, i_c, i_h, i_w, t_n, t_c, t_h, t_w, source_height, source_width,
    g_n, g_c, g_h, g_w, source_batch, source_channels, batch, parts,
    RESIZE: tl.constexpr,
    KIND: tl.constexpr,
    PARAMETER: tl.constexpr,
    ALONG_C: tl.constexpr,
    VEC: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr,
    MAP: tl.constexpr,
    WEIGHT_CHANNELS_LAST: tl.constexpr,
    CELLS: tl.constexpr,
    REACH: tl.constexpr,
    SPLIT: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Gradient of the map: CELLS cells a program, which gather from REACH elements at a time.

    MAP: ``grad`` has the images' size. SPLIT: ``parts`` programs share one cell, for maps of few cells.
    """
    scale = _scale(grad, statistics, divisor, MAP, T)
    # k_: cells of the map, e_: the elements that they gather from.
    block = tl.program_id(0) // parts
    part = tl.program_id(0) % parts
    id = block.to(tl.int64 if WIDE else tl.int32) * CELLS + tl.arange(0, CELLS)[:, None]
    k_x = id % source_width
    k_y = (id // source_width) % source_height
    plane = id // source_width // source_height
    k_c, k_n = plane % source_channels, plane // source_channels
    x_first, x_count = _footprint(k_x, source_width, width, RESIZE)
    y_first, y_count = _footprint(k_y, source_height, height, RESIZE)
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
        top, bottom, f = _axis(e_y, source_height, height, RESIZE, T)
        left, right, g = _axis(e_x, source_width, width, RESIZE, T)
        reached &= (e_x < width) & ((left == k_x) | (right == k_x))
        reached &= (e_y < height) & ((top == k_y) | (bottom == k_y))
        share_x = tl.where(left == k_x, 1.0 - g, 0.0) + tl.where(right == k_x, g, 0.0)
        share_y = tl.where(top == k_y, 1.0 - f, 0.0) + tl.where(bottom == k_y, f, 0.0)
        p = _read_element(input, e_n, e_c, e_y, e_x, i_n, i_c, i_h, i_w, reached, ALONG_C, VEC, T)
        q = _read_element(target, e_n, e_c, e_y, e_x, t_n, t_c, t_h, t_w, reached, ALONG_C, VEC, T)
        residual = _penalty(p - q, KIND, PARAMETER, T) - mean
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
