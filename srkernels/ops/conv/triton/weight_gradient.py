"""The weight gradient of 3x3 convolutions in Triton, and what moves filters. Stride 1, zero padding, channels_last.

    d / d W_t  = sum_q g_z_{q-t} x_q'         a matrix product over pixels q; g_z is zero outside the image
    d / d bias = sum_p g_z_p

``weight_gradient`` splits the sum over pixels among programs. Each has K input and N output channels, and with NINE all
taps: x at the columns x-1 | x and x+1, times g_z at the rows (y+1 | y) and y-1. Tiles that lie side by side are one
operand, so that four products make the nine sums, as in ``stream``. Nine sums are more than most processors have
registers for; without NINE a program has the taps of one filter row.

Each share has a place of its own, and ``add_up`` sums them in order: no float atomics, and every result is
deterministic. A dense block's five gradients are one product of its two buffers, features by gradients: blocks of it
that belong to no convolution are computed in vain, one in nine at 64 channels and a growth of 32, and ``add_up`` leaves
them out. ``pack`` brings its filters into one tensor of that form, (output, 3, 3, input) channels.

The sum over g_z is a product with ones; not for fp32, which tf32 would round.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .convolution import SIZES, _as, _dot


@triton.jit
def _gradients(grad_z, pixel, line, o, dy, height, width, exists, PITCH: tl.constexpr):
    """g_z ``dy`` rows below ``pixel``, transposed."""
    real = exists & (line + dy >= 0) & (line + dy < height)
    return tl.trans(tl.load(grad_z + (pixel + dy * width) * PITCH + o, mask=real, other=0.0))


@triton.jit
def _store_share(shares, share, sums, o, i, dy, dx, inside, CIN: tl.constexpr, COUT: tl.constexpr):
    """Sums of output channels and filter rows (a column) by input channels and filter columns (a row)."""
    at = ((share.to(tl.int64) * COUT + o) * 9 + 3 * dy + dx) * CIN + i
    tl.store(shares + at, sums, mask=inside & (i < CIN))


@triton.jit(do_not_specialize=SIZES)
def weight_gradient(
    x, grad_z, shares, bias_shares, height, width, pixels, steps_each,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    X_PITCH: tl.constexpr,
    GRAD_PITCH: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    WIDE: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    NINE: tl.constexpr,
):  # fmt: skip
    """A share of NINE taps or of one filter row, K input by N output channels: ``steps_each`` times P pixels."""
    program = tl.program_id(0)
    first_i = program % tl.cdiv(CIN, K) * K
    program = program // tl.cdiv(CIN, K)
    first_o = program % tl.cdiv(COUT, N) * N
    share = program // tl.cdiv(COUT, N)
    dy = share * 0
    if not NINE:
        dy = share % 3
        share = share // 3
    # Rows of an operand: output channels at one filter row, with NINE at two. A Hopper product has 64 rows per
    # four warps, so with few channels it has three filter rows and a fourth that is zero.
    REST: tl.constexpr = NINE and N > 32
    ROWS: tl.constexpr = N if not NINE else 2 * N if REST else 4 * N
    r = tl.arange(0, ROWS)
    r_o, r_dy = first_o + r % N, dy + r // N
    mine = (r_o < COUT) & (r_dy < 3)
    rest = first_o + tl.arange(0, N)
    two = tl.arange(0, 2 * K)[None, :]
    two_i, two_dx = first_i + two % K, two // K
    i = first_i + tl.arange(0, K)[None, :]

    sums = tl.zeros([ROWS, 2 * K], dtype=T)
    sums_right = tl.zeros([ROWS, K], dtype=T)
    rest_sums = tl.zeros([N, 2 * K], dtype=T)
    rest_right = tl.zeros([N, K], dtype=T)
    bias_sum = tl.zeros([ROWS, 16], dtype=T)
    ones = tl.where(tl.arange(0, 16)[None, :] + tl.zeros([P, 1], dtype=tl.int32) == 0, 1.0, 0.0).to(
        grad_z.dtype.element_ty
    )
    steps = tl.cdiv(pixels, P).to(tl.int64 if WIDE else tl.int32)
    begin = share.to(tl.int64 if WIDE else tl.int32) * steps_each
    for step in range(begin, tl.minimum(begin + steps_each, steps)):
        pixel = step * P + tl.arange(0, P)[:, None]
        exists = pixel < pixels
        column, line = pixel % width, pixel // width % height
        pixel = pixel.to(tl.int64)
        real = exists & (two_i < CIN) & ((column > 0) | (two_dx > 0))
        left_middle = tl.load(x + ((pixel + two_dx - 1) * X_PITCH + two_i), mask=real, other=0.0)
        real = exists & (i < CIN) & (column < width - 1)
        right = tl.load(x + ((pixel + 1) * X_PITCH + i), mask=real, other=0.0)
        # The filter row dy of 0, 1, 2 looks at x a row up, here, down: so g_z is a row down, here, up.
        g = _gradients(
            grad_z, pixel, line, r_o[None, :], 1 - r_dy[None, :], height, width, exists & mine[None, :], GRAD_PITCH
        )
        sums = _dot(g, left_middle, sums, PRECISION)
        sums_right = _dot(g, right, sums_right, PRECISION)
        if bias_shares is not None:
            bias_sum = _dot(g, ones, bias_sum, PRECISION)
        if REST:
            o = rest[None, :]
            g = _gradients(grad_z, pixel, line, o, -1, height, width, exists & (o < COUT), GRAD_PITCH)
            rest_sums = _dot(g, left_middle, rest_sums, PRECISION)
            rest_right = _dot(g, right, rest_right, PRECISION)
    o, row, mine_o = r_o[:, None], r_dy[:, None], mine[:, None]
    _store_share(shares, share, sums, o, two_i, row, two_dx, mine_o, CIN, COUT)
    _store_share(shares, share, sums_right, o, i, row, 2, mine_o, CIN, COUT)
    if REST:
        o = rest[:, None]
        _store_share(shares, share, rest_sums, o, two_i, 2, two_dx, o < COUT, CIN, COUT)
        _store_share(shares, share, rest_right, o, i, 2, 2, o < COUT, CIN, COUT)
    if bias_shares is not None:
        once = mine & (r_dy == 1) & (first_i + r * 0 == 0)
        tl.store(bias_shares + share.to(tl.int64) * COUT + r_o, tl.sum(bias_sum, 1), mask=once)


@triton.jit
def _one_of_five(k, t0, t1, t2, t3, t4):
    """``t0`` if there is no other."""
    found = t0
    if t4 is not None:
        if k == 1:
            found = t1
        if k == 2:
            found = t2
        if k == 3:
            found = t3
        if k == 4:
            found = t4
    return found


@triton.jit
def _rows_of(o, C: tl.constexpr, GROWTH: tl.constexpr, CIN: tl.constexpr):
    """Which convolution's output channel row ``o`` is, its index there, and how many input channels that has.

    With a GROWTH the rows are a dense block's: C of its last convolution, then GROWTH of each one before.
    """
    k, own, inputs = o * 0, o, CIN + o * 0
    if GROWTH > 0:
        k = tl.where(o < C, 4, 3 - (o - C) // GROWTH)
        own = tl.where(o < C, o, (o - C) % GROWTH)
        inputs = C + k * GROWTH
    return k, own, inputs


@triton.jit
def _in_filters(o, tap, i, inputs, LAST: tl.constexpr):
    return (o * 9 + tap) * inputs + i if LAST else (o * inputs + i) * 9 + tap


@triton.jit(do_not_specialize=SIZES)
def add_up(
    shares, bias_shares, w0, w1, w2, w3, w4, b0, b1, b2, b3, b4, count,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    C: tl.constexpr,
    GROWTH: tl.constexpr,
    SCALE: tl.constexpr,
    LAST: tl.constexpr,
    S: tl.constexpr,
    E: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """SCALE times the sum of ``count`` shares: E weights of an output channel and, once, its bias.

    The gradients are dense, channels_last if LAST and contiguous otherwise: ``w0`` and, if it is wanted, ``b0``.
    With a GROWTH they are a dense block's five.
    """
    blocks = tl.cdiv(9 * CIN, E)
    o, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    k, own, inputs = _rows_of(o, C, GROWTH, CIN)
    e = block * E + tl.arange(0, E)
    sums = tl.zeros([S, E], dtype=T)
    bias_sums = tl.zeros([S], dtype=T)
    for first in range(0, count, S):
        share = first + tl.arange(0, S)
        at = (share.to(tl.int64)[:, None] * COUT + o) * (9 * CIN) + e[None, :]
        sums += tl.load(shares + at, mask=(share < count)[:, None] & (e < 9 * CIN)[None, :], other=0.0)
        if bias_shares is not None:
            bias_sums += tl.load(bias_shares + share.to(tl.int64) * COUT + o, mask=share < count, other=0.0)
    tap, i = e // CIN, e % CIN
    weight = _one_of_five(k, w0, w1, w2, w3, w4)
    at = _in_filters(own, tap, i, inputs, LAST)
    tl.store(weight + at, _as(tl.sum(sums, 0) * SCALE, weight), mask=(e < 9 * CIN) & (i < inputs))
    if b0 is not None:
        bias = _one_of_five(k, b0, b1, b2, b3, b4)
        tl.store(bias + own, _as(tl.sum(bias_sums, 0) * SCALE, bias), mask=block == 0)


@triton.jit
def pack(
    w0, w1, w2, w3, w4, packed,
    CIN: tl.constexpr,
    C: tl.constexpr,
    GROWTH: tl.constexpr,
    LAST: tl.constexpr,
    E: tl.constexpr,
):  # fmt: skip
    """E weights of an output channel of a dense block; where a convolution has no such input channel, nothing."""
    blocks = tl.cdiv(9 * CIN, E)
    o, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    k, own, inputs = _rows_of(o, C, GROWTH, CIN)
    e = block * E + tl.arange(0, E)
    tap, i = e // CIN, e % CIN
    weight = _one_of_five(k, w0, w1, w2, w3, w4)
    inside = (e < 9 * CIN) & (i < inputs)
    value = tl.load(weight + _in_filters(own, tap, i, inputs, LAST), mask=inside, other=0.0)
    tl.store(packed + (o * (9 * CIN) + e), value, mask=inside)
