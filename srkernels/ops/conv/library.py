"""PyTorch's own convolution, of stride 1 and zero padding that keeps height and width."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._layout import laid_out


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``x`` and ``weight``; None for what is not needed."""
    if not need_x and not need_weight:
        return None, None
    padding = [weight.shape[2] // 2, weight.shape[3] // 2]
    weight = laid_out(weight, weight)  # PyTorch's convolution of halves takes no permuted filters
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [need_x, need_weight, False]
    )
    return grad_x, grad_weight
