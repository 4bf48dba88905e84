"""Dtypes, shapes and strides of the weighted L1 ops' outputs: one place for every backend and for the fakes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._layout import empty_nchw, is_channels_last

NONE, MEAN, SUM = 0, 1, 2
REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}


def result_dtype(input: Tensor, target: Tensor, weight: Tensor | None, fp32: bool) -> torch.dtype:
    """PyTorch's promotion of the three; at least fp32 where ``fp32`` is set (autocast)."""
    dtype = input.dtype
    if target.dtype is not dtype:
        dtype = torch.promote_types(dtype, target.dtype)
    if weight is not None and weight.dtype is not dtype:
        dtype = torch.promote_types(dtype, weight.dtype)
    return torch.promote_types(dtype, torch.float32) if fp32 else dtype


def compute_dtype(input: Tensor, target: Tensor, weight: Tensor | None) -> torch.dtype:
    """What sums are kept in: fp64 if any operand is fp64, fp32 otherwise."""
    return torch.float64 if result_dtype(input, target, weight, False) is torch.float64 else torch.float32


SIGN_GROUP = 16  # elements whose signs share a word of csrc/cpu/weighted_l1.cpp


def run_elements(input: Tensor, target: Tensor) -> int | None:
    """How many elements of each image lie side by side in both, for images dense in one order; else None."""
    _, c, h, w = input.shape
    if input.is_contiguous() and target.is_contiguous():
        return h * w
    if w == 1 or not (is_channels_last(input) and is_channels_last(target)):
        return None  # a single column of pixels is read as planes
    return h * w * c


def can_keep_signs(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether sign(input - target) fits two bits an element: CPU, sums in fp32, images dense in one order, whole words
    in each run.
    """
    if not input.is_cpu or compute_dtype(input, target, weight) is torch.float64:
        return False
    run = run_elements(input, target)
    return run is not None and run % SIGN_GROUP == 0


def signs(input: Tensor) -> Tensor:
    """Uninitialised sign words of an image."""
    return input.new_empty(input.numel() // SIGN_GROUP, dtype=torch.int32)


def loss(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, by_weight: bool, fp32: bool
) -> list[Tensor]:
    """Uninitialised [loss]; with ``by_weight`` also (2,) = [loss, sum of the resized weight] in the compute dtype."""
    dtype = result_dtype(input, target, weight, fp32)
    if reduction == NONE:
        return [empty_nchw(input, input.shape, dtype)]
    out = [input.new_empty((), dtype=dtype)]
    if by_weight:
        out.append(input.new_empty(2, dtype=compute_dtype(input, target, weight)))
    return out


def gradients(
    input: Tensor, target: Tensor, weight: Tensor | None, need_input: bool, need_target: bool, need_weight: bool
) -> list[Tensor]:
    """Uninitialised gradients of those needed, in this order, each in its tensor's shape, dtype and layout."""
    out = []
    if need_input:
        out.append(empty_nchw(input, input.shape))
    if need_target:
        out.append(empty_nchw(target, target.shape))
    if need_weight and weight is not None:
        out.append(empty_nchw(weight, weight.shape))
    return out
