"""Weighted L1 in eager PyTorch: the oracle. Any device, any dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._dispatch import without_autocast
from ..._layout import laid_out
from . import allocate
from .allocate import MEAN, NONE


def resized(weight: Tensor, size: torch.Size | tuple[int, int], align_corners: bool) -> Tensor:
    if not weight.numel():  # refused by PyTorch where there are no channels
        return weight[..., :1, :1].expand(*weight.shape[:2], *size)
    return F.interpolate(weight, size=tuple(size), mode="bilinear", align_corners=align_corners)


def loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    by_weight: bool,
    align_corners: bool,
) -> Tensor:
    """The formula, differentiable by autograd: what the fused op equals."""
    weighted = (input - target).abs()
    full = None
    if weight is not None:
        full = resized(weight, input.shape[-2:], align_corners)
        weighted = full * weighted
    if reduction == NONE:
        return weighted
    if reduction == MEAN and full is not None and by_weight:
        # A sum of fp16 may be infinite where the mean is not.
        dtype = allocate.compute_dtype(input, target, weight)
        return (weighted.sum(dtype=dtype) / full.expand(input.shape).sum(dtype=dtype)).to(weighted.dtype)
    return weighted.mean() if reduction == MEAN else weighted.sum()


def mean_by_weight(input: Tensor, target: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """(mean by weight, sum of the resized weight) in the compute dtype, differentiable by autograd."""
    dtype = allocate.compute_dtype(input, target, weight)
    full = resized(weight.to(dtype), input.shape[-2:], align_corners).expand(input.shape)
    total = full.sum()
    return torch.stack(((full * (input.to(dtype) - target.to(dtype)).abs()).sum() / total, total))


@without_autocast
def forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    by_weight: bool,
    align_corners: bool,
    fp32: bool,
) -> list[Tensor]:
    """[loss], and [loss, sum of the resized weight] in the compute dtype where normalised by it."""
    if by_weight:
        assert weight is not None
        both = mean_by_weight(input, target, weight, align_corners)
        return [both[0].to(allocate.result_dtype(input, target, weight, fp32)), both]
    if fp32:
        dtype = allocate.result_dtype(input, target, weight, fp32)
        input, target = input.to(dtype), target.to(dtype)
        weight = None if weight is None else weight.to(dtype)
    value = loss(input, target, weight, reduction, by_weight, align_corners)
    if reduction == NONE:
        return [laid_out(value, input)]
    return [value]


@without_autocast
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
) -> list[Tensor]:
    """Gradients of those needed. Made of differentiable operations, so that it also serves a second derivative."""
    size = input.shape[-2:]
    # As the kernels compute it: a slope of 1 / numel leaves the range of fp16, whatever it is multiplied by.
    dtype = torch.promote_types(grad.dtype, allocate.compute_dtype(input, target, weight))
    difference = input.to(dtype) - target.to(dtype)
    scale = grad.to(dtype)
    if statistics is not None:
        scale = scale / statistics[1]
    elif reduction == MEAN:
        scale = scale / input.numel()
    out = []
    if need_input or need_target:
        full = 1 if weight is None else resized(weight.to(dtype), size, align_corners)
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
            torch.ops.aten.upsample_bilinear2d_backward(per_cell, size, weight.shape, align_corners)
            if weight.numel()
            else torch.zeros_like(weight)
        )
        out.append(cells.to(weight.dtype))
    likes = [
        t for t, need in ((input, need_input), (target, need_target), (weight, need_weight)) if need and t is not None
    ]
    return [laid_out(g, like) for g, like in zip(out, likes, strict=True)]
