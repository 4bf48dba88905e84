"""Which backend runs which convolution."""

from __future__ import annotations

import torch
from torch import Tensor

KERNEL_SIZE = (3, 3)


def detail(weight: Tensor) -> tuple[int, ...]:
    """What of a convolution the choice depends on: its kernel size."""
    return tuple(weight.shape[2:])


def refuses(
    backend: str, device: torch.device, dtype: torch.dtype, kernel_size: tuple[int, ...], automatic: bool
) -> str | None:
    """Why ``backend`` does not run a convolution; with ``automatic``, also why eager PyTorch runs it faster."""
    if backend == "triton" or device.type != "cpu":
        return f"convolutions have no {backend} kernel for {device.type} tensors yet"
    if kernel_size not in ((), KERNEL_SIZE):
        return f"the fused kernel is 3x3, this one {'x'.join(map(str, kernel_size))}"
    if automatic and not onednn_runs(dtype):
        return f"oneDNN has no {str(dtype).removeprefix('torch.')} convolution here, so nothing is fused"
    return None


def onednn_runs(dtype: torch.dtype) -> bool:
    """Whether oneDNN has a convolution of this dtype on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype is torch.float32
