"""PyTorch's own convolution, its transpose and its derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._layout import laid_out
from .geometry import PLAIN, Geometry


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence[int] = PLAIN) -> Tensor:
    if geometry:
        stride, padding, dilation, groups, _ = Geometry.of(geometry)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def transposed(grad: Tensor, weight: Tensor, geometry: Sequence[int] = PLAIN) -> Tensor:
    """The convolution's gradient of its input, which it does not take."""
    if geometry:
        stride, padding, dilation, groups, output_padding = Geometry.of(geometry)
        return F.conv_transpose2d(grad, weight, None, stride, padding, output_padding, groups, dilation)
    return F.conv_transpose2d(grad, weight, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, geometry: Sequence[int] = PLAIN
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``x`` and ``weight``; None for what is not needed."""
    if not need_x and not need_weight:
        return None, None
    stride = dilation = (1, 1)
    padding, groups = (weight.shape[2] // 2, weight.shape[3] // 2), 1
    if geometry:
        stride, padding, dilation, groups, _ = Geometry.of(geometry)
    weight = laid_out(weight, weight)  # PyTorch's convolution of halves takes no permuted filters
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [need_x, need_weight, False]
    )
    return grad_x, grad_weight
