"""Weighted L1 in eager PyTorch: the oracle. Any device, any dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._dispatch import without_autocast
from ..._layout import laid_out
from . import allocate
from .allocate import MEAN, NONE
from .arguments import Operands, Saved, Settings


def resized(weight: Tensor, size: torch.Size | tuple[int, int], align_corners: bool) -> Tensor:
    if not weight.numel():  # PyTorch raises where there are no channels
        return weight[..., :1, :1].expand(*weight.shape[:2], *size)
    return F.interpolate(weight, size=tuple(size), mode="bilinear", align_corners=align_corners)


def loss(operands: Operands, settings: Settings) -> Tensor:
    """The formula, differentiable by autograd: what the fused op equals."""
    input, target, weight = operands
    reduction, by_weight, align_corners, _ = settings
    weighted = (input - target).abs()
    full = None
    if weight is not None:
        full = resized(weight, input.shape[-2:], align_corners)
        weighted = full * weighted
    if reduction == NONE:
        return weighted
    if reduction == MEAN and full is not None and by_weight:
        # A sum of fp16 may be infinite where the mean is not.
        dtype = allocate.compute_dtype(operands)
        return (weighted.sum(dtype=dtype) / full.expand(input.shape).sum(dtype=dtype)).to(weighted.dtype)
    return weighted.mean() if reduction == MEAN else weighted.sum()


def mean_by_weight(operands: Operands, align_corners: bool) -> Tensor:
    """(mean by weight, sum of the resized weight) in the compute dtype, differentiable by autograd."""
    dtype = allocate.compute_dtype(operands)
    input, target, weight = (t.to(dtype) for t in operands)  # type: ignore[union-attr]
    full = resized(weight, input.shape[-2:], align_corners).expand(input.shape)
    total = full.sum()
    return torch.stack(((full * (input - target).abs()).sum() / total, total))


@without_autocast
def forward(operands: Operands, settings: Settings, keep_signs: bool) -> list[Tensor]:
    """[loss], and [loss, sum of the resized weight] in the compute dtype where normalised by it; signs are zeros, as
    ``backward`` reads the images.
    """
    signs = [allocate.signs(operands.input).zero_()] if keep_signs else []
    dtype = allocate.result_dtype(operands, settings.fp32)
    if settings.by_weight:
        both = mean_by_weight(operands, settings.align_corners)
        return [both[0].to(dtype), both, *signs]
    if settings.fp32:
        operands = Operands(*(None if t is None else t.to(dtype) for t in operands))  # type: ignore[arg-type]
    value = loss(operands, settings)
    return [laid_out(value, operands.input) if settings.reduction == NONE else value, *signs]


@without_autocast
def backward(grad: Tensor, saved: Saved, settings: Settings, needs: Sequence[bool]) -> list[Tensor]:
    """Gradients of those needed. Made of differentiable operations, so that it also serves a second derivative."""
    input, target, weight, statistics, _ = saved
    need_input, need_target, need_weight = needs
    size = input.shape[-2:]
    # As the kernels compute it: a slope of 1 / numel leaves the range of fp16, whatever it is multiplied by.
    dtype = torch.promote_types(grad.dtype, allocate.compute_dtype(saved.operands))
    difference = input.to(dtype) - target.to(dtype)
    scale = grad.to(dtype)
    if statistics is not None:
        scale = scale / statistics[1]
    elif settings.reduction == MEAN:
        scale = scale / input.numel()
    out = []
    if need_input or need_target:
        full = 1 if weight is None else resized(weight.to(dtype), size, settings.align_corners)
        slope = scale * full * difference.sgn()
        out += [slope.to(input.dtype)] * need_input + [-slope.to(target.dtype)] * need_target
    if need_weight and weight is not None:
        residual = difference.abs()
        if statistics is not None:
            residual = residual - statistics[0]
        per_cell = scale * residual
        shared = [d for d in (0, 1) if weight.shape[d] == 1]
        if shared:
            per_cell = per_cell.sum(dim=shared, keepdim=True)
        cells = (
            torch.ops.aten.upsample_bilinear2d_backward(per_cell, size, weight.shape, settings.align_corners)
            if weight.numel()
            else torch.zeros_like(weight)
        )
        out.append(cells.to(weight.dtype))
    likes = [t for t, need in zip(saved.operands, needs, strict=True) if need and t is not None]
    return [laid_out(g, like) for g, like in zip(out, likes, strict=True)]
