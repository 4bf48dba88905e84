"""3x3 convolutions with their epilogue in Triton: kernels and their launches. Stride 1, zero padding, channels_last.

Forward. With p a pixel, t one of the nine offsets of a filter, W_t the Cout x Cin matrix of its weights there,

    z_p = sum_t W_t x_{p+t} + bias            x is zero outside the image
    y_p = scale * act(z_p) + residual_p

A pixel's channels are neighbours in memory, so every t is a matrix product: a tile of pixels, moved by t, times W_t'.
Sums are fp32 (fp64 of fp64 operands), start from the bias and stay in registers until y is rounded, once. A pixel's
channels may be a slice of wider pixels, PITCH elements apart: so a dense block reads and writes one buffer. Outputs
are written in whichever layout they have.

Backward. For an incoming gradient g of y and g_z = scale * g * act'(z),

    d / d x_q  = sum_t W_t' g_z_{q-t}         the same convolution: filters turned by 180 degrees, channels swapped;
                                              where x came out of an activation, that one's act' is its epilogue
    d / d W_t  = sum_q g_z_{q-t} x_q'         a matrix product over pixels
    d / d bias = sum_p g_z_p
    d / d slope = sum_p scale * g_p * z_p     where z_p is not positive

act' needs the sign of z alone, which y has where nothing was added to it; the slopes' gradient needs z.
``through_activation`` makes g_z and both sums over pixels in one pass. It is left out where an epilogue has made g_z:
the weight gradient, which reads all of g_z, sums it up as a product with ones. Not of fp32, which tf32 would round.

Two kernels convolve, forward or ADJOINT. What bounds the obvious one, ``gather``, is that it fetches every pixel nine
times from cache. ``stream`` fetches it three times: a program walks down a strip of columns with all nine W_t in
shared memory. It loads a row of pixels at the columns x-1, x and x+1, and each of these tiles serves three output
rows, the one above, the same and the one below, whose sums are in registers. The one above is then complete and is
stored, and the others move up. This takes all that a Hopper has, and Cin in one block; ``gather`` runs everywhere, and
loops over taps and blocks of input channels.

The weight gradient splits its sum over pixels among programs. With NINE a program has all taps: three tiles of x, at
the columns x-1, x and x+1, times three of g_z, at the rows y+1, y and y-1. Nine sums are more than most processors
have registers for; without NINE a program has the taps of one filter row. Shares go to places of their own and are
summed in order afterwards. Nothing is added to twice: no float atomics, and every result is deterministic.

Padding is multiplied like everything else: a weight of inf or NaN makes NaN along the border, and a pixel of the border
that is inf or NaN makes NaN of the taps that do not reach it, too.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton import WARPS_128, cores, interpreting
from . import activation as codes

NONE = tl.constexpr(codes.NONE)
RELU = tl.constexpr(codes.RELU)
LEAKY_RELU = tl.constexpr(codes.LEAKY_RELU)
PRELU = tl.constexpr(codes.PRELU)
_INTERPRETING = tl.constexpr(interpreting())


@triton.jit
def _dot(a, b, sums, PRECISION: tl.constexpr):
    # The interpreter multiplies the bits of bf16 matrices, not their values, and fp16 ones slowly.
    if _INTERPRETING and a.dtype.primitive_bitwidth == 16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)


@triton.jit
def _as(value, pointer):
    """``value`` rounded to what ``pointer`` points to."""
    if _INTERPRETING and pointer.dtype.element_ty == tl.bfloat16:
        # The interpreter cuts bits off: add half of the last one, or what makes a tie even.
        bits = value.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        value = tl.where(value == value, rounded, value)
    return value.to(pointer.dtype.element_ty)


@triton.jit
def _filter(weight, tap, i, o, CIN: tl.constexpr, COUT: tl.constexpr, ADJOINT: tl.constexpr):
    """The matrix of one tap, input channels ``i`` (a column) by output channels ``o`` (a row).

    ``weight`` is channels_last, (Cout, 3, 3, Cin) in memory; that of the convolution which ADJOINT transposes.
    """
    at = (i * 9 + 8 - tap) * COUT + o if ADJOINT else (o * 9 + tap) * CIN + i
    return tl.load(weight + at, mask=(i < CIN) & (o < COUT), other=0.0)


@triton.jit
def _start(bias, o, COUT: tl.constexpr, M: tl.constexpr, T: tl.constexpr):
    """What the sums of M pixels start from."""
    if bias is None:
        return tl.zeros([M, o.shape[1]], dtype=T)
    else:
        return tl.load(bias + o, mask=o < COUT, other=0.0).to(T) + tl.zeros([M, 1], dtype=T)


@triton.jit
def _slopes(slope, c, C: tl.constexpr, SLOPES: tl.constexpr, T: tl.constexpr):
    """PReLU's slopes of channels ``c``."""
    if SLOPES == 0:
        return tl.zeros(c.shape, dtype=T)
    elif SLOPES == 1:
        return tl.load(slope + tl.zeros_like(c)).to(T)
    else:
        return tl.load(slope + c, mask=c < C, other=0.0).to(T)


@triton.jit
def _finish(
    sums, slopes, kept, residual, y, z, pixel, image, plane, o, inside,
    COUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    SCALE: tl.constexpr,
    LAST: tl.constexpr,
    KEPT_PITCH: tl.constexpr,
    Y_PITCH: tl.constexpr,
):  # fmt: skip
    """Epilogue and store: the activation, or the derivative at ``kept``, which is channels_last.

    residual and z are dense, and of y's layout: channels_last if LAST, contiguous otherwise.
    """
    inside = inside & (o < COUT)
    at = pixel * COUT + o if LAST else pixel + (image.to(tl.int64) * (COUT - 1) + o) * plane
    if z is not None:
        tl.store(z + at, _as(sums, z), mask=inside)
    if kept is not None:
        before = tl.load(kept + pixel * KEPT_PITCH + o, mask=inside, other=0.0).to(sums.dtype)
        if ACTIVATION == RELU:
            sums = tl.where(before <= 0, 0.0, sums)
        else:
            sums = tl.where(before > 0, sums, NEGATIVE_SLOPE * sums)
    elif ACTIVATION == RELU:
        sums = tl.where(sums <= 0, 0.0, sums)  # NaN stays NaN
    elif ACTIVATION == LEAKY_RELU:
        sums = tl.where(sums > 0, sums, NEGATIVE_SLOPE * sums)
    elif ACTIVATION == PRELU:
        sums = tl.where(sums > 0, sums, slopes * sums)
    if SCALE != 1:
        sums *= SCALE
    if residual is not None:
        sums = tl.load(residual + at, mask=inside, other=0.0) + sums  # in fp64 if that is the residual's dtype
    tl.store(y + (pixel * Y_PITCH + o if LAST else at), _as(sums, y), mask=inside)


_SIZES = ("images", "height", "width", "rows", "pixels", "steps", "steps_each")


@triton.jit(do_not_specialize=_SIZES)
def stream(
    x, weight, bias, slope, kept, residual, y, z, images, height, width, rows,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    ADJOINT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    SLOPES: tl.constexpr,
    SCALE: tl.constexpr,
    LAST: tl.constexpr,
    X_PITCH: tl.constexpr,
    KEPT_PITCH: tl.constexpr,
    Y_PITCH: tl.constexpr,
    COLUMNS: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """A band of ``rows`` rows of a strip of COLUMNS columns, in M / COLUMNS images side by side."""
    # Seen in machine code for sm_90, 64 to 64 channels of bf16, M = 128 on 8 warps, two stages, by Triton 3.9: 36 HGMMA
    # (nine products of four), 9 WARPGROUP.DEPBAR, 205 registers, none spilled, 184 KB of shared memory. The two
    # warpgroups have 64 pixels each and fill each other's waits. M = 64 on 8 warps is a trap: some products are done by
    # both warpgroups, and sums go through shared memory between layouts (60 HGMMA, 47 barriers).
    strips, bands = tl.cdiv(width, COLUMNS), tl.cdiv(height, rows)
    program = tl.program_id(0)
    o = program % tl.cdiv(COUT, N) * N + tl.arange(0, N)[None, :]
    program = program // tl.cdiv(COUT, N)
    first = program // strips % bands * rows
    m = tl.arange(0, M)[:, None]
    column = program % strips * COLUMNS + m % COLUMNS
    image = program // (strips * bands) * (M // COLUMNS) + m // COLUMNS
    i = tl.arange(0, K)[None, :]

    above_0 = _filter(weight, 0, tl.trans(i), o, CIN, COUT, ADJOINT)
    above_1 = _filter(weight, 1, tl.trans(i), o, CIN, COUT, ADJOINT)
    above_2 = _filter(weight, 2, tl.trans(i), o, CIN, COUT, ADJOINT)
    same_0 = _filter(weight, 3, tl.trans(i), o, CIN, COUT, ADJOINT)
    same_1 = _filter(weight, 4, tl.trans(i), o, CIN, COUT, ADJOINT)
    same_2 = _filter(weight, 5, tl.trans(i), o, CIN, COUT, ADJOINT)
    below_0 = _filter(weight, 6, tl.trans(i), o, CIN, COUT, ADJOINT)
    below_1 = _filter(weight, 7, tl.trans(i), o, CIN, COUT, ADJOINT)
    below_2 = _filter(weight, 8, tl.trans(i), o, CIN, COUT, ADJOINT)

    plane = height.to(tl.int64) * width
    top = image.to(tl.int64) * plane + column  # the pixels of row 0
    at = x + (top * X_PITCH + i)
    exists = (image < images) & (column < width)
    has_left = (image < images) & (column >= 1) & (column <= width) & (i < CIN)
    has_middle = exists & (i < CIN)
    has_right = (image < images) & (column + 1 < width) & (i < CIN)

    last = tl.minimum(first + rows, height)  # exclusive
    slopes = _slopes(slope, o, COUT, SLOPES, T)
    start = _start(bias, o, COUT, M, T)
    above, same = start, start
    for row in tl.range(first - 1, last + 1, num_stages=STAGES):
        line = row + tl.zeros_like(column)
        real = (line >= 0) & (line < height)
        from_top = line.to(tl.int64) * width
        here = at + from_top * X_PITCH
        left = tl.load(here - X_PITCH, mask=real & has_left, other=0.0)
        middle = tl.load(here, mask=real & has_middle, other=0.0)
        right = tl.load(here + X_PITCH, mask=real & has_right, other=0.0)
        below = start
        # This row lies below the output row above it, and above the one below it.
        above = _dot(left, below_0, above, PRECISION)
        same = _dot(left, same_0, same, PRECISION)
        below = _dot(left, above_0, below, PRECISION)
        above = _dot(middle, below_1, above, PRECISION)
        same = _dot(middle, same_1, same, PRECISION)
        below = _dot(middle, above_1, below, PRECISION)
        above = _dot(right, below_2, above, PRECISION)
        same = _dot(right, same_2, same, PRECISION)
        below = _dot(right, above_2, below, PRECISION)
        _finish(
            above, slopes, kept, residual, y, z, top + from_top - width, image, plane, o, exists & (line > first),
            COUT, ACTIVATION, NEGATIVE_SLOPE, SCALE, LAST, KEPT_PITCH, Y_PITCH,
        )  # fmt: skip
        # A product that is only handed on to the next turn of the loop is left in flight over its end, and ptxas then
        # waits for every single instruction (36 waits). The sum with zero is a reason to wait once per product (9).
        above = same + 0.0
        same = below + 0.0


@triton.jit(do_not_specialize=_SIZES)
def gather(
    x, weight, bias, slope, kept, residual, y, z, height, width, pixels,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    ADJOINT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    SLOPES: tl.constexpr,
    SCALE: tl.constexpr,
    LAST: tl.constexpr,
    X_PITCH: tl.constexpr,
    KEPT_PITCH: tl.constexpr,
    Y_PITCH: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """M pixels in their order in memory."""
    program = tl.program_id(0)
    o = program % tl.cdiv(COUT, N) * N + tl.arange(0, N)[None, :]
    pixel = (program // tl.cdiv(COUT, N)).to(tl.int64 if WIDE else tl.int32) * M + tl.arange(0, M)[:, None]
    exists = pixel < pixels
    column, line = pixel % width, pixel // width % height
    pixel, plane = pixel.to(tl.int64), height.to(tl.int64) * width

    sums = _start(bias, o, COUT, M, T)
    for k in tl.range(0, 9 * tl.cdiv(CIN, K), num_stages=STAGES):
        tap, i = k % 9, k // 9 * K + tl.arange(0, K)[None, :]
        dy, dx = tap // 3 - 1, tap % 3 - 1
        real = exists & (line + dy >= 0) & (line + dy < height) & (column + dx >= 0) & (column + dx < width)
        at = (pixel + (dy * width + dx)) * X_PITCH + i
        tile = tl.load(x + at, mask=real & (i < CIN), other=0.0)
        sums = _dot(tile, _filter(weight, tap, tl.trans(i), o, CIN, COUT, ADJOINT), sums, PRECISION)
    _finish(
        sums, _slopes(slope, o, COUT, SLOPES, T), kept, residual, y, z, pixel, pixel // plane, plane, o, exists,
        COUT, ACTIVATION, NEGATIVE_SLOPE, SCALE, LAST, KEPT_PITCH, Y_PITCH,
    )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def through_activation(
    grad, kept, slope, grad_z, bias_shares, slope_shares, pixels,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    SLOPES: tl.constexpr,
    SCALE: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """g_z where it is asked for, and a share of its sums over pixels."""
    blocks = tl.cdiv(C, N)
    program, shares = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    c = tl.program_id(0) % blocks * N + tl.arange(0, N)[None, :]
    bias_sum = tl.zeros([P, N], dtype=T)
    slope_sum = tl.zeros([P, N], dtype=T)
    slopes = _slopes(slope, c, C, SLOPES, T)
    for tile in range(program, tl.cdiv(pixels, P), shares):
        p = (tile + tl.zeros([P, 1], dtype=tl.int64)) * P + tl.arange(0, P)[:, None]
        at, inside = p * C + c, (p < pixels) & (c < C)
        g = tl.load(grad + at, mask=inside, other=0.0).to(T)
        if SCALE != 1:
            g *= SCALE
        if ACTIVATION != NONE:
            z = tl.load(kept + at, mask=inside, other=1.0).to(T)
            if slope_shares is not None:
                slope_sum += tl.where(z > 0, 0.0, z * g)
            if ACTIVATION == RELU:
                g = tl.where(z <= 0, 0.0, g)  # NaN passes the gradient on, as in PyTorch
            elif ACTIVATION == LEAKY_RELU:
                g = tl.where(z > 0, g, NEGATIVE_SLOPE * g)
            else:
                g = tl.where(z > 0, g, slopes * g)
        if grad_z is not None:
            tl.store(grad_z + at, _as(g, grad_z), mask=inside)
        if bias_shares is not None:
            bias_sum += g
    c = tl.program_id(0) % blocks * N + tl.arange(0, N)
    if bias_shares is not None:
        tl.store(bias_shares + program.to(tl.int64) * C + c, tl.sum(bias_sum.to(tl.float64), 0), mask=c < C)
    if slope_shares is not None:
        tl.store(slope_shares + program.to(tl.int64) * C + c, tl.sum(slope_sum.to(tl.float64), 0), mask=c < C)


@triton.jit
def _moved(grad_z, pixel, line, o, dy, height, width, exists, COUT: tl.constexpr, PITCH: tl.constexpr):
    """g_z ``dy`` rows above ``pixel``, transposed."""
    real = exists & (line - dy >= 0) & (line - dy < height) & (o < COUT)
    return tl.trans(tl.load(grad_z + (pixel - dy * width) * PITCH + o, mask=real, other=0.0))


@triton.jit
def _store_share(at, left, middle, right, inside, CIN: tl.constexpr):
    tl.store(at, left, mask=inside)
    tl.store(at + CIN, middle, mask=inside)
    tl.store(at + 2 * CIN, right, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def weight_gradient(
    x, grad_z, shares, bias_shares, height, width, pixels, steps_each,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    X_PITCH: tl.constexpr,
    GRAD_PITCH: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    NINE: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """A share of NINE taps or of one filter row, K input by N output channels: ``steps_each`` times P pixels."""
    program = tl.program_id(0)
    i = program % tl.cdiv(CIN, K) * K + tl.arange(0, K)[None, :]
    program = program // tl.cdiv(CIN, K)
    first_o = program % tl.cdiv(COUT, N) * N
    o = first_o + tl.arange(0, N)[None, :]
    share = program // tl.cdiv(COUT, N)
    dy = share * 0
    if not NINE:
        dy = share % 3 - 1
        share = share // 3

    above_0 = tl.zeros([N, K], dtype=T)
    above_1, above_2 = above_0, above_0
    same_0, same_1, same_2 = above_0, above_0, above_0
    below_0, below_1, below_2 = above_0, above_0, above_0
    ones = tl.where(tl.arange(0, 16)[None, :] + tl.zeros([P, 1], dtype=tl.int32) == 0, 1.0, 0.0).to(
        grad_z.dtype.element_ty
    )
    bias_sum = tl.zeros([N, 16], dtype=T)
    steps = tl.cdiv(pixels, P).to(tl.int64 if WIDE else tl.int32)
    begin = share.to(tl.int64 if WIDE else tl.int32) * steps_each
    for step in tl.range(begin, tl.minimum(begin + steps_each, steps), num_stages=STAGES):
        pixel = step * P + tl.arange(0, P)[:, None]
        exists = pixel < pixels
        column, line = pixel % width, pixel // width % height
        pixel = pixel.to(tl.int64)
        at, real = x + (pixel * X_PITCH + i), exists & (i < CIN)
        left = tl.load(at - X_PITCH, mask=real & (column > 0), other=0.0)
        middle = tl.load(at, mask=real, other=0.0)
        right = tl.load(at + X_PITCH, mask=real & (column < width - 1), other=0.0)
        g = _moved(grad_z, pixel, line, o, dy, height, width, exists, COUT, GRAD_PITCH)
        same_0 = _dot(g, left, same_0, PRECISION)
        same_1 = _dot(g, middle, same_1, PRECISION)
        same_2 = _dot(g, right, same_2, PRECISION)
        if bias_shares is not None:
            bias_sum = _dot(g, ones, bias_sum, PRECISION)
        if NINE:
            g = _moved(grad_z, pixel, line, o, dy - 1, height, width, exists, COUT, GRAD_PITCH)
            above_0 = _dot(g, left, above_0, PRECISION)
            above_1 = _dot(g, middle, above_1, PRECISION)
            above_2 = _dot(g, right, above_2, PRECISION)
            g = _moved(grad_z, pixel, line, o, dy + 1, height, width, exists, COUT, GRAD_PITCH)
            below_0 = _dot(g, left, below_0, PRECISION)
            below_1 = _dot(g, middle, below_1, PRECISION)
            below_2 = _dot(g, right, below_2, PRECISION)
    o = first_o + tl.arange(0, N)[:, None]
    at = shares + (((share.to(tl.int64) * COUT + o) * 9 + 3 * (dy + 1)) * CIN + i)
    inside = (i < CIN) & (o < COUT)
    _store_share(at, same_0, same_1, same_2, inside, CIN)
    if NINE:
        _store_share(at - 3 * CIN, above_0, above_1, above_2, inside, CIN)
        _store_share(at + 3 * CIN, below_0, below_1, below_2, inside, CIN)
    if bias_shares is not None:
        o = first_o + tl.arange(0, N)
        once = (tl.program_id(0) % tl.cdiv(CIN, K) + tl.zeros_like(o) == 0) & (dy + tl.zeros_like(o) == 0)
        tl.store(bias_shares + share.to(tl.int64) * COUT + o, tl.sum(bias_sum, 1), mask=once & (o < COUT))


# Pinned by what the machine code shows; not timed yet.
_WARPS_256 = 2 * WARPS_128
_STREAMED = 128  # bytes of a pixel's channels that fit with nine filter matrices and two stages of rows
_FEWEST_ROWS = 8  # of a band, on a GPU: two more are read
_LEAST_CORES = 4  # so that the interpreter's one has seams between bands and between shares
_POINTWISE = 32  # pixels of a tile
_POINTWISE_PER_CORE = 8
_STEP = 128  # bytes: as many pixels has a weight gradient's product


def _block(channels: int, most: int) -> int:
    """A power of two that tensor cores take."""
    return max(16, min(most, triton.next_power_of_2(channels)))


def _compute(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype is torch.float64 else tl.float32


def _precision(dtype: torch.dtype) -> str:
    """How fp32 is multiplied: as PyTorch's own convolutions are told to."""
    if dtype is not torch.float32 or torch.version.hip:
        return "ieee"
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return "tf32" if conv.fp32_precision == "tf32" else "tf32x3"


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether products take whole operands from 227 KB of shared memory while sums stay in registers.

    The interpreter goes Hopper's way too. Blackwell has a memory of its own for sums and would copy them to and fro.
    """
    if device.type == "cpu":
        return True
    return not torch.version.hip and torch.cuda.get_device_capability(device)[0] == 9


def _hoppers_way(x: Tensor) -> bool:
    """Whether to keep all that registers and shared memory of a Hopper hold; fp32 in three products needs more."""
    return x.dtype is not torch.float64 and _precision(x.dtype) != "tf32x3" and is_hopper(x.device)


class _Strips(NamedTuple):
    """How ``stream`` covers a batch: columns of a strip, rows of a band, programs."""

    columns: int
    rows: int
    programs: int


@functools.lru_cache(maxsize=1024)
def _strips(images: int, height: int, width: int, blocks: int, m: int, cores: int) -> _Strips:
    """Strips that waste least, bands that end soonest."""

    def count(columns: int) -> int:
        return triton.cdiv(width, columns) * triton.cdiv(images * columns, m)

    def time(rows: int) -> int:
        return triton.cdiv(across * triton.cdiv(height, rows), cores) * (rows + 2)

    columns = min((c for c in (128, 64, 32, 16) if c <= m), key=count)
    across = count(columns) * blocks
    rows = min(range(height, 0, -1), key=time)
    return _Strips(columns, rows, across * triton.cdiv(height, rows))


def _pitch(x: Tensor) -> int:
    """Elements between neighbouring pixels of ``x``: channels_last, or a slice of the channels of such a tensor."""
    # The stride of a single column, row or image means nothing.
    images, channels, height, width = x.shape
    return x.stride(3) if width > 1 else x.stride(2) if height > 1 else x.stride(0) if images > 1 else channels


def convolve(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    kept: Tensor | None = None,
    residual: Tensor | None = None,
    z: Tensor | None = None,
    adjoint: bool = False,
    activation: int = codes.NONE,
    negative_slope: float = 0.0,
    scale: float = 1.0,
) -> None:
    """y = scale * act(convolution + bias) + residual, with ``kept`` y = scale * convolution * act'(kept) + residual.

    ``x`` and ``kept`` are channels_last or slices of channels of such; ``y`` is that or contiguous, and ``residual``
    and ``z``, where what goes into the activation is stored, are dense in its layout. ``adjoint``: the transposed
    convolution, that of the data gradient.
    """
    images, channels, height, width = x.shape
    out = y.shape[1]
    bytes_each = x.element_size()
    last = y.is_contiguous(memory_format=torch.channels_last) or not y.is_contiguous()
    double = x.dtype is torch.float64
    m, n = (32, _block(out, 32)) if double else (128, _block(out, 64))
    epilogue = (
        channels, out, adjoint, activation, negative_slope, 0 if slope is None else slope.numel(), scale, last,
        _pitch(x), 0 if kept is None else _pitch(kept), _pitch(y) if last else 0,
    )  # fmt: skip
    arithmetic = _precision(x.dtype), _compute(x.dtype)
    bias, slope = (None if vector is None else vector.contiguous() for vector in (bias, slope))
    tensors = (x, channels_last(weight), bias, slope, kept, residual, y, z)
    if (
        channels * bytes_each <= _STREAMED
        and (residual is None or residual.element_size() <= bytes_each)
        and _hoppers_way(x)
    ):
        # A second store, or slopes, take the registers of half the sums: Triton 3.6 would spill.
        narrow = n if z is None and slope is None else min(n, 32)
        blocks = triton.cdiv(out, narrow)
        strips = _strips(images, height, width, blocks, m, max(cores(x.device), _LEAST_CORES))
        if strips.rows >= _FEWEST_ROWS or x.device.type == "cpu":
            stream[(strips.programs,)](
                *tensors, images, height, width, strips.rows, *epilogue,
                strips.columns, m, _block(channels, _STREAMED // bytes_each), narrow, 2, *arithmetic,
                num_warps=_WARPS_256,
            )  # fmt: skip
            return
    pixels = images * height * width
    gather[(triton.cdiv(pixels, m) * triton.cdiv(out, n),)](
        *tensors, height, width, pixels, *epilogue,
        m, _block(channels, _STREAMED // bytes_each), n, 3, *arithmetic, pixels >= 2**31 - m, num_warps=_WARPS_256,
    )  # fmt: skip


def activation_gradient(
    grad: Tensor,
    kept: Tensor | None,
    slope: Tensor | None,
    activation: int,
    negative_slope: float,
    scale: float,
    need_grad_z: bool,
    grad_bias: Tensor | None,
    grad_slope: Tensor | None,
) -> Tensor:
    """g_z, channels_last as ``grad`` is; fills in the gradients of bias and slopes."""
    changes = need_grad_z and (activation != codes.NONE or scale != 1)
    if not changes and grad_bias is None and grad_slope is None:
        return grad
    images, channels, height, width = grad.shape
    pixels, n = images * height * width, _block(channels, 64)
    tiles, blocks = triton.cdiv(pixels, _POINTWISE), triton.cdiv(channels, n)
    shares = min(tiles, _POINTWISE_PER_CORE * cores(grad.device))
    grad_z = torch.empty_like(grad) if changes else None
    bias_shares, slope_shares = (
        None if to is None else grad.new_empty((shares, channels), dtype=torch.float64)
        for to in (grad_bias, grad_slope)
    )
    through_activation[(shares * blocks,)](
        grad, None if kept is None else channels_last(kept), None if slope is None else slope.contiguous(), grad_z,
        bias_shares, slope_shares, pixels, channels, activation, negative_slope,
        0 if slope is None else slope.numel(), scale, _POINTWISE, n, _compute(grad.dtype), num_warps=WARPS_128,
    )  # fmt: skip
    if grad_bias is not None and bias_shares is not None:
        grad_bias.copy_(bias_shares.sum(0))
    if grad_slope is not None and slope_shares is not None:
        grad_slope.copy_(slope_shares.sum(0) if grad_slope.numel() == channels else slope_shares.sum())
    return grad if grad_z is None else grad_z


def gradient_of_weight(
    x: Tensor, grad_z: Tensor, grad_weight: Tensor, grad_bias: Tensor | None = None, scale: float = 1.0
) -> None:
    """Fills in ``grad_weight`` and ``grad_bias``, times ``scale``; ``x`` and ``grad_z`` as ``convolve`` takes ``x``.

    Not ``grad_bias`` of fp32, which tf32 would round before it is summed.
    """
    images, channels, height, width = x.shape
    out = grad_z.shape[1]
    pixels = images * height * width
    double = x.dtype is torch.float64
    # Hopper's products have 64 rows or are none of Hopper's.
    k, n, p = _block(channels, 32 if double else 64), 32 if double else 64, _STEP // x.element_size()
    nine = _hoppers_way(x)
    tiles = (1 if nine else 3) * triton.cdiv(channels, k) * triton.cdiv(out, n)
    steps = triton.cdiv(pixels, p)
    steps_each = triton.cdiv(steps, max(cores(x.device) // tiles, _LEAST_CORES))
    count = triton.cdiv(steps, steps_each)
    compute = torch.float64 if double else torch.float32
    shares = x.new_empty((count, out, 3, 3, channels), dtype=compute)
    bias_shares = None if grad_bias is None else x.new_empty((count, out), dtype=compute)
    weight_gradient[(count * tiles,)](
        x, grad_z, shares, bias_shares, height, width, pixels, steps_each, channels, out, _pitch(x), _pitch(grad_z),
        p, k, n, nine, 3, _precision(x.dtype), _compute(x.dtype), pixels >= 2**31 - p, num_warps=_WARPS_256,
    )  # fmt: skip
    grad_weight.copy_(_scaled(shares.sum(0), scale).permute(0, 3, 1, 2))
    if grad_bias is not None and bias_shares is not None:
        grad_bias.copy_(_scaled(bias_shares.sum(0), scale))


def _scaled(sums: Tensor, scale: float) -> Tensor:
    return sums if scale == 1 else sums.mul_(scale)
