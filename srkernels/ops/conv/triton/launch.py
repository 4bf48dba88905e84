"""Launches of the convolution kernels: which one, in blocks of what size, over how many programs.

Nothing here was timed on a GPU. Blocks are those whose machine code is good on Triton 3.6 and 3.9 (no spill, shared
memory that fits, loads in flight while products run); kernels are chosen by the counted bytes that a multiprocessor
reads from L2, which bound both.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._triton import WARPS_128, cores, interpreting
from .. import activation as codes
from ..activation import CONVOLUTION, Epilogue
from .convolution import gather, shift, stream, through_activation
from .weight_gradient import add_up, pack, weight_gradient

OURS = True  # products, and what follows one happens in registers

_WARPS_256 = 2 * WARPS_128
_PRODUCT = 128  # bytes of a pixel's channels that one product takes
_SHARED = 232_448  # bytes that a program can have on a Hopper
_STAGES = 3  # tiles in flight: with two, loads are awaited as soon as they are issued
_LEAST_CORES = 4  # so that the interpreter's single core has seams between bands and between shares
POINTWISE = 32  # pixels of a tile
_POINTWISE_PER_CORE = 8
_SUMMED = 16  # shares that ``add_up`` reads at once
_WEIGHTS = 2048 if interpreting() else 128  # of an output channel that a program of ``add_up`` or ``pack`` moves
_PIXELS_OF_A_SHARE = 10  # they take as long to multiply as a share takes to write and read, by count


def block(channels: int, most: int) -> int:
    """A power of two that tensor cores take."""
    return max(16, min(most, triton.next_power_of_2(channels)))


def sums_in(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype is torch.float64 else tl.float32


def _precision(dtype: torch.dtype) -> str:
    """How fp32 is multiplied: as set for PyTorch's own convolutions."""
    if dtype is not torch.float32 or torch.version.hip:
        return "ieee"
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return "tf32" if conv.fp32_precision == "tf32" else "tf32x3"


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether products take whole operands from 227 KB of shared memory while sums stay in registers.

    CPU tensors, of the interpreter, take Hopper's path too. Blackwell keeps sums in a memory of its own and would copy
    them back and forth.
    """
    if device.type == "cpu":
        return True
    return not torch.version.hip and torch.cuda.get_device_capability(device)[0] == 9


def _hoppers_way(x: Tensor) -> bool:
    """Whether to keep all that fits a Hopper's registers and shared memory; fp32 in three products needs more."""
    return x.dtype is not torch.float64 and _precision(x.dtype) != "tf32x3" and is_hopper(x.device)


class Blocks(NamedTuple):
    """What convolves, ``stream``, ``shift`` or ``gather``, in blocks of M pixels, K input and N output channels.

    ``stages``: tiles in flight.
    """

    kernel: str
    pixels: int
    channels: int
    outputs: int
    stages: int = _STAGES


class _Strips(NamedTuple):
    """How ``stream`` and ``shift`` cover a batch: columns of a strip, rows of a band, programs."""

    columns: int
    rows: int
    programs: int


def _strips(images: int, height: int, width: int, blocks: int, m: int, resident: float, cores: int) -> _Strips:
    """The strips that waste least."""

    def count(columns: int) -> int:
        return triton.cdiv(width, columns) * triton.cdiv(images * columns, m)

    columns = min((c for c in (256, 128, 64, 32, 16) if c <= m), key=count)
    return _Strips(columns, *_bands(height, count(columns) * blocks, resident, cores))


def _bands(height: int, across: int, resident: float, cores: int) -> tuple[int, int]:
    """(rows of a band, programs) that end soonest; ``resident``: rows that take as long as the filters do."""

    def time(rows: int) -> float:
        return triton.cdiv(across * triton.cdiv(height, rows), cores) * (rows + 2 + resident)

    rows = min(range(height, 0, -1), key=time)
    return rows, across * triton.cdiv(height, rows)


def _streaming(channels: int, out: int, itemsize: int, last: bool = True) -> Blocks:
    if channels * itemsize <= _PRODUCT:
        # Nine filter matrices and three rows fill the shared memory, so that fp32 has none left for 64 outputs on their
        # way to memory. Offsets into a contiguous tensor take as many registers as half the sums.
        narrow = itemsize == 4 or not last
        return Blocks("stream", 128, block(channels, _PRODUCT // itemsize), block(out, 32 if narrow else 64))
    n = block(out, 64 if last else 32)
    return Blocks("stream", 128 if n == 64 or not last else 256, _PRODUCT // 2 // itemsize, n)


def _gathering(channels: int, out: int, dtype: torch.dtype) -> Blocks:
    if dtype is torch.float64:
        return Blocks("gather", 32, block(channels, _PRODUCT // dtype.itemsize), block(out, 32))
    return Blocks("gather", 128, block(channels, _PRODUCT // dtype.itemsize), block(out, 64))


def _shifting(channels: int, out: int, itemsize: int) -> Blocks | None:
    """As many pixels as fit, three rows of them next to the filters and the moving sums; None: none."""
    k, n = _PRODUCT // 2 // itemsize, block(out, 32)
    padded = triton.cdiv(channels, k) * k
    for pixels in (128, 64):
        if (9 * n + _STAGES * pixels) * padded * itemsize + 4 * pixels * n <= _SHARED:
            return Blocks("shift", pixels, k, n)
    return None


@functools.lru_cache(maxsize=1024)
def _covered(shape: torch.Size, out: int, how: Blocks, cores: int) -> _Strips:
    images, channels, height, width = shape
    if how.kernel == "shift":
        across = triton.cdiv(images * width, how.pixels - 2) * triton.cdiv(out, how.outputs)
        return _Strips(how.pixels - 2, *_bands(height, across, 9 * how.outputs / how.pixels, max(cores, _LEAST_CORES)))
    # Filters of one block of channels are read once, those of more with every row: 3 N of them for every M / 3 pixels.
    resident = 3 * how.outputs / how.pixels if channels <= how.channels else 0
    blocks = triton.cdiv(out, how.outputs)
    return _strips(images, height, width, blocks, how.pixels, resident, max(cores, _LEAST_CORES))


def _read_by_rows(shape: torch.Size, out: int, how: Blocks, cores: int) -> int:
    """Values that the busiest multiprocessor reads from L2 with ``stream`` or ``shift``."""
    blocks, strips = triton.cdiv(shape[1], how.channels), _covered(shape, out, how, cores)
    filters, row = 9 * how.channels * how.outputs, how.pixels * how.channels
    if how.kernel == "shift":
        each = blocks * ((strips.rows + 2) * row + filters)
    else:
        each = (strips.rows + 2) * blocks * 3 * row + filters * (1 if blocks == 1 else (strips.rows + 2) * blocks)
    return triton.cdiv(strips.programs, cores) * each


def _gathered(shape: torch.Size, out: int, how: Blocks, cores: int) -> int:
    """Values that the busiest multiprocessor reads from L2 with ``gather``."""
    images, channels, height, width = shape
    programs = triton.cdiv(images * height * width, how.pixels) * triton.cdiv(out, how.outputs)
    each = 9 * triton.cdiv(channels, how.channels) * how.channels * (how.pixels + how.outputs)
    return triton.cdiv(programs, cores) * each


@functools.lru_cache(maxsize=1024)
def _chosen(shape: torch.Size, out: int, dtype: torch.dtype, last: bool, cores: int) -> Blocks:
    """The choice on a Hopper."""
    by_rows, gathering = _by_rows(shape[1], out, dtype.itemsize, last), _gathering(shape[1], out, dtype)
    return by_rows if _read_by_rows(shape, out, by_rows, cores) < _gathered(shape, out, gathering, cores) else gathering


def _by_rows(channels: int, out: int, itemsize: int, last: bool) -> Blocks:
    wide = _shifting(channels, out, itemsize) if channels * itemsize > _PRODUCT and last else None
    return wide or _streaming(channels, out, itemsize, last)


def gathers(x: Tensor, residual: Tensor | None) -> bool:
    """Whether only ``gather`` fits: the others keep more in registers and shared memory."""
    return not _hoppers_way(x) or (residual is not None and residual.element_size() > x.element_size())


def choose(x: Tensor, out: int, last: bool = True, residual: Tensor | None = None) -> Blocks:
    """What convolves ``x`` to ``out`` channels, channels_last if ``last``."""
    if gathers(x, residual):
        return _gathering(x.shape[1], out, x.dtype)
    if x.device.type == "cpu":
        return _by_rows(x.shape[1], out, x.element_size(), last)
    return _chosen(x.shape, out, x.dtype, last, cores(x.device))


def usual(kernel: str, channels: int, out: int, dtype: torch.dtype, last: bool = True) -> Blocks | None:
    """The blocks in which ``kernel`` convolves where it is chosen; None where it does not fit. See ``gathers`` too."""
    if kernel == "gather":
        return _gathering(channels, out, dtype)
    if kernel == "stream":
        return _streaming(channels, out, dtype.itemsize, last)
    return _shifting(channels, out, dtype.itemsize) if last else None


def pitch(x: Tensor) -> int:
    """Elements between neighbouring pixels of ``x``: channels_last, or a slice of the channels of such a tensor."""
    # The stride of a single column, row or image is meaningless.
    images, channels, height, width = x.shape
    return x.stride(3) if width > 1 else x.stride(2) if height > 1 else x.stride(0) if images > 1 else channels


def _in_rows(weight: Tensor) -> Tensor:
    """``weight`` as the kernels read it: channels adjacent, taps and filters following each other at one pitch."""
    pitch = weight.stride(3)
    strides = (9 * pitch, 1, 3 * pitch, pitch)
    of_axes = zip(weight.shape, weight.stride(), strides, strict=True)
    return weight if all(size == 1 or found == wanted for size, found, wanted in of_axes) else channels_last(weight)


def stored_last(y: Tensor) -> bool:
    """Whether a result is channels_last, or a slice of the channels of such a tensor; else it is contiguous."""
    return y.is_contiguous(memory_format=torch.channels_last) or not y.is_contiguous()


class EpilogueTensors(NamedTuple):
    """What an epilogue reads, and ``z``, where the activation's input is stored."""

    bias: Tensor | None = None
    slope: Tensor | None = None
    kept: Tensor | None = None
    residual: Tensor | None = None
    z: Tensor | None = None


NO_TENSORS = EpilogueTensors()


def convolve(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    epilogue: Epilogue = CONVOLUTION,
    tensors: EpilogueTensors = NO_TENSORS,
    *,
    adjoint: bool = False,
    how: Blocks | None = None,
) -> Tensor:
    """y = scale * act(convolution + bias) + residual, with ``kept`` y = scale * convolution * act'(kept) + residual.

    ``x`` and ``kept`` are channels_last or channel slices of such; ``y`` is that or contiguous, and ``residual`` and
    ``z`` are dense in its layout. ``adjoint``: the transposed convolution, that of the data gradient.
    """
    bias, slope, kept, residual, z = tensors
    images, channels, height, width = x.shape
    out = y.shape[1]
    last = stored_last(y)
    weight = _in_rows(weight)
    settings = (
        channels, out, adjoint, *epilogue[:2], 0 if slope is None else slope.numel(), epilogue.scale, last,
        pitch(x), weight.stride(3), 0 if kept is None else pitch(kept), pitch(y) if last else 0,
        _precision(x.dtype), sums_in(x.dtype),
    )  # fmt: skip
    bias, slope = (None if vector is None else vector.contiguous() for vector in (bias, slope))
    pointers = (x, weight, bias, slope, kept, residual, y, z)
    how = how or choose(x, out, last, residual)
    blocks = how.pixels, how.channels, how.outputs
    # A product has 64 pixels per four warps; ``stream`` and ``gather`` take eight.
    warps = WARPS_128 * (how.pixels // 64) if how.kernel == "shift" else _WARPS_256
    options = {"num_warps": warps, "num_stages": how.stages}
    if how.kernel == "gather":
        pixels = images * height * width
        gather[(triton.cdiv(pixels, how.pixels) * triton.cdiv(out, how.outputs),)](
            *pointers, height, width, pixels, *settings, pixels >= 2**31 - how.pixels, *blocks, **options
        )
        return y
    strips = _covered(x.shape, out, how, cores(x.device))
    arguments = (*pointers, images, height, width, strips.rows, *settings)
    if how.kernel == "shift":
        shift[(strips.programs,)](*arguments, *blocks, **options)
    else:
        stream[(strips.programs,)](*arguments, strips.columns, *blocks, **options)
    return y


def activation_gradient(
    grad: Tensor,
    kept: Tensor | None,
    slope: Tensor | None,
    epilogue: Epilogue,
    need_grad_z: bool,
    grad_bias: Tensor | None,
    grad_slope: Tensor | None,
    in_place: bool = False,
) -> Tensor:
    """g_z, channels_last as ``grad`` is, or ``in_place`` of it; fills in the gradients of bias and slopes."""
    changes = need_grad_z and (epilogue.activation != codes.NONE or epilogue.scale != 1)
    if not changes and grad_bias is None and grad_slope is None:
        return grad
    images, channels, height, width = grad.shape
    pixels, n = images * height * width, block(channels, 64)
    tiles, blocks = triton.cdiv(pixels, POINTWISE), triton.cdiv(channels, n)
    shares = min(tiles, _POINTWISE_PER_CORE * cores(grad.device))
    grad_z = None if not changes else grad if in_place else torch.empty_like(grad)
    bias_shares, slope_shares = (
        None if to is None else grad.new_empty((shares, channels), dtype=torch.float64)
        for to in (grad_bias, grad_slope)
    )
    through_activation[(shares * blocks,)](
        grad, None if kept is None else channels_last(kept), None if slope is None else slope.contiguous(), grad_z,
        bias_shares, slope_shares, pixels, channels, *epilogue[:2],
        0 if slope is None else slope.numel(), epilogue.scale, POINTWISE, n, sums_in(grad.dtype), num_warps=WARPS_128,
    )  # fmt: skip
    if grad_bias is not None and bias_shares is not None:
        grad_bias.copy_(bias_shares.sum(0))
    if grad_slope is not None and slope_shares is not None:
        grad_slope.copy_(slope_shares.sum(0) if grad_slope.numel() == channels else slope_shares.sum())
    return grad if grad_z is None else grad_z


class Shares(NamedTuple):
    """Blocks of ``weight_gradient``: P pixels of a product, K input and N output channels, all nine taps or a row."""

    pixels: int
    channels: int
    outputs: int
    nine: bool
    stages: int = _STAGES


def choose_shares(x: Tensor, out: int) -> Shares:
    double = x.dtype is torch.float64
    nine = _hoppers_way(x)
    # Four filter rows of 32 output channels, one of them zero, make rows for two groups of four warps, like two of 64.
    n = 32 if double or (nine and out <= 32) else 64
    # Elsewhere products take operands from registers, which suffice for 32 pixels.
    pixels = min(64 if nine else 32, _PRODUCT // x.element_size())
    return Shares(pixels, block(x.shape[1], 32 if double else 64), n, nine)


def split(pixels: int, p: int, tiles: int, cores: int) -> tuple[int, int]:
    """A sum over pixels, P at a time, among programs: (steps of a share, shares of each of ``tiles``).

    With n shares it takes as long as pixels / n + 10 n pixels do, which is least at n = sqrt(pixels / 10).
    """
    shares = max(1, min(cores // tiles, round((pixels / _PIXELS_OF_A_SHARE) ** 0.5)))
    steps = triton.cdiv(pixels, p)
    each = triton.cdiv(steps, shares)
    return each, triton.cdiv(steps, each)


def _gradient_of_rows(
    x: Tensor,
    grad_z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    scale: float,
    how: Shares | None,
    growth: int = 0,
) -> None:
    """Fills in gradients of ``weights`` and ``biases``: one each, or none, or the five of a dense block."""
    images, channels, height, width = x.shape
    out, pixels = grad_z.shape[1], images * height * width
    how = how or choose_shares(x, out)
    tiles = (1 if how.nine else 3) * triton.cdiv(channels, how.channels) * triton.cdiv(out, how.outputs)
    steps_each, count = split(pixels, how.pixels, tiles, max(cores(x.device), _LEAST_CORES))
    compute = torch.promote_types(x.dtype, torch.float32)
    shares = x.new_empty((count, out, 3, 3, channels), dtype=compute)
    bias_shares = x.new_empty((count, out), dtype=compute) if biases else None
    weight_gradient[(count * tiles,)](
        x, grad_z, shares, bias_shares, height, width, pixels, steps_each,
        channels, out, pitch(x), pitch(grad_z), _precision(x.dtype), sums_in(x.dtype), pixels >= 2**31 - how.pixels,
        how.pixels, how.channels, how.outputs, how.nine, num_warps=_WARPS_256, num_stages=how.stages,
    )  # fmt: skip
    # Filters of one channel are in both layouts, so no single one tells.
    last = all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    c, none = weights[-1].shape[0], [None] * 5
    add_up[(out * triton.cdiv(9 * channels, _WEIGHTS),)](
        shares, bias_shares, *[*weights, *none][:5], *[*biases, *none][:5], count,
        channels, out, c, growth, scale, last, _SUMMED, _WEIGHTS, sums_in(x.dtype), num_warps=WARPS_128,
    )  # fmt: skip


def sums_biases(dtype: torch.dtype) -> bool:
    """Whether a weight's gradient brings the bias's: not in fp32, which tf32 would round before it is summed."""
    return dtype is not torch.float32


def gradient_of_weight(
    x: Tensor,
    grad_z: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor | None = None,
    scale: float = 1.0,
    how: Shares | None = None,
) -> None:
    """Fills in ``grad_weight`` and ``grad_bias``, times ``scale``; ``x`` and ``grad_z`` as ``convolve`` takes ``x``.

    The gradients are dense, channels_last or contiguous; ``grad_bias`` only where ``sums_biases``.
    """
    _gradient_of_rows(x, grad_z, [grad_weight], [] if grad_bias is None else [grad_bias], scale, how)


def gradients_of_weights(
    features: Tensor,
    gradients: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    how: Shares | None = None,
) -> None:
    """Fills in those of a dense block's five ``weights`` and five or no ``biases``, all in one layout.

    ``gradients``: ahead of each activation, c of the last convolution and growth of each one before. ``biases`` only
    where ``sums_biases``.
    """
    _gradient_of_rows(features, gradients, weights, biases, 1.0, how, weights[0].shape[0])


def packed(weights: Sequence[Tensor]) -> Tensor:
    """A dense block's filters in one tensor, (c + 4 growth) by as many channels, in the order of ``gradients``.

    Uninitialised where a convolution has no such input.
    """
    c, growth = weights[4].shape[0], weights[0].shape[0]
    every = c + 4 * growth
    last = all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    if not last:
        weights = [w.contiguous() for w in weights]
    found = weights[0].new_empty((every, 3, 3, every))
    grid = (every * triton.cdiv(9 * every, _WEIGHTS),)
    pack[grid](*weights, found, every, c, growth, last, _WEIGHTS, num_warps=WARPS_128)
    return found.permute(0, 3, 1, 2)
