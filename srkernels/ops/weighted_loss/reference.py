"""Weighted losses in eager PyTorch. Any device, any dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._dispatch import without_autocast
from ..._layout import laid_out
from . import allocate
from .arguments import BILINEAR_CORNERS, CHARBONNIER, HUBER, L1, MEAN, MSE, NEAREST, NONE, Operands, Saved, Settings


def resized(weight: Tensor, size: torch.Size | tuple[int, int], resize: int) -> Tensor:
    if not weight.numel():  # PyTorch raises where there are no channels
        return weight[..., :1, :1].expand(*weight.shape[:2], *size)
    if resize == NEAREST:
        return F.interpolate(weight, size=tuple(size), mode="nearest")
    return F.interpolate(weight, size=tuple(size), mode="bilinear", align_corners=resize == BILINEAR_CORNERS)


def _resize_backward(grad: Tensor, weight: Tensor, resize: int) -> Tensor:
    """The adjoint of ``resized``."""
    size, shape = grad.shape[-2:], weight.shape
    if not weight.numel():
        return torch.zeros_like(weight)
    if resize == NEAREST:
        return torch.ops.aten.upsample_nearest2d_backward(grad, size, shape)
    return torch.ops.aten.upsample_bilinear2d_backward(grad, size, shape, resize == BILINEAR_CORNERS)


def penalty(input: Tensor, target: Tensor, settings: Settings) -> Tensor:
    """What the weight multiplies, element by element, in as few of PyTorch's operations as there are."""
    kind, parameter = settings.kind, settings.parameter
    if kind in (MSE, HUBER) and input.dtype is not target.dtype:
        dtype = torch.promote_types(input.dtype, target.dtype)
        input, target = input.to(dtype), target.to(dtype)
    if kind == MSE:
        return F.mse_loss(input, target, reduction="none")
    if kind == HUBER:
        return F.huber_loss(input, target, reduction="none", delta=parameter)
    difference = input - target
    return difference.abs() if kind == L1 else (difference * difference + parameter).sqrt()


def _slope(difference: Tensor, settings: Settings) -> Tensor:
    """The derivative of ``penalty`` by the input, itself differentiable."""
    kind, parameter = settings.kind, settings.parameter
    if kind == MSE:
        return 2 * difference
    if kind == HUBER:
        return difference.clamp(-parameter, parameter)
    if kind == CHARBONNIER:
        return difference / (difference * difference + parameter).sqrt()
    return difference.sgn()


def loss(operands: Operands, settings: Settings) -> Tensor:
    """The formula, differentiable by autograd: what the fused op equals."""
    input, target, weight = operands
    weighted = penalty(input, target, settings)
    full = None
    if weight is not None:
        full = resized(weight, input.shape[-2:], settings.resize)
        weighted = full * weighted
    if settings.reduction == NONE:
        return weighted
    if settings.by_weight and full is not None:
        # A sum of fp16 may be infinite where the mean is not.
        dtype = allocate.compute_dtype(operands)
        return (weighted.sum(dtype=dtype) / full.expand(input.shape).sum(dtype=dtype)).to(weighted.dtype)
    return weighted.mean() if settings.reduction == MEAN else weighted.sum()


def mean_by_weight(operands: Operands, settings: Settings) -> Tensor:
    """(mean by weight, sum of the resized weight) in the compute dtype, differentiable by autograd."""
    dtype = allocate.compute_dtype(operands)
    input, target, weight = (t.to(dtype) for t in operands)  # type: ignore[union-attr]
    full = resized(weight, input.shape[-2:], settings.resize).expand(input.shape)
    total = full.sum()
    return torch.stack(((full * penalty(input, target, settings)).sum() / total, total))


@without_autocast
def forward(operands: Operands, settings: Settings, keep_signs: bool) -> list[Tensor]:
    """[loss], and [loss, sum of the resized weight] in the compute dtype where normalised by it; signs are zeros, as
    ``backward`` reads the images.
    """
    signs = [allocate.signs(operands.input).zero_()] if keep_signs else []
    dtype = allocate.result_dtype(operands, settings.fp32)
    if settings.by_weight:
        both = mean_by_weight(operands, settings)
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
    # As the kernels compute it: a slope of 1 / numel leaves the range of fp16, whatever it is multiplied by.
    dtype = torch.promote_types(grad.dtype, allocate.compute_dtype(saved.operands))
    input, target = input.to(dtype), target.to(dtype)
    scale = grad.to(dtype)
    if statistics is not None:
        scale = scale / statistics[1]
    elif settings.reduction == MEAN:
        scale = scale / input.numel()
    out = []
    if need_input or need_target:
        full = 1 if weight is None else resized(weight.to(dtype), input.shape[-2:], settings.resize)
        slope = scale * full * _slope(input - target, settings)
        out += [slope.to(saved.input.dtype)] * need_input + [-slope.to(saved.target.dtype)] * need_target
    if need_weight and weight is not None:
        residual = penalty(input, target, settings)
        if statistics is not None:
            residual = residual - statistics[0]
        per_cell = scale * residual
        shared = [d for d in (0, 1) if weight.shape[d] == 1]
        if shared:
            per_cell = per_cell.sum(dim=shared, keepdim=True)
        out.append(_resize_backward(per_cell, weight, settings.resize).to(weight.dtype))
    likes = [t for t, need in zip(saved.operands, needs, strict=True) if need and t is not None]
    return [laid_out(g, like) for g, like in zip(out, likes, strict=True)]
