"""Lazy access to Triton: availability with a reason, and what its launchers share."""

from __future__ import annotations

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch


@functools.cache
def interpreting() -> bool:
    """True if kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` before the first import of triton)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on ``device``; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install srkernels[triton])"
    if device.type == "cpu":
        return None if interpreting() else "CPU tensors need Triton's interpreter: set TRITON_INTERPRET=1"
    if device.type != "cuda":
        return f"no Triton kernels for {device.type} tensors"
    return None if torch.cuda.is_available() else "torch sees no CUDA or ROCm device"


_HERE: AbstractContextManager[None] = nullcontext()


def on_device(device: torch.device) -> AbstractContextManager[None]:
    """Guard under which kernels launch on ``device``; Triton itself launches on the current device and stream."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(device)


# Warps that make 128 threads: AMD's data-centre GPUs have 64 lanes to a warp.
WARPS_128 = 2 if torch.version.hip else 4

# Size of a workspace: fp64 partial sums, int32 counters.
SHARES = 4096
COUNTERS = 1024

_workspaces: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}


def workspace(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(shares, counters) for a kernel whose last program finishes the others' sums. It leaves its counters at zero.

    Kernels of one stream run one after the other, so each stream has its own pair for good, and a launch costs neither
    an allocation nor a memset. A CUDA graph may be replayed on any stream, alongside others captured on the same one;
    under capture every call gets fresh ones, whose zeroing the graph repeats.
    """
    key = (-1, 0)
    if device.type != "cpu":
        if torch.cuda.is_current_stream_capturing():
            return _new_workspace(device)
        stream = torch.cuda.current_stream(device)
        key = (stream.device_index, stream.cuda_stream)
    found = _workspaces.get(key)
    if found is None:
        found = _workspaces[key] = _new_workspace(device)
    return found


def _new_workspace(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    shares = torch.empty(SHARES, dtype=torch.float64, device=device)
    return shares, torch.zeros(COUNTERS, dtype=torch.int32, device=device)
