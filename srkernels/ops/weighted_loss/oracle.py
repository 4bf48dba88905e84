"""The weighted loss with its resize as two matrices, from the formula, not the tested code."""

from __future__ import annotations

import torch
from torch import Tensor


def _resize(source: int, size: int, interpolation: str, align_corners: bool, like: Tensor) -> Tensor:
    """(size, source): sample i is (1 - f) of cell floor(at) and f of the next; nearest, cell floor(i source / size)."""
    i = torch.arange(size, dtype=torch.float64)
    if interpolation == "nearest":
        at = torch.tensor([k * source // size for k in range(size)], dtype=torch.float64)
    elif align_corners:
        at = i * (source - 1) / max(size - 1, 1)
    else:
        at = ((i + 0.5) * source / size - 0.5).clamp(min=0)
    low = at.floor().clamp(max=source - 1).long()
    f = at - low
    matrix = torch.zeros(size, source, dtype=torch.float64)
    matrix[range(size), low] += 1 - f
    matrix[range(size), (low + 1).clamp(max=source - 1)] += f
    return matrix.to(like)


def _penalty(d: Tensor, kind: str, eps: float, delta: float) -> Tensor:
    if kind == "mse":
        return d**2
    if kind == "charbonnier":
        return (d**2 + eps) ** 0.5
    size = d.abs()
    return torch.where(size <= delta, d**2 / 2, delta * size - delta**2 / 2) if kind == "huber" else size


def weighted_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    kind: str = "l1",
    eps: float = 1e-12,
    delta: float = 1.0,
    reduction: str = "mean",
    normalize: str = "numel",
    interpolation: str = "bilinear",
    align_corners: bool = False,
) -> Tensor:
    """As ``srkernels.weighted_loss``."""
    height, width = input.shape[2:]
    w = torch.ones_like(input)
    if weight is not None:
        rows, columns = (
            _resize(source, size, interpolation, align_corners, weight)
            for source, size in zip(weight.shape[2:], (height, width), strict=True)
        )
        w = (rows @ weight @ columns.T).expand(input.shape)
    share = w * _penalty(input - target, kind, eps, delta)
    if reduction == "none":
        return share
    if reduction == "sum":
        return share.sum()
    return share.sum() / (w.sum() if normalize == "weight_sum" else input.numel())
