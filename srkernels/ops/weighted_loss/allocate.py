"""Dtypes, shapes and strides of the weighted loss ops' outputs: one place for every backend and for the fakes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._layout import empty_nchw, is_channels_last
from .arguments import NONE, Operands, Saved, Settings


def result_dtype(operands: Operands, fp32: bool) -> torch.dtype:
    """PyTorch's promotion of the three; at least fp32 where ``fp32`` is set (autocast)."""
    input, target, weight = operands
    dtype = input.dtype
    if target.dtype is not dtype:
        dtype = torch.promote_types(dtype, target.dtype)
    if weight is not None and weight.dtype is not dtype:
        dtype = torch.promote_types(dtype, weight.dtype)
    return torch.promote_types(dtype, torch.float32) if fp32 else dtype


def compute_dtype(operands: Operands) -> torch.dtype:
    """What sums are kept in: fp64 if any operand is fp64, fp32 otherwise."""
    input, target, weight = operands
    wide = torch.float64 in (input.dtype, target.dtype, None if weight is None else weight.dtype)
    return torch.float64 if wide else torch.float32


SIGN_GROUP = 16  # elements whose signs share a word of csrc/cpu/weighted_loss/signs.h


def run_elements(input: Tensor, target: Tensor) -> int | None:
    """How many elements of each image are adjacent in both, for images dense in the same order; else None."""
    _, c, h, w = input.shape
    if input.is_contiguous() and target.is_contiguous():
        return h * w
    if w == 1 or not (is_channels_last(input) and is_channels_last(target)):
        return None  # a single column of pixels is read as planes
    return h * w * c


def can_keep_signs(operands: Operands) -> bool:
    """Whether sign(input - target) fits two bits an element: CPU, sums in fp32, images dense in the same order, whole
    words in each run.
    """
    if not operands.input.is_cpu or compute_dtype(operands) is torch.float64:
        return False
    run = run_elements(operands.input, operands.target)
    return run is not None and run % SIGN_GROUP == 0


def signs(input: Tensor) -> Tensor:
    """Uninitialised sign words of an image."""
    return input.new_empty(input.numel() // SIGN_GROUP, dtype=torch.int32)


def loss(operands: Operands, settings: Settings, keep_signs: bool) -> list[Tensor]:
    """Uninitialised [loss]; for a mean by weight also (2,) = [loss, sum of the resized weight] in the compute dtype;
    with ``keep_signs`` last the sign words.
    """
    input = operands.input
    dtype = result_dtype(operands, settings.fp32)
    if settings.reduction == NONE:
        return [empty_nchw(input, input.shape, dtype)]
    out = [input.new_empty(size=(), dtype=dtype)]
    if settings.by_weight:
        out.append(input.new_empty(2, dtype=compute_dtype(operands)))
    return [*out, signs(input)] if keep_signs else out


def gradients(saved: Saved, needs: Sequence[bool]) -> list[Tensor]:
    """Uninitialised gradients of those needed, in this order, each in its tensor's shape, dtype and layout."""
    return [empty_nchw(t, t.shape) for t, need in zip(saved, needs, strict=False) if need and t is not None]
