"""Which backend runs which convolution."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _native
from ..._layout import is_channels_last
from .arguments import ConvolutionSettings
from .geometry import PLAIN

KERNEL_SIZE = (3, 3)


# Input times output channels up to which the core's own convolution on Intel AMX beats oneDNN's: more filters do not
# fit the cache.
AMX_CHANNELS = 384 * 384
# Elements of a CUDA image from which passes saved should outweigh launches: by count a residual block then keeps an
# H100 busy for 0.4 ms and more, forward and backward. Neither was timed on a GPU.
LARGE = 2**24


def detail(x: Tensor, weight: Tensor | None, settings: Any = None) -> tuple[int, ...]:
    """What the choice depends on in a convolution: kernel size, whether the image is channels_last, AMX's channels,
    whether the image is large.

    Empty without ``weight``, which ``explain`` may lack.
    """
    if weight is None:
        return ()
    outputs, inputs, height, width = weight.shape
    whole = outputs % 32 == 0 and inputs % 32 == 0 and outputs * inputs <= AMX_CHANNELS
    large = x.is_cuda and x.numel() >= LARGE
    return height, width, int(is_channels_last(x)), int(whole), int(large)


def detail_of_convolution(x: Tensor, weight: Tensor | None, settings: ConvolutionSettings) -> tuple[int, ...]:
    """As ``detail``, and how the filters pass over the image but for ``output_padding``, which may be symbolic."""
    return *detail(x, weight), *settings.geometry[:-2]


_PLAIN_DETAILS = 5  # which no geometry follows


def refuses(
    backend: str, device: torch.device, dtype: torch.dtype, details: tuple[int, ...], automatic: bool
) -> str | None:
    """Why ``backend`` does not run a convolution; with ``automatic``, also why eager PyTorch is preferred to it."""
    if backend == "native" and device.type != "cpu":
        return "convolutions have no CUDA C++ kernel yet"
    if details and backend != "pointwise":
        if details[:2] != KERNEL_SIZE:
            return f"the fused kernel is 3x3, this one {details[0]}x{details[1]}"
        if len(details) > _PLAIN_DETAILS:
            return "the fused kernel has stride 1, no dilation, one group and zero padding that keeps the size"
    if not automatic:
        return None
    if backend == "triton":
        return "its kernels have not been timed against cuDNN yet"
    if backend == "pointwise":
        if details and not details[2]:
            return "cuDNN would have to turn an image that is not channels_last"
        return None if details and details[4] else f"images below {LARGE:,} elements are bound by launches"
    # Measured speed relative to eager PyTorch, forward and backward, on a processor with AMX: fp32 0.7 to 1.1, slowest
    # where images are small; bf16 with 3 and 16 channels 0.6 to 0.8, with 32 and 64 channels 1.1 to 1.9.
    if dtype is not torch.bfloat16 or not amx_available():
        return "only bf16 on Intel AMX was measured faster than eager PyTorch"
    if details and not details[2]:
        return "nothing is gained on an image that is not channels_last"
    if details and not details[3]:
        return "Intel AMX takes multiples of 32 channels, up to 384 x 384"
    return None


def refuses_dense(
    backend: str, device: torch.device, dtype: torch.dtype, details: tuple[int, ...], automatic: bool
) -> str | None:
    """As ``refuses``, for a dense block, whose filters ``pointwise`` packs too."""
    if backend == "pointwise" and details and details[:2] != KERNEL_SIZE:
        return f"the fused block packs filters of 3x3, these are {details[0]}x{details[1]}"
    return refuses(backend, device, dtype, details, automatic)


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
    """Whether the native core has Intel AMX for its own convolution."""
    return _native.why_not(torch.device("cpu")) is None and _native.extension("cpu").amx_available()


def _amx_in_a_trace() -> bool:
    return amx_available()


# What torch.compiler.assume_constant_result sets; it would import the compiler, and that Triton, with srkernels.
_amx_in_a_trace._dynamo_marked_constant = True  # type: ignore[attr-defined]


def pays_in_a_trace(x: Tensor, weight: Tensor, geometry: Sequence[int] = PLAIN) -> bool:
    """Whether our convolution was measured faster than what a compiler makes of PyTorch's own: on Intel AMX alone."""
    if geometry or x.device.type != "cpu" or x.dtype is not torch.bfloat16 or not _amx_in_a_trace():
        return False
    height, width, last, whole, _ = detail(x, weight)
    return (height, width) == KERNEL_SIZE and bool(last and whole)
