"""Weighted L1 on the native core: C++ on CPU tensors, CUDA C++ on CUDA tensors.

The CUDA core takes any operands. The CPU core walks two images in one order of memory, planes (columns contiguous) or
pixels (channels contiguous), with sums in one dtype: only where operands disagree is one of them copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, get_num_threads

from ..._layout import is_channels_last
from ..._native import extension, launch, workspace
from . import allocate
from .allocate import NONE

KEEPS_SIGNS = True  # forward and backward take sign words; only ever asked for on CPU


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


def _one_dtype(input: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The weight in the dtype that is summed in, and the images too where that is fp64."""
    compute = allocate.compute_dtype(input, target, weight)
    if compute is torch.float64:
        input, target = input.double(), target.double()
    if weight is not None and weight.dtype is not compute:
        weight = weight.to(compute)
    return input, target, weight


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
    result, statistics = out[0], out[1] if by_weight else None
    last = signs
    if input.is_cpu:
        input, target, weight = _one_dtype(input, target, weight)
        if reduction == NONE:
            _, input, target = _one_order(result, input, target)
        elif signs is None:
            input, target = _one_order(input, target)
    else:
        last = workspace(input.device)
    launch(
        input, "weighted_l1_forward",
        input, target, weight, result, statistics, reduction, align_corners, last,
    )  # fmt: skip
    return out


def decided(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    by_weight: bool,
    align_corners: bool,
    fp32: bool,
    keep_signs: bool,
) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """``forward`` and ``backward`` to the images for CPU tensors of these dtypes, shapes and layouts: all is decided
    but where to write. None where operands would have to be converted, or ``backward`` to read the images again.
    """
    compute = allocate.compute_dtype(input, target, weight)
    converted = compute is torch.float64 or (weight is not None and weight.dtype is not compute)
    if reduction == NONE or converted or allocate.run_elements(input, target) is None:
        return None
    dtype = allocate.result_dtype(input, target, weight, fp32)
    words = allocate.signs(input).shape
    place, target_place = ((g.shape, g.stride()) for g in allocate.gradients(input, target, None, True, True, False))
    core = extension("cpu")
    run_forward, run_backward = core.weighted_l1_forward, core.weighted_l1_backward

    def forward(input: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        loss = input.new_empty((), dtype=dtype)
        statistics = input.new_empty(2, dtype=compute) if by_weight else None
        signs = input.new_empty(words, dtype=torch.int32) if keep_signs else None
        run_forward(input, target, weight, loss, statistics, reduction, align_corners, signs, get_num_threads())
        return loss, statistics, signs

    def backward(
        grad: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        statistics: Tensor | None,
        signs: Tensor | None,
        need_input: bool,
        need_target: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        by_input = input.new_empty_strided(*place) if need_input else None
        by_target = target.new_empty_strided(*target_place) if need_target else None
        run_backward(
            grad, input, target, weight, statistics, by_input, by_target, None,
            reduction, align_corners, signs, get_num_threads(),
        )  # fmt: skip
        return by_input, by_target

    return forward, backward


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
    grads = [
        next(wanted) if need_input else None,
        next(wanted) if need_target else None,
        next(wanted) if need_weight and weight is not None else None,
    ]
    raw, last = grads, signs
    if input.is_cpu:
        input, target, weight = _one_dtype(input, target, weight)
        if signs is None:  # else the images are dense, in one order
            if reduction == NONE:
                input, target, grad = _one_order(input, target, grad)
            else:
                input, target = _one_order(input, target)
            raw = _scratch(grads, input, target, weight)
    else:
        last = workspace(input.device)
    launch(
        input, "weighted_l1_backward",
        grad, input, target, weight, statistics, *raw, reduction, align_corners, last,
    )  # fmt: skip
    if raw is not grads:
        for result, written in zip(grads, raw, strict=True):
            if result is not written and result is not None and written is not None:
                result.copy_(written)
    return out


def _scratch(grads: list[Tensor | None], input: Tensor, target: Tensor, weight: Tensor | None) -> list[Tensor | None]:
    """Each gradient if the CPU core can write it, else a temporary in the dtype and order that it writes."""
    planes = _is_planes(input) and _is_planes(target)
    in_order = _is_planes if planes else _is_pixels
    memory_format = torch.contiguous_format if planes else torch.channels_last
    raw = list(grads)
    for i, like in enumerate((input, target)):
        grad = grads[i]
        if grad is not None and not (grad.dtype is like.dtype and in_order(grad)):
            raw[i] = torch.empty(grad.shape, dtype=like.dtype, memory_format=memory_format)
    grad = grads[2]
    if grad is not None and weight is not None and grad.dtype is not weight.dtype:
        raw[2] = torch.empty_like(grad, dtype=weight.dtype)
    return raw
