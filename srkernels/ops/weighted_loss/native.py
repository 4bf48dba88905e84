"""Weighted losses on the native core: C++ on CPU tensors, CUDA C++ on CUDA tensors.

The CUDA core takes any operands. The CPU core walks two images in one order of memory, planes (columns contiguous) or
pixels (channels contiguous), with sums in one dtype: only where operands disagree is one of them copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._layout import is_channels_last
from ..._native import launch, workspace
from . import allocate
from .arguments import NONE, Operands, Saved, Settings


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


def _one_dtype(operands: Operands) -> Operands:
    """The weight in the dtype that is summed in, and the images too where that is fp64."""
    input, target, weight = operands
    compute = allocate.compute_dtype(operands)
    if compute is torch.float64:
        input, target = input.double(), target.double()
    if weight is not None and weight.dtype is not compute:
        weight = weight.to(compute)
    return Operands(input, target, weight)


def scalars(settings: Settings) -> tuple[int, int, int, float]:
    """What the core takes of them."""
    return settings.reduction, settings.resize, settings.kind, settings.parameter


def forward(operands: Operands, settings: Settings, keep_signs: bool) -> list[Tensor]:
    """With ``keep_signs``, requested only on CPU, ``backward`` need not read the images again."""
    out = allocate.loss(operands, settings, keep_signs)
    result, statistics = out[0], out[1] if settings.by_weight else None
    if operands.input.is_cpu:
        input, target, weight = _one_dtype(operands)
        last = out[-1] if keep_signs else None
        if settings.reduction == NONE:
            _, input, target = _one_order(result, input, target)
        elif not keep_signs:
            input, target = _one_order(input, target)
    else:
        input, target, weight = operands
        last = workspace(input.device)
    launch(
        input, "weighted_loss_forward",
        input, target, weight, result, statistics, scalars(settings), last,
    )  # fmt: skip
    return out


def backward(grad: Tensor, saved: Saved, settings: Settings, needs: Sequence[bool]) -> list[Tensor]:
    input, target, weight, statistics, signs = saved
    out = allocate.gradients(saved, needs)
    wanted = iter(out)
    grads = [next(wanted) if need and t is not None else None for t, need in zip(saved.operands, needs, strict=True)]
    raw, last = grads, signs
    if input.is_cpu:
        input, target, weight = _one_dtype(saved.operands)
        if signs is None:  # else the images are dense, in one order
            if settings.reduction == NONE:
                input, target, grad = _one_order(input, target, grad)
            else:
                input, target = _one_order(input, target)
            raw = _scratch(grads, input, target, weight)
    else:
        last = workspace(input.device)
    launch(
        input, "weighted_loss_backward",
        grad, input, target, weight, statistics, *raw, scalars(settings), last,
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
            raw[i] = torch.empty_like(grad, dtype=like.dtype, memory_format=memory_format)
    grad = grads[2]
    if grad is not None and weight is not None and grad.dtype is not weight.dtype:
        raw[2] = torch.empty_like(grad, dtype=weight.dtype)
    return raw
