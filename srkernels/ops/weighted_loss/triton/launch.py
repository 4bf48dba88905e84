"""How the weighted loss kernels are launched: how they walk through images and map, by how many programs."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._launch import Launch, Launcher
from ...._layout import is_channels_last
from ...._triton import COUNTERS, SHARES, WARPS_128, cores, on_device, workspace
from .. import allocate
from ..arguments import MEAN, NONE, Operands, Saved, Settings
from .kernels import image_gradients, loss_map, loss_total, map_gradient

# Chosen by machine code, not yet by timing: 128 threads, a vector of each operand and channel per thread.
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


def _divisor(input: Tensor, settings: Settings) -> int:
    return input.numel() if settings.reduction == MEAN else 1


def _per_channel(weight: Tensor | None) -> bool:
    return weight is not None and weight.shape[1] > 1


def _compute(input: Tensor, target: Tensor, weight: Tensor | None) -> tl.dtype:
    return tl.float64 if allocate.compute_dtype(Operands(input, target, weight)) is torch.float64 else tl.float32


def _form(settings: Settings) -> tuple[int, int, float]:
    return settings.resize, settings.kind, settings.parameter


def forward(operands: Operands, settings: Settings, keep_signs: bool) -> list[Tensor]:
    """As ``reference.forward``."""
    input, target, weight = operands
    reduction, by_weight = settings.reduction, settings.by_weight
    out = allocate.loss(operands, settings, keep_signs)
    if keep_signs:
        out[-1].zero_()  # ``backward`` reads the images
    numel = input.numel()
    if numel == 0:
        if reduction != NONE:
            out[0].fill_(float("nan") if reduction == MEAN else 0.0)
        if by_weight:
            out[1].copy_(torch.tensor((float("nan"), 0.0)))
        return out
    with on_device(input.device):
        if reduction == NONE:
            _loss_map((input, target, weight, out[0]), settings)
        else:
            statistics = out[1] if by_weight else None
            _loss_total((input, target, weight, out[0], statistics, *workspace(input.device)), settings)
    return out


@Launcher
def _loss_map(input: Tensor, target: Tensor, weight: Tensor | None, out: Tensor, settings: Settings) -> Launch:
    walk = _walk(input, target, weight, None)
    return Launch(
        loss_map, walk.tiles, *walk.sizes_and_strides, *_weight(weight), _per_channel(weight), *_form(settings),
        walk.along_c, walk.chunk, walk.vec, _BLOCK, walk.wide, _compute(input, target, weight),
        not walk.flat and is_channels_last(out), num_warps=WARPS_128,
    )  # fmt: skip


@Launcher
def _loss_total(
    input: Tensor, target: Tensor, weight: Tensor | None, out: Tensor, statistics: Tensor | None, shares: Tensor,
    counters: Tensor, settings: Settings,
) -> Launch:  # fmt: skip
    walk = _walk(input, target, weight, None)
    # One wave: stragglers cost one tile at most, and the lanes' sums are as short as that allows.
    programs = min(_PROGRAMS_PER_CORE, _PROGRAMS // cores(input.device)) * cores(input.device)
    return Launch(
        loss_total, min(walk.tiles, programs), walk.tiles, _divisor(input, settings),
        *walk.sizes_and_strides, *_weight(weight), _per_channel(weight), *_form(settings),
        walk.along_c, walk.chunk, walk.vec, _BLOCK, walk.wide, _compute(input, target, weight),
        _PROGRAMS, num_warps=WARPS_128,
    )  # fmt: skip


def backward(grad: Tensor, saved: Saved, settings: Settings, needs: Sequence[bool]) -> list[Tensor]:
    """As ``reference.backward``."""
    input, target, weight, statistics, _ = saved
    out = allocate.gradients(saved, needs)
    numel = input.numel()
    if numel == 0 or not out:
        for empty in out:
            empty.zero_()
        return out
    results = iter(out)
    grad_input, grad_target, grad_weight = (
        next(results) if need and t is not None else None for t, need in zip(saved.operands, needs, strict=True)
    )
    with on_device(input.device):
        if grad_input is not None or grad_target is not None:
            _image_gradients((input, target, weight, grad, statistics, grad_input, grad_target), settings)
        if grad_weight is not None and weight is not None:
            scratch = workspace(input.device) if _gather_shape(input, weight)[2] > 1 else (None, None)
            _map_gradient((input, target, grad, statistics, grad_weight, *scratch), settings)
    return out


@Launcher
def _image_gradients(
    input: Tensor, target: Tensor, weight: Tensor | None, grad: Tensor, statistics: Tensor | None,
    grad_input: Tensor | None, grad_target: Tensor | None, settings: Settings,
) -> Launch:  # fmt: skip
    walk = _walk(input, target, weight, grad if settings.reduction == NONE else None)

    def last(gradient: Tensor | None) -> bool:
        return not walk.flat and gradient is not None and is_channels_last(gradient)

    return Launch(
        image_gradients, walk.tiles, _divisor(input, settings),
        *walk.sizes_and_strides, *_weight(weight), *walk.grad, _per_channel(weight), *_form(settings),
        walk.along_c, walk.chunk, walk.vec, _BLOCK, walk.wide, _compute(input, target, weight),
        settings.reduction == NONE, int(any(walk.grad)), last(grad_input), last(grad_target), num_warps=WARPS_128,
    )  # fmt: skip


@Launcher
def _map_gradient(
    input: Tensor, target: Tensor, grad: Tensor, statistics: Tensor | None, grad_weight: Tensor, shares: Tensor | None,
    counters: Tensor | None, settings: Settings,
) -> Launch:  # fmt: skip
    walk = _walk(input, target, grad_weight, grad if settings.reduction == NONE else None)
    cells, reach, parts = _gather_shape(input, grad_weight)
    return Launch(
        map_gradient, triton.cdiv(grad_weight.numel(), cells) * parts, _divisor(input, settings),
        *walk.sizes_and_strides[3:], *grad_weight.shape[2:], *walk.grad, *grad_weight.shape[:2], input.shape[0], parts,
        *_form(settings), walk.along_c, walk.vec, walk.wide, _compute(input, target, grad_weight),
        settings.reduction == NONE, is_channels_last(grad_weight), cells, reach, parts > 1, _PROGRAMS,
        num_warps=WARPS_128,
    )  # fmt: skip


def _gather_shape(input: Tensor, weight: Tensor) -> tuple[int, int, int]:
    """(CELLS, REACH, parts) of the map's gradient: as many lanes go to a cell's footprint as it fills."""
    cells = weight.numel()
    # Every pixel of every sample and channel belongs to about four cells.
    footprint = 4 * input.numel() // cells
    if cells <= _SPLIT_CELLS and footprint > 2 * _SPLIT_REACH:
        return 1, 4 * _BLOCK, min(triton.cdiv(footprint, _SPLIT_REACH), SHARES // cells, _PROGRAMS)
    reach = 16 if footprint <= 64 else _BLOCK if footprint <= 1024 else 4 * _BLOCK
    return 4 * _BLOCK // reach, reach, 1
