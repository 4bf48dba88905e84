"""Scratch memory that kernels leave as they found it, kept between launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_T = TypeVar("_T")
_held: dict[tuple[Any, int, int], Any] = {}


def per_stream(make: Callable[[torch.device], _T], device: torch.device) -> _T:
    """``make(device)``, made once per stream: its kernels run one after another and may share it.

    A launch then costs neither an allocation nor a memset. A CUDA graph may be replayed on any stream, alongside others
    captured on the same one; under capture every call gets a fresh one, whose zeroing the graph repeats.
    """
    index, stream = -1, 0
    if device.type != "cpu":
        if torch.cuda.is_current_stream_capturing():
            return make(device)
        current = torch.cuda.current_stream(device)
        index, stream = current.device_index, current.cuda_stream
    key = (make, index, stream)
    if key not in _held:
        _held[key] = make(device)
    return _held[key]
