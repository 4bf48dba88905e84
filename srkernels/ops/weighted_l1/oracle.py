"""The weighted L1 loss with its resize as two matrices, from the formula, not the tested code."""

from __future__ import annotations

import torch
from torch import Tensor


def _resize(source: int, size: int, align_corners: bool, like: Tensor) -> Tensor:
    """(size, source): sample i is (1 - f) of cell floor(at) and f of the next."""
    i = torch.arange(size, dtype=torch.float64)
    at = i * (source - 1) / max(size - 1, 1) if align_corners else ((i + 0.5) * source / size - 0.5).clamp(min=0)
    low = at.floor().clamp(max=source - 1).long()
    f = at - low
    matrix = torch.zeros(size, source, dtype=torch.float64)
    matrix[range(size), low] += 1 - f
    matrix[range(size), (low + 1).clamp(max=source - 1)] += f
    return matrix.to(like)


def weighted_l1(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    normalize: str = "numel",
    align_corners: bool = False,
) -> Tensor:
    """As ``weighted_l1_loss``."""
    height, width = input.shape[2:]
    w = torch.ones_like(input)
    if weight is not None:
        rows, columns = (
            _resize(source, size, align_corners, weight)
            for source, size in zip(weight.shape[2:], (height, width), strict=True)
        )
        w = (rows @ weight @ columns.T).expand(input.shape)
    share = w * (input - target).abs()
    if reduction == "none":
        return share
    if reduction == "sum":
        return share.sum()
    return share.sum() / (w.sum() if normalize == "weight_sum" else input.numel())
