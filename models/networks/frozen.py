"""Layers of a frozen network that keep for the backward pass only what it reads.

The gradient of a convolution reads its filters alone once these are frozen, that of a ReLU one bit for each element,
that of a pooling which pixel of a window was the largest. PyTorch's own layers keep each activation and an int64 for
each window: 4 bytes an element in fp32 and 2 in bf16 instead of 1/8, and 8 bytes a window instead of 1. Values and
gradients are the same to the bit, second derivatives included.

This is not free, so it is a choice: by count, a ReLU and its gradient move 28 bytes an element in place of 20 in fp32,
18 in place of 10 in bf16, and a pooling 60 more a window forward and 30 backward. In VGG-19 up to conv5_4 that is 5 KB
more for each pixel of a picture, beside the 1.6 million floating-point operations of its convolutions.

Where no derivative is recorded, filters are trained, or torch.compile traces, PyTorch's own layers run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import srkernels


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`srkernels.conv2d_act` without an activation; keeps nothing but the filters."""
    if _records(x) and not weight.requires_grad and (bias is None or not bias.requires_grad):
        return _Convolution.apply(x, weight, bias)
    return srkernels.conv2d_act(x, weight, bias, activation="none")


def relu(x: Tensor, *, inplace: bool = False) -> Tensor:
    """`F.relu`; keeps one bit for each element."""
    return _ReLU.apply(x, inplace) if _records(x) else F.relu(x, inplace)


def max_pool2d(x: Tensor, kernel: int, stride: int) -> Tensor:
    """`F.max_pool2d` without padding; keeps one byte for each window, whose side is at most 11."""
    return _MaxPool.apply(x, kernel, stride)[0] if _records(x) else F.max_pool2d(x, kernel, stride)


def _records(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return srkernels.conv2d_act(x, weight, bias, activation="none")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        _note_input(ctx, inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        weight = weight.to(grad.dtype)  # autocast's
        padding = [side // 2 for side in weight.shape[2:]]
        found, _, _ = torch.ops.aten.convolution_backward(
            grad, _stand_in(ctx, grad), weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [True, False, False]
        )
        return found, None, None


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, inplace: bool) -> Tensor:
        return F.relu(x, inplace)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
        x, inplace = inputs
        if inplace:
            ctx.mark_dirty(x)
        ctx.shape, ctx.channels_last = output.shape, _is_channels_last(output)
        in_order = output.permute(0, 2, 3, 1) if ctx.channels_last else output
        ctx.save_for_backward(_packed(in_order.reshape(-1) <= 0))  # NaN is not, and lets gradients through

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        n, c, h, w = ctx.shape
        closed = _unpacked(bits, n * c * h * w)
        closed = closed.view(n, h, w, c).permute(0, 3, 1, 2) if ctx.channels_last else closed.view(n, c, h, w)
        return torch.where(closed, 0, grad), None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
        pooled, places = F.max_pool2d(x, kernel, stride, return_indices=True)
        width = x.shape[3]
        within = places.sub_(_corners(pooled, width, stride))  # row * width + column
        within.sub_(within.div(width, rounding_mode="floor"), alpha=width - kernel)
        return pooled, within.to(torch.int8)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.kernel, ctx.stride = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])
        _note_input(ctx, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, None, None]:
        (within,) = ctx.saved_tensors
        kernel, stride, width = [ctx.kernel] * 2, [ctx.stride] * 2, ctx.shape[3]
        places = within + _corners(within, width, ctx.stride)
        places.add_(within.div(ctx.kernel, rounding_mode="floor"), alpha=width - ctx.kernel)
        found = torch.ops.aten.max_pool2d_with_indices_backward(
            grad, _stand_in(ctx, grad), kernel, stride, [0, 0], [1, 1], False, places
        )
        return found, None, None


def _note_input(ctx: Any, x: Tensor) -> None:
    ctx.shape = x.shape
    ctx.layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format


def _stand_in(ctx: Any, grad: Tensor) -> Tensor:
    """Uninitialised, for an input of which only shape and layout are read."""
    return torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout)


def _corners(pooled: Tensor, width: int, stride: int) -> Tensor:
    """Index of the first pixel of each window in a plane of this width."""
    rows, columns = (torch.arange(side, device=pooled.device) * stride for side in pooled.shape[2:])
    return rows[:, None] * width + columns


def _powers(device: torch.device) -> Tensor:
    return 2 ** torch.arange(8, dtype=torch.uint8, device=device)[:, None]


def _packed(flags: Tensor) -> Tensor:
    """Eight flags a byte: byte i holds flags i, i + n, i + 2n ... of n bytes, so that all passes run along memory."""
    eighths = F.pad(flags, (0, -len(flags) % 8)).view(8, -1) if len(flags) % 8 else flags.view(8, -1)
    return (eighths * _powers(flags.device)).sum(0, dtype=torch.uint8)


def _unpacked(packed: Tensor, count: int) -> Tensor:
    return (packed & _powers(packed.device)).ne(0).view(-1)[:count]
