"""3x3 convolutions with their epilogue in Triton. Stride 1, zero padding, channels_last.

Forward. With p a pixel, t one of the nine offsets of a filter, W_t the Cout x Cin matrix of its weights there,

    z_p = sum_t W_t x_{p+t} + bias            x is zero outside the image
    y_p = scale * act(z_p) + residual_p

A pixel's channels are adjacent in memory, so every t is a matrix product: a tile of pixels, moved by t, times W_t'.
Sums are fp32 (fp64 of fp64 operands), start from the bias and stay in registers until y is rounded, once. A pixel's
channels may be a slice of wider pixels, PITCH elements apart: so a dense block can read and write one buffer. Outputs
are written in whichever layout they have.

Backward. For an incoming gradient g of y and g_z = scale * g * act'(z),

    d / d x_q  = sum_t W_t' g_z_{q-t}         the same convolution: filters turned by 180 degrees, channels swapped;
                                              where x is an activation's output, its act' is the epilogue
    d / d W_t  = sum_q g_z_{q-t} x_q'         a matrix product over pixels: weight_gradient.py
    d / d bias = sum_p g_z_p
    d / d slope = sum_p scale * g_p * z_p     where z_p is not positive

act' needs the sign of z alone, which y has where nothing was added to it; the slopes' gradient needs z.
``through_activation`` makes g_z and both sums over pixels in one pass.

Three kernels convolve, forward or ADJOINT. ``gather`` is the obvious one: it takes M pixels and loops over taps and
blocks of input channels. It runs everywhere, bound by fetching every pixel nine times from L2.

``stream`` fetches a pixel three times. A program walks down a strip of columns, row by row, with the sums of three
output rows in registers: the input row lies below the first, on the second and above the third. When the row is done,
the first is complete and is stored, and the others move up. On a Hopper, whose products read both operands from shared
memory, narrow products are bound by those reads: m64n64 needs the full bandwidth, m64n32 one and a half times it. So
what shares an operand is one product. The columns x-1 and x of a pixel are one tile of 2K channels, x+1 is another,
and two of the three sums are one matrix of 2N columns: four products and 24 matrix instructions a row, not 9 and 36.

``shift`` fetches a pixel once, for wide inputs and few outputs. Where ``stream`` moves pixels it moves sums: all nine
W_t x_p are formed at p itself, 9N columns in two products of which one has 8N, the widest there is. When a row is done
the sums of the filter's left and right columns move by a pixel, through shared memory, and are added to the middle's.

Padding is multiplied like everything else: a weight of inf or NaN makes NaN along the border, and a border pixel that
is inf or NaN also makes NaN of the taps that do not reach it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...._triton import interpreting
from .. import activation as codes

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
        # The interpreter truncates: add half of the last bit, or what rounds a tie to even.
        bits = value.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        value = tl.where(value == value, rounded, value)
    return value.to(pointer.dtype.element_ty)


@triton.jit
def _filter(weight, tap, i, o, CIN: tl.constexpr, COUT: tl.constexpr, PITCH: tl.constexpr, ADJOINT: tl.constexpr):
    """The matrix of one tap, input channels ``i`` (a column) by output channels ``o`` (a row).

    A filter's taps are PITCH elements apart, its channels adjacent: (Cout, 3, 3, PITCH) in memory, for the convolution
    that ADJOINT transposes.
    """
    at = (i * 9 + 8 - tap) * PITCH + o if ADJOINT else (o * 9 + tap) * PITCH + i
    return tl.load(weight + at, mask=(i < CIN) & (o < COUT), other=0.0)


@triton.jit
def _filters(
    weight, k, first_o,
    K: tl.constexpr, N: tl.constexpr,
    CIN: tl.constexpr, COUT: tl.constexpr, PITCH: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """What multiplies a row in ``stream``, input channels from ``k`` on: (columns x-1 | x, column x+1) each for the
    output rows (above | same) and for the one below."""
    i = tl.arange(0, K)[:, None]
    two_i = tl.arange(0, 2 * K)[:, None]
    o = tl.arange(0, N)[None, :]
    two_o = tl.arange(0, 2 * N)[None, :]
    # The input row is the last of three for the output row above it, and the first for the one below.
    tap = 6 - two_o // N * 3
    left, left_i = two_i // K, k + two_i % K
    above_same = _filter(weight, tap + left, left_i, first_o + two_o % N, CIN, COUT, PITCH, ADJOINT)
    above_same_right = _filter(weight, tap + 2, k + i, first_o + two_o % N, CIN, COUT, PITCH, ADJOINT)
    below = _filter(weight, left, left_i, first_o + o, CIN, COUT, PITCH, ADJOINT)
    below_right = _filter(weight, 2, k + i, first_o + o, CIN, COUT, PITCH, ADJOINT)
    return above_same, above_same_right, below, below_right


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
def _place(pixel, image, plane, o, COUT: tl.constexpr, LAST: tl.constexpr):
    """Where channels ``o`` of ``pixel`` are in a dense tensor: channels_last if LAST, contiguous otherwise."""
    return pixel * COUT + o if LAST else pixel + (image.to(tl.int64) * (COUT - 1) + o) * plane


@triton.jit
def _beside(
    kept, residual, pixel, image, plane, o, inside, COUT: tl.constexpr, LAST: tl.constexpr, KEPT_PITCH: tl.constexpr
):
    """What the epilogue reads: (from ``kept``, in channels_last; from ``residual``, in y's layout)."""
    inside = inside & (o < COUT)
    before, skip = inside, inside  # not read
    if kept is not None:
        before = tl.load(kept + pixel * KEPT_PITCH + o, mask=inside, other=0.0)
    if residual is not None:
        skip = tl.load(residual + _place(pixel, image, plane, o, COUT, LAST), mask=inside, other=0.0)
    return before, skip


@triton.jit
def _finish(
    sums, before, skip, slope, kept, residual, y, z, pixel, image, plane, o, inside,
    COUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    SLOPES: tl.constexpr,
    SCALE: tl.constexpr,
    LAST: tl.constexpr,
    Y_PITCH: tl.constexpr,
):  # fmt: skip
    """Epilogue and store: the activation, or the derivative where ``kept`` is given. z is dense and has y's layout."""
    inside = inside & (o < COUT)
    at = _place(pixel, image, plane, o, COUT, LAST)
    if z is not None:
        tl.store(z + at, _as(sums, z), mask=inside)
    if kept is not None:
        before = before.to(sums.dtype)
        if ACTIVATION == RELU:
            sums = tl.where(before <= 0, 0.0, sums)
        else:
            sums = tl.where(before > 0, sums, NEGATIVE_SLOPE * sums)
    elif ACTIVATION == RELU:
        sums = tl.where(sums <= 0, 0.0, sums)  # NaN stays NaN
    elif ACTIVATION == LEAKY_RELU:
        sums = tl.where(sums > 0, sums, NEGATIVE_SLOPE * sums)
    elif ACTIVATION == PRELU:
        sums = tl.where(sums > 0, sums, _slopes(slope, o, COUT, SLOPES, sums.dtype) * sums)
    if SCALE != 1:
        sums *= SCALE
    if residual is not None:
        sums = skip + sums  # in fp64 if that is the residual's dtype
    tl.store(y + (pixel * Y_PITCH + o if LAST else at), _as(sums, y), mask=inside)


@triton.jit
def _halves(matrix, M: tl.constexpr, N: tl.constexpr):
    """The first and the last half of N columns; in registers, nothing moves."""
    return tl.split(tl.permute(tl.reshape(matrix, (M, 2, N // 2)), (0, 2, 1)))


@triton.jit
def _side_by_side(left, right, M: tl.constexpr, N: tl.constexpr):
    """One matrix of two with N columns each."""
    return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (M, 2 * N))


SIZES = ("images", "height", "width", "rows", "pixels", "steps", "steps_each", "count")


@triton.jit(do_not_specialize=SIZES)
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
    WEIGHT_PITCH: tl.constexpr,
    KEPT_PITCH: tl.constexpr,
    Y_PITCH: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    COLUMNS: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """A band of ``rows`` rows of a strip of COLUMNS columns, in M / COLUMNS images side by side.

    Up to K input channels, the filters stay in shared memory; more come in blocks of K, row by row, with their filters.
    """
    BLOCKS: tl.constexpr = (CIN + K - 1) // K
    strips, bands = tl.cdiv(width, COLUMNS), tl.cdiv(height, rows)
    program = tl.program_id(0)
    first_o = program % tl.cdiv(COUT, N) * N
    program = program // tl.cdiv(COUT, N)
    first = program // strips % bands * rows
    m = tl.arange(0, M)[:, None]
    column = program % strips * COLUMNS + m % COLUMNS
    image = program // (strips * bands) * (M // COLUMNS) + m // COLUMNS

    plane = height.to(tl.int64) * width
    top = image.to(tl.int64) * plane + column  # the pixels of row 0
    exists = (image < images) & (column < width)
    i = tl.arange(0, K)[None, :]
    two = tl.arange(0, 2 * K)[None, :]
    two_i, two_column = two % K, column + (two // K - 1)
    has_left = (image < images) & (two_column >= 0) & (two_column < width)
    has_right = (image < images) & (column + 1 < width)
    at_left = x + ((top + (two // K - 1)) * X_PITCH + two_i)
    at_right = x + ((top + 1) * X_PITCH + i)
    o_1 = first_o + tl.arange(0, N // 2)[None, :]
    o_2 = o_1 + N // 2

    last = tl.minimum(first + rows, height)  # exclusive
    start = _start(bias, first_o + tl.arange(0, N)[None, :], COUT, M, T)
    above_same = _start(bias, first_o + tl.arange(0, 2 * N)[None, :] % N, COUT, M, T)
    below = start
    if BLOCKS == 1:
        w, w_right, w_below, w_below_right = _filters(
            weight, 0, first_o, K, N, CIN, COUT, WEIGHT_PITCH, ADJOINT
        )  # fmt: skip
    # The launch, not this loop, sets how far ahead loads run: so those that feed no product stay out of the pipeline
    # and its shared memory. They are issued before the products and used after them.
    for step in range((last + 2 - first) * BLOCKS):
        row, k = first - 1 + step // BLOCKS, step % BLOCKS * K
        line = row + tl.zeros_like(column)
        real = (line >= 0) & (line < height)
        from_top = line.to(tl.int64) * width
        done = exists & (line > first) & (k + K >= CIN)
        above = top + from_top - width
        before_1, skip_1 = _beside(kept, residual, above, image, plane, o_1, done, COUT, LAST, KEPT_PITCH)
        before_2, skip_2 = _beside(kept, residual, above, image, plane, o_2, done, COUT, LAST, KEPT_PITCH)
        here = from_top * X_PITCH + k
        left_middle = tl.load(at_left + here, mask=real & has_left & (k + two_i < CIN), other=0.0)
        right = tl.load(at_right + here, mask=real & has_right & (k + i < CIN), other=0.0)
        if BLOCKS == 1:
            below = start
        else:
            w, w_right, w_below, w_below_right = _filters(
                weight, k, first_o, K, N, CIN, COUT, WEIGHT_PITCH, ADJOINT
            )  # fmt: skip
        above_same = _dot(left_middle, w, above_same, PRECISION)
        below = _dot(left_middle, w_below, below, PRECISION)
        above_same = _dot(right, w_right, above_same, PRECISION)
        below = _dot(right, w_below_right, below, PRECISION)
        finished, same = _halves(above_same, M, 2 * N)
        # Half of the columns at a time need half of the shared memory for conversion to a layout with 16-byte stores.
        sums_1, sums_2 = _halves(finished, M, N)
        _finish(
            sums_1, before_1, skip_1, slope, kept, residual, y, z, above, image, plane, o_1, done,
            COUT, ACTIVATION, NEGATIVE_SLOPE, SLOPES, SCALE, LAST, Y_PITCH,
        )  # fmt: skip
        _finish(
            sums_2, before_2, skip_2, slope, kept, residual, y, z, above, image, plane, o_2, done,
            COUT, ACTIVATION, NEGATIVE_SLOPE, SLOPES, SCALE, LAST, Y_PITCH,
        )  # fmt: skip
        # A product that is only handed on to the next iteration stays in flight across the loop's end, and ptxas then
        # waits for every single instruction. Adding zero makes it wait once per product.
        moved_up = _side_by_side(same + 0.0, below + 0.0, M, N)
        if BLOCKS == 1:
            above_same = moved_up
        else:
            above_same = tl.where(k + K >= CIN, moved_up, above_same + 0.0)
            below = tl.where(k + K >= CIN, start, below + 0.0)


@triton.jit
def _eighths(matrix, M: tl.constexpr, N: tl.constexpr):
    """Eight matrices of N columns."""
    left, right = _halves(matrix, M, 8 * N)
    parts = _halves(left, M, 4 * N) + _halves(right, M, 4 * N)
    eight = ()
    for part in tl.static_range(4):
        eight = eight + _halves(parts[part], M, 2 * N)
    return eight


@triton.jit
def _one_of_eight(parts, M: tl.constexpr, N: tl.constexpr):
    """Eight matrices of N columns side by side."""
    left = _side_by_side(_side_by_side(parts[0], parts[1], M, N), _side_by_side(parts[2], parts[3], M, N), M, 2 * N)
    right = _side_by_side(_side_by_side(parts[4], parts[5], M, N), _side_by_side(parts[6], parts[7], M, N), M, 2 * N)
    return _side_by_side(left, right, M, 4 * N)


@triton.jit(do_not_specialize=SIZES)
def shift(
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
    WEIGHT_PITCH: tl.constexpr,
    KEPT_PITCH: tl.constexpr,
    Y_PITCH: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """A band of ``rows`` rows of M - 2 columns, all images in one sequence; one more column is read on each side."""
    BLOCKS: tl.constexpr = (CIN + K - 1) // K
    strips = tl.cdiv(images * width, M - 2)
    program = tl.program_id(0)
    first_o = program % tl.cdiv(COUT, N) * N
    program = program // tl.cdiv(COUT, N)
    first = program // strips * rows
    m = tl.arange(0, M)[:, None]
    at = program % strips * (M - 2) + m - 1
    exists = (at >= 0) & (at < images * width)
    image, column = at // width, at % width
    mine = exists & (m > 0) & (m < M - 1)

    plane = height.to(tl.int64) * width
    top = image.to(tl.int64) * plane + column  # the pixels of row 0
    i, o = tl.arange(0, K)[None, :], first_o + tl.arange(0, N)[None, :]
    # Sums by tap, those of the output row above first: the input row is the last of three there.
    part = tl.arange(0, 8 * N)[None, :]
    tap, part_o = 6 - part // N // 3 * 3 + part // N % 3, first_o + part % N
    w, w_ninth = (), ()
    for block in tl.static_range(BLOCKS):
        column_i = tl.trans(block * K + i)
        eight = _filter(weight, tap, column_i, part_o, CIN, COUT, WEIGHT_PITCH, ADJOINT)
        one = _filter(weight, 2, column_i, o, CIN, COUT, WEIGHT_PITCH, ADJOINT)
        w, w_ninth = w + (eight,), w_ninth + (one,)  # type: ignore[assignment]  # noqa: RUF005

    left, right = (
        tl.maximum(m - 1, 0) + tl.zeros([M, N], tl.int32),
        tl.minimum(m + 1, M - 1) + tl.zeros([M, N], tl.int32),
    )
    last = tl.minimum(first + rows, height)  # exclusive
    start = _start(bias, o, COUT, M, T)
    zero = tl.zeros([M, N], dtype=T)
    sums = tl.zeros([M, 8 * N], dtype=T)
    ninth = zero
    for row in range(first - 1, last + 1):  # the launch sets how far ahead loads run, as in ``stream``
        line = row + tl.zeros_like(column)
        real = exists & (line >= 0) & (line < height)
        from_top = line.to(tl.int64) * width
        done = mine & (line > first)
        above = top + from_top - width
        before, skip = _beside(kept, residual, above, image, plane, o, done, COUT, LAST, KEPT_PITCH)
        for block in tl.static_range(BLOCKS):
            of_block = block * K + i
            tile = tl.load(x + ((top + from_top) * X_PITCH + of_block), mask=real & (of_block < CIN), other=0.0)
            sums = _dot(tile, w[block], sums, PRECISION)
            ninth = _dot(tile, w_ninth[block], ninth, PRECISION)
        parts = _eighths(sums, M, N)
        # A pixel takes what the filter's left column made of its left neighbour, and the right column of its right.
        from_left = tl.where(column > 0, tl.gather(parts[0], left, 0), 0.0)
        from_right = tl.where(column < width - 1, tl.gather(parts[2], right, 0), 0.0)
        _finish(
            start + from_left + parts[1] + from_right, before, skip, slope, kept, residual, y, z,
            above, image, plane, o, done, COUT, ACTIVATION, NEGATIVE_SLOPE, SLOPES, SCALE, LAST, Y_PITCH,
        )  # fmt: skip
        moved_up = (
            parts[3] + 0.0, parts[4] + 0.0, parts[5] + 0.0, parts[6] + 0.0, parts[7] + 0.0, ninth + 0.0, zero, zero,
        )  # fmt: skip
        sums = _one_of_eight(moved_up, M, N)
        ninth = zero


@triton.jit(do_not_specialize=SIZES)
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
    WEIGHT_PITCH: tl.constexpr,
    KEPT_PITCH: tl.constexpr,
    Y_PITCH: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    WIDE: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """M pixels in memory order."""
    program = tl.program_id(0)
    o = program % tl.cdiv(COUT, N) * N + tl.arange(0, N)[None, :]
    pixel = (program // tl.cdiv(COUT, N)).to(tl.int64 if WIDE else tl.int32) * M + tl.arange(0, M)[:, None]
    exists = pixel < pixels
    column, line = pixel % width, pixel // width % height
    pixel, plane = pixel.to(tl.int64), height.to(tl.int64) * width

    sums = _start(bias, o, COUT, M, T)
    for k in range(9 * tl.cdiv(CIN, K)):
        tap, i = k % 9, k // 9 * K + tl.arange(0, K)[None, :]
        dy, dx = tap // 3 - 1, tap % 3 - 1
        real = exists & (line + dy >= 0) & (line + dy < height) & (column + dx >= 0) & (column + dx < width)
        at = (pixel + (dy * width + dx)) * X_PITCH + i
        tile = tl.load(x + at, mask=real & (i < CIN), other=0.0)
        matrix = _filter(weight, tap, tl.trans(i), o, CIN, COUT, WEIGHT_PITCH, ADJOINT)
        sums = _dot(tile, matrix, sums, PRECISION)
    image = pixel // plane
    before, skip = _beside(kept, residual, pixel, image, plane, o, exists, COUT, LAST, KEPT_PITCH)
    _finish(
        sums, before, skip, slope, kept, residual, y, z, pixel, image, plane, o, exists,
        COUT, ACTIVATION, NEGATIVE_SLOPE, SLOPES, SCALE, LAST, Y_PITCH,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def pointwise(
    sums, bias, slope, kept, residual, y, z, height, width, pixels,
    COUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    SLOPES: tl.constexpr,
    SCALE: tl.constexpr,
    LAST: tl.constexpr,
    KEPT_PITCH: tl.constexpr,
    Y_PITCH: tl.constexpr,
    T: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """The epilogue alone, of the ``sums`` that another convolution left, dense and channels_last: M pixels of them."""
    program = tl.program_id(0)
    o = program % tl.cdiv(COUT, N) * N + tl.arange(0, N)[None, :]
    pixel = (program // tl.cdiv(COUT, N)).to(tl.int64) * M + tl.arange(0, M)[:, None]
    exists, plane = pixel < pixels, height.to(tl.int64) * width
    image = pixel // plane
    found = _start(bias, o, COUT, M, T)
    found += tl.load(sums + pixel * COUT + o, mask=exists & (o < COUT), other=0.0)
    before, skip = _beside(kept, residual, pixel, image, plane, o, exists, COUT, LAST, KEPT_PITCH)
    _finish(
        found, before, skip, slope, kept, residual, y, z, pixel, image, plane, o, exists,
        COUT, ACTIVATION, NEGATIVE_SLOPE, SLOPES, SCALE, LAST, Y_PITCH,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
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
    """g_z where it is requested, and a share of its sums over pixels."""
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
