"""Weighted L1 on the native core: C++ on CPU tensors, CUDA C++ on CUDA tensors.

The core walks two images in one order of memory, planes (columns contiguous) or pixels (channels contiguous). Only
where the two disagree is one of them copied; mixed dtypes are read as they are, except beside fp64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._layout import is_channels_last
from ..._native import DTYPES, launch, workspace
from . import allocate
from .allocate import NONE

KEEPS_SIGNS = True  # forward and backward take sign words; only ever asked for on CPU

_NO_STRIDES = (0, 0, 0, 0)
_NO_WEIGHT = (1, 1, 1, 1)


def _strides(x: Tensor) -> tuple[int, ...]:
    """Strides, with 1 for a single column, whose true stride means nothing."""
    return x.stride() if x.shape[3] > 1 else (*x.stride()[:3], 1)


def _is_planes(x: Tensor) -> bool:
    return x.stride(3) == 1 or x.shape[3] == 1


def _is_pixels(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.stride(3) == x.shape[1]


def _one_order(*images: Tensor) -> tuple[Tensor, ...]:
    """The images in one order of memory, that of the first where they disagree."""
    if all(map(_is_planes, images)) or all(map(_is_pixels, images)):
        return images
    memory_format = torch.channels_last if is_channels_last(images[0]) else torch.contiguous_format
    return tuple(x.contiguous(memory_format=memory_format) for x in images)


def _operands(
    input: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, torch.dtype]:
    compute = allocate.compute_dtype(input, target, weight)
    if compute is torch.float64:
        input, target = input.double(), target.double()
    if weight is not None and weight.dtype is not compute:
        weight = weight.to(compute)
    return input, target, weight, compute


def _image(x: Tensor | None) -> tuple[int, tuple[int, ...]]:
    return (0, _NO_STRIDES) if x is None else (x.data_ptr(), _strides(x))


def _map(weight: Tensor | None) -> tuple[int, torch.Size | tuple[int, ...], tuple[int, ...]]:
    if weight is None:
        return 0, _NO_WEIGHT, _NO_STRIDES
    return weight.data_ptr(), weight.shape, weight.stride()


def _last_argument(x: Tensor, signs: Tensor | None) -> int:
    """What each core takes last: the CPU one sign words, the CUDA one a workspace."""
    if x.is_cpu:
        return 0 if signs is None else signs.data_ptr()
    return workspace(x.device).data_ptr()


def forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    by_weight: bool,
    align_corners: bool,
    fp32: bool,
    signs: Tensor | None = None,
) -> list[Tensor]:
    """``signs``: sign words to fill for ``backward``, which then need not read the images again (CPU)."""
    out = allocate.loss(input, target, weight, reduction, by_weight, fp32)
    x, t, w, compute = _operands(input, target, weight)
    result = out[0]
    if reduction == NONE:
        x, t, result = *_one_order(x, t), result
        if not (_is_planes(result) if _is_planes(x) and _is_planes(t) else _is_pixels(result)):
            memory_format = torch.contiguous_format if _is_planes(result) else torch.channels_last
            x, t = x.contiguous(memory_format=memory_format), t.contiguous(memory_format=memory_format)
    else:
        x, t = _one_order(x, t)
    launch(
        x,
        "weighted_l1_forward",
        (DTYPES[x.dtype], DTYPES[t.dtype], DTYPES[compute], DTYPES[result.dtype]),
        *_image(x),
        *_image(t),
        *_map(w),
        x.shape,
        reduction,
        by_weight,
        align_corners,
        result.data_ptr(),
        _strides(result) if reduction == NONE else _NO_STRIDES,
        out[1].data_ptr() if by_weight else 0,
        _last_argument(x, signs),
    )
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
    signs: Tensor | None = None,
) -> list[Tensor]:
    out = allocate.gradients(input, target, weight, need_input, need_target, need_weight)
    wanted = iter(out)
    grad_input = next(wanted) if need_input else None
    grad_target = next(wanted) if need_target else None
    grad_weight = next(wanted) if need_weight and weight is not None else None
    x, t, w, compute = _operands(input, target, weight)
    if reduction == NONE:
        x, t, grad = _one_order(x, t, grad)
    else:
        x, t = _one_order(x, t)
    planes = _is_planes(x) and _is_planes(t)

    def scratch(result: Tensor | None, like: Tensor) -> Tensor | None:
        """``result`` if the core can write it, else a temporary in the dtype and order it writes."""
        if result is None or (result.dtype == like.dtype and (_is_planes if planes else _is_pixels)(result)):
            return result
        memory_format = torch.contiguous_format if planes else torch.channels_last
        return torch.empty(result.shape, dtype=like.dtype, device=like.device, memory_format=memory_format)

    raw_input, raw_target = scratch(grad_input, x), scratch(grad_target, t)
    raw_weight = grad_weight
    if grad_weight is not None and grad_weight.dtype != compute:
        raw_weight = torch.empty_like(grad_weight, dtype=compute)
    launch(
        x,
        "weighted_l1_backward",
        (DTYPES[grad.dtype], DTYPES[x.dtype], DTYPES[t.dtype], DTYPES[compute]),
        grad.data_ptr(),
        _strides(grad) if reduction == NONE else _NO_STRIDES,
        *_image(x),
        *_image(t),
        *_map(w),
        0 if statistics is None else statistics.data_ptr(),
        x.shape,
        reduction,
        align_corners,
        *_image(raw_input),
        *_image(raw_target),
        *((0, _NO_STRIDES) if raw_weight is None else (raw_weight.data_ptr(), raw_weight.stride())),
        _last_argument(x, signs),
    )
    for result, raw in ((grad_input, raw_input), (grad_target, raw_target), (grad_weight, raw_weight)):
        if result is not None and raw is not None and raw is not result:
            result.copy_(raw)
    return out
