"""Which backend runs which convolution."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ... import _native
from ..._layout import is_channels_last

KERNEL_SIZE = (3, 3)


def detail(x: Tensor, weight: Tensor | None) -> tuple[int, ...]:
    """What of a convolution the choice depends on: its kernel size, and whether the image is channels_last.

    Nothing without ``weight``, as ``explain`` may be asked.
    """
    if weight is None:
        return ()
    return (*weight.shape[2:], int(is_channels_last(x)))


def refuses(
    backend: str, device: torch.device, dtype: torch.dtype, details: tuple[int, ...], automatic: bool
) -> str | None:
    """Why ``backend`` does not run a convolution; with ``automatic``, also why eager PyTorch is chosen before it."""
    if backend == "native" and device.type != "cpu":
        return "convolutions have no CUDA C++ kernel yet"
    if details and details[:2] != KERNEL_SIZE:
        return f"the fused kernel is 3x3, this one {details[0]}x{details[1]}"
    if not automatic:
        return None
    if backend == "triton":
        return "its kernels have not been timed against cuDNN yet"
    if not onednn_runs(dtype):
        return f"oneDNN has no {str(dtype).removeprefix('torch.')} convolution here, so nothing is fused"
    if details and not details[2]:
        return "nothing is gained on an image that is not channels_last"
    return None


@functools.cache
def onednn_runs(dtype: torch.dtype) -> bool:
    """Whether oneDNN has a convolution of this dtype on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype is torch.float32


@functools.cache
def amx_available() -> bool:
    """Whether the native core has Intel AMX, on which it convolves itself."""
    return _native.why_not(torch.device("cpu")) is None and _native.extension("cpu").amx_available()
