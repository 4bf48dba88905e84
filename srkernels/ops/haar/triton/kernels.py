"""Haar transform in Triton: one launch each way.

Forward. Every 2x2 cell ``a b / c d`` of the (even-sized) image becomes four sums,

    [S]   [1  1  1  1] [a]
    [V] = [1  1 -1 -1] [b]
    [H]   [1 -1  1 -1] [c]
    [D]   [1 -1 -1  1] [d]

and each requested band is ``factor * sum + shift``. Cells share nothing: a thread reads its cells once,
writes their bands once, and that is all the memory traffic there is.

Backward. The matrix M is symmetric, so the adjoint of "butterfly, then factors" is "factors, then the same butterfly":
``(a, b, c, d) = M (k_S S, k_V V, k_H H, k_D D)``. M M = 4 I makes the inverse the same kernel with factors 1 / (4 k).

Odd sizes. The forward pass reads an appended sample x[n] := x[source]. Its adjoint adds the gradient of the appended
sample to that of its source. Written as a gather, so that nothing is written twice: on an odd axis the second sample
of the last cell is the appended one, and its value is added to

    repeat (symmetric, periodization, or n == 1):  x[n-1], the first sample of the same cell;
    reflect:                                       x[n-2], the second sample of the cell before;
    wrap (periodic):                               x[0], the first sample of the first cell;
    zero:                                          nothing.

Where the last row or column is dropped ("floor") the cells end before it, and the sizes say how far apart rows are.

Each direction has two kernels. The *even* one takes dense images of even size, in accesses of 128 bits. The *any* one
takes the rest, odd sizes and any strides, one cell per lane.

How the even kernels see memory. Both layouts look alike: an image row is a sequence of groups of ``inner``
elements, one group per column (``inner`` = C in channels_last, 1 in NCHW), and a cell is two neighbouring groups of two
neighbouring rows. Count memory in vectors of VEC elements, let g be the number of a vector in a band that covers the
whole batch and ``row`` the vectors that one row of cells has in a band. Rows of cells take four times as much image as
band, so vector g starts at image vector

    x0 = 4 (g - g % row) + 2 (g % row - g % inner) + g % inner = 4 g - 2 (g % row) - g % inner

and its neighbours are ``x0 + inner`` to the right, ``x0 + 2 row`` below. In channels_last these are the vectors of a,
b, c and d. In NCHW ``inner`` is one whole vector instead: the two vectors of an image row hold a b a b a b a b and are
taken apart in registers. Reading whole pairs of vectors per thread makes that a renaming of registers, without a
shuffle between threads or a detour through shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What an odd axis appends, as the kernels see it.
ZERO = tl.constexpr(1)
REPEAT = tl.constexpr(2)
REFLECT = tl.constexpr(3)
WRAP = tl.constexpr(4)

# PLAN, a compile-time tuple: factors of S, V, H, D (0-3), slots of V, H, D (4-6), the shift (7), "bands are added" (8).


@triton.jit
def _butterfly(a, b, c, d):
    top, bottom, left, right = a + b, c + d, a - b, c - d
    return top + bottom, top - bottom, left + right, left - right


@triton.jit
def _store_bands(low, high, low_at, high_at, step, s, v, h, d, inside, PLAN: tl.constexpr):
    if low is not None:
        tl.store(low + low_at, PLAN[0] * s, mask=inside)
    if high is not None:
        if PLAN[8]:
            tl.store(high + high_at, PLAN[1] * v + PLAN[2] * h + PLAN[3] * d + PLAN[7], mask=inside)
        else:
            tl.store(high + high_at + PLAN[4] * step, PLAN[1] * v + PLAN[7], mask=inside)
            tl.store(high + high_at + PLAN[5] * step, PLAN[2] * h + PLAN[7], mask=inside)
            tl.store(high + high_at + PLAN[6] * step, PLAN[3] * d + PLAN[7], mask=inside)


@triton.jit
def _load_pixels(low, high, low_at, high_at, step, inside, PLAN: tl.constexpr, T: tl.constexpr):
    """a, b, c, d of the cells with bands at ``low_at`` and ``high_at``; zeros where not ``inside``."""
    s = tl.zeros(inside.shape, dtype=T)
    v, h, d = s, s, s
    if low is not None:
        s = PLAN[0] * tl.load(low + low_at, mask=inside, other=0.0).to(T)
    if high is not None:
        if PLAN[8]:
            v = tl.load(high + high_at, mask=inside, other=PLAN[7]).to(T) - PLAN[7]
            h, d = v, v
        else:
            v = tl.load(high + high_at + PLAN[4] * step, mask=inside, other=PLAN[7]).to(T) - PLAN[7]
            h = tl.load(high + high_at + PLAN[5] * step, mask=inside, other=PLAN[7]).to(T) - PLAN[7]
            d = tl.load(high + high_at + PLAN[6] * step, mask=inside, other=PLAN[7]).to(T) - PLAN[7]
    return _butterfly(s, PLAN[1] * v, PLAN[2] * h, PLAN[3] * d)


@triton.jit
def _high_offsets(g, t, group, group_step, slot_step, VEC: tl.constexpr, HIGH_STRIDE: tl.constexpr):
    """Elements from the start of the dense high bands to slot 0 of band vector g, and from slot to slot."""
    at = g.to(tl.int64)
    if group is not None:
        at += (g // group).to(tl.int64) * group_step
    # Steps are in vectors wherever vectors stay whole, so that the compiler sees what they are divisible by.
    if HIGH_STRIDE == 1:
        return at * VEC + t, slot_step.to(tl.int64) * VEC
    return (at * VEC + t) * HIGH_STRIDE, slot_step.to(tl.int64)


@triton.jit
def _unzip(first, second, BLOCK: tl.constexpr, VEC: tl.constexpr):
    """Two neighbouring vectors a b a b ... -> their a's and their b's, in order."""
    a_first, b_first = tl.split(tl.reshape(first, [BLOCK, VEC // 2, 2]))
    a_second, b_second = tl.split(tl.reshape(second, [BLOCK, VEC // 2, 2]))
    a = tl.reshape(tl.permute(tl.join(a_first, a_second), [0, 2, 1]), [BLOCK, VEC])
    b = tl.reshape(tl.permute(tl.join(b_first, b_second), [0, 2, 1]), [BLOCK, VEC])
    return a, b


@triton.jit
def _zip(a, b, BLOCK: tl.constexpr, VEC: tl.constexpr):
    """Inverse of ``_unzip``."""
    a_first, a_second = tl.split(tl.permute(tl.reshape(a, [BLOCK, 2, VEC // 2]), [0, 2, 1]))
    b_first, b_second = tl.split(tl.permute(tl.reshape(b, [BLOCK, 2, VEC // 2]), [0, 2, 1]))
    first = tl.reshape(tl.join(a_first, b_first), [BLOCK, VEC])
    second = tl.reshape(tl.join(a_second, b_second), [BLOCK, VEC])
    return first, second


@triton.jit
def _even_offsets(g, row, inner, VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """First element of the image's top left vector of g, and the steps from there to the right and down."""
    # Vectors are counted in 32 bits (the launcher checks that they fit), for cheap divisions; elements in 64.
    x0 = 4 * g.to(tl.int64) - 2 * (g % row)
    if CHANNELS_LAST:
        x0 -= g % inner
        right = VEC * inner.to(tl.int64)
    else:
        right = tl.full((), VEC, tl.int64)
    return x0 * VEC, right, 2 * VEC * row.to(tl.int64)


@triton.jit(do_not_specialize=["vectors", "row", "inner", "group", "group_step", "slot_step"])
def analysis_even(
    x,
    low,
    high,
    vectors,
    row,
    inner,
    group,
    group_step,
    slot_step,
    PLAN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    HIGH_STRIDE: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bands of a dense image of even size; lanes are BLOCK band vectors of VEC elements."""
    T: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    t = tl.arange(0, VEC)[None, :]
    inside = (g < vectors) & (t < VEC)

    x0, right, down = _even_offsets(g, row, inner, VEC, CHANNELS_LAST)
    top = x + (x0 + t)
    a = tl.load(top, mask=inside, other=0.0)
    b = tl.load(top + right, mask=inside, other=0.0)
    c = tl.load(top + down, mask=inside, other=0.0)
    d = tl.load(top + down + right, mask=inside, other=0.0)
    if not CHANNELS_LAST:
        a, b = _unzip(a, b, BLOCK, VEC)
        c, d = _unzip(c, d, BLOCK, VEC)

    s, v, h, d = _butterfly(a.to(T), b.to(T), c.to(T), d.to(T))
    at = g.to(tl.int64) * VEC + t
    high_at, step = _high_offsets(g, t, group, group_step, slot_step, VEC, HIGH_STRIDE)
    _store_bands(low, high, at, high_at, step, s, v, h, d, inside, PLAN)


@triton.jit(do_not_specialize=["vectors", "row", "inner", "group", "group_step", "slot_step"])
def synthesis_even(
    x,
    low,
    high,
    vectors,
    row,
    inner,
    group,
    group_step,
    slot_step,
    PLAN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    HIGH_STRIDE: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``analysis_even`` backwards: the same addresses, loads for stores."""
    T: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    t = tl.arange(0, VEC)[None, :]
    inside = (g < vectors) & (t < VEC)

    at = g.to(tl.int64) * VEC + t
    high_at, step = _high_offsets(g, t, group, group_step, slot_step, VEC, HIGH_STRIDE)
    a, b, c, d = _load_pixels(low, high, at, high_at, step, inside, PLAN, T)

    # Rounded first: half as many registers to rename in half types.
    element = x.dtype.element_ty
    a, b, c, d = a.to(element), b.to(element), c.to(element), d.to(element)
    if not CHANNELS_LAST:
        a, b = _zip(a, b, BLOCK, VEC)
        c, d = _zip(c, d, BLOCK, VEC)
    x0, right, down = _even_offsets(g, row, inner, VEC, CHANNELS_LAST)
    top = x + (x0 + t)
    tl.store(top, a, mask=inside)
    tl.store(top + right, b, mask=inside)
    tl.store(top + down, c, mask=inside)
    tl.store(top + down + right, d, mask=inside)


@triton.jit
def _cell(id, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """(n, channel, i, j) of the cell that comes ``id``-th in the layout's order."""
    if CHANNELS_LAST:
        channel = id % channels
        id = id // channels
        j = id % width
        id = id // width
        i = id % height
        n = id // height
    else:
        j = id % width
        id = id // width
        i = id % height
        id = id // height
        channel = id % channels
        n = id // channels
    return n.to(tl.int64), channel.to(tl.int64), i.to(tl.int64), j.to(tl.int64)


@triton.jit
def _second(i, size, EDGE: tl.constexpr):
    """What the second place of cell i reads on an axis of ``size`` samples, and whether there is anything to read."""
    at = 2 * i + 1
    exists = at > 0
    if EDGE == ZERO:
        exists = at < size
    if EDGE == REPEAT:
        at = tl.where(at < size, at, 2 * i)
    if EDGE == REFLECT:
        at = tl.where(at < size, at, 2 * i - 1)
    if EDGE == WRAP:
        at = tl.where(at < size, at, 0)
    return at, exists


@triton.jit
def _to_last(size, EDGE: tl.constexpr):
    """How many cells the last one of an odd axis is behind the one that its appended sample repeats."""
    return (size // 2).to(tl.int64) if EDGE == WRAP else tl.full((), 1, tl.int64)


_SIZES = ("cells", "channels", "height", "width", "rows", "columns")


@triton.jit(do_not_specialize=[*_SIZES, "x_n", "x_c", "x_h", "x_w", "group", "group_step", "slot_step"])
def analysis_any(
    x,
    low,
    high,
    cells,
    channels,
    height,
    width,
    rows,
    columns,
    x_n,
    x_c,
    x_h,
    x_w,
    group,
    group_step,
    slot_step,
    PLAN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    HIGH_STRIDE: tl.constexpr,
    EDGE_ROWS: tl.constexpr,
    EDGE_COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bands of an image of any size and strides; lanes are cells in the order in which the bands lie in memory."""
    T: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    id = tl.program_id(0).to(tl.int64 if WIDE else tl.int32) * BLOCK + tl.arange(0, BLOCK)
    inside = id < cells
    n, channel, i, j = _cell(id, channels, height, width, CHANNELS_LAST)
    below, has_below = _second(i, rows, EDGE_ROWS)
    beside, has_beside = _second(j, columns, EDGE_COLUMNS)

    image = x + (n * x_n + channel * x_c)
    top, bottom, left, right = image + 2 * i * x_h, image + below * x_h, 2 * j * x_w, beside * x_w
    a = tl.load(top + left, mask=inside, other=0.0).to(T)
    b = tl.load(top + right, mask=inside & has_beside, other=0.0).to(T)
    c = tl.load(bottom + left, mask=inside & has_below, other=0.0).to(T)
    d = tl.load(bottom + right, mask=inside & has_below & has_beside, other=0.0).to(T)

    s, v, h, d = _butterfly(a, b, c, d)
    at = id.to(tl.int64)
    high_at, step = _high_offsets(id, 0, group, group_step, slot_step, 1, HIGH_STRIDE)
    _store_bands(low, high, at, high_at, step, s, v, h, d, inside, PLAN)


@triton.jit
def _folded_rows(
    low,
    high,
    low_at,
    high_at,
    low_h,
    high_h,
    step,
    inside,
    i,
    rows,
    PLAN: tl.constexpr,
    EDGE_ROWS: tl.constexpr,
    T: tl.constexpr,
):
    """``_load_pixels`` of cells in row i, with the appended row of pixels added to the row that it repeats."""
    a, b, c, d = _load_pixels(low, high, low_at, high_at, step, inside, PLAN, T)
    if EDGE_ROWS == REPEAT:
        last = 2 * i + 1 == rows
        a = tl.where(last, a + c, a)
        b = tl.where(last, b + d, b)
    if EDGE_ROWS >= REFLECT:
        far = _to_last(rows, EDGE_ROWS)
        if low is not None:
            low_at = low_at + far * low_h
        if high is not None:
            high_at = high_at + far * high_h
        source = inside & (2 * (i + far) + 1 == rows)
        _, _, last_c, last_d = _load_pixels(low, high, low_at, high_at, step, source, PLAN, T)
        if EDGE_ROWS == REFLECT:
            c += last_c
            d += last_d
        else:
            a += last_c
            b += last_d
    return a, b, c, d


@triton.jit(
    do_not_specialize=[*_SIZES, "low_n", "low_c", "low_h", "low_w", "high_n", "slot_step", "high_c", "high_h", "high_w"]
)
def synthesis_any(
    x,
    low,
    high,
    cells,
    channels,
    height,
    width,
    rows,
    columns,
    low_n,
    low_c,
    low_h,
    low_w,
    high_n,
    slot_step,
    high_c,
    high_h,
    high_w,
    PLAN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EDGE_ROWS: tl.constexpr,
    EDGE_COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Dense image of any size from bands of any strides; lanes are cells in the order of the image's layout."""
    T: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    id = tl.program_id(0).to(tl.int64 if WIDE else tl.int32) * BLOCK + tl.arange(0, BLOCK)
    inside = id < cells
    n, channel, i, j = _cell(id, channels, height, width, CHANNELS_LAST)
    low_at, high_at, step = n, n, 0
    if low is not None:
        low_at = n * low_n + channel * low_c + i * low_h + j * low_w
    if high is not None:
        step = slot_step.to(tl.int64)
        high_at = n * high_n + channel * high_c + i * high_h + j * high_w
    a, b, c, d = _folded_rows(low, high, low_at, high_at, low_h, high_h, step, inside, i, rows, PLAN, EDGE_ROWS, T)
    if EDGE_COLUMNS == REPEAT:
        last = 2 * j + 1 == columns
        a = tl.where(last, a + b, a)
        c = tl.where(last, c + d, c)
    if EDGE_COLUMNS >= REFLECT:
        far = _to_last(columns, EDGE_COLUMNS)
        if low is not None:
            low_at += far * low_w
        if high is not None:
            high_at += far * high_w
        source = inside & (2 * (j + far) + 1 == columns)
        _, last_b, _, last_d = _folded_rows(
            low, high, low_at, high_at, low_h, high_h, step, source, i, rows, PLAN, EDGE_ROWS, T
        )
        if EDGE_COLUMNS == REFLECT:
            b += last_b
            d += last_d
        else:
            a += last_b
            c += last_d

    y0, x0 = 2 * i, 2 * j
    if CHANNELS_LAST:
        right = channels.to(tl.int64)
        top = x + ((n * rows + y0) * columns + x0) * right + channel
    else:
        right = tl.full((), 1, tl.int64)
        top = x + ((n * channels + channel) * rows + y0) * columns + x0
    bottom = top + columns * right
    has_below, has_beside = y0 + 1 < rows, x0 + 1 < columns
    tl.store(top, a, mask=inside)
    tl.store(top + right, b, mask=inside & has_beside)
    tl.store(bottom, c, mask=inside & has_below)
    tl.store(bottom + right, d, mask=inside & has_below & has_beside)
