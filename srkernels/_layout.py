"""Memory layout rule shared by every kernel and its fake: output layout follows input layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

_VMAP: Any = torch._C._functorch.TransformType.Vmap


def is_channels_last(x: Tensor) -> bool:
    """True iff ``x`` is a dense NHWC tensor that is not also a dense NCHW one (C == 1, H == W == 1)."""
    if x.is_contiguous():
        return False
    try:
        return x.is_contiguous(memory_format=torch.channels_last)
    except RuntimeError:  # inside torch.vmap
        return False


def empty_nchw(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised 4-D tensor on ``like``'s device, channels_last where ``like`` is and contiguous elsewhere."""
    dtype = dtype or like.dtype
    if like.is_contiguous():  # the common case, by the cheapest call; a size by position is parsed at twice the time
        return like.new_empty(size=shape, dtype=dtype)
    memory_format = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return torch.empty(size=shape, dtype=dtype, device=like.device, memory_format=memory_format)


def laid_out(y: Tensor, like: Tensor) -> Tensor:
    """``y`` with the strides that ``empty_nchw(like, y.shape)`` has, copied only if they differ."""
    return in_layout(y, is_channels_last(like))


def in_layout(y: Tensor, channels_last: bool) -> Tensor:
    """``y`` dense in this layout, with the strides of a new tensor; copied only if they differ."""
    _, c, h, w = (max(size, 1) for size in y.shape)
    strides = (h * w * c, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)
    if y.stride() == strides or (channels_last and inside_vmap()):
        return y
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return y.clone(memory_format=memory_format)


def inside_vmap() -> bool:
    """Whether memory has one more axis, that of ``torch.vmap``: then only the contiguous layout can be requested."""
    if is_compiling():
        return False
    transforms: Any = torch._C._functorch.get_interpreter_stack()
    return any(t.key() == _VMAP for t in transforms or ())


def share_layout(x: Tensor, *others: Tensor | None) -> bool:
    """Whether all have the layout that the result for ``x`` must have: then PyTorch's own operations keep it."""
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return all(t is None or t.dim() != 4 or t.is_contiguous(memory_format=memory_format) for t in (x, *others))
