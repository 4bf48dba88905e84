"""Haar transform on the native core: C++ on CPU tensors, CUDA C++ on CUDA tensors. Any strides, odd sizes included."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from ..._native import DTYPES, extension, launch
from . import allocate
from .conventions import HIGH, LOW, PLANS

_NO_LOW = (0, 0, 0, 0)
_NO_HIGH = (0, 0, 0, 0, 0)


@functools.cache
def _plan(device_type: str, plan: int) -> Any:
    p = PLANS[plan]
    return extension(device_type).HaarPlan(
        p.low, p.v, p.h, p.d, p.slot_v, p.slot_h, p.slot_d, p.shift, p.layout == "sum"
    )


def analysis(x: Tensor, plan: int, pad: int, wanted: int) -> list[Tensor]:
    return analysis_into(x, allocate.bands(x, plan, wanted), plan, pad, wanted)


def analysis_into(x: Tensor, out: list[Tensor], plan: int, pad: int, wanted: int) -> list[Tensor]:
    """``analysis`` into given tensors, as ``allocate.bands`` makes them."""
    low = out[0] if wanted & LOW else None
    high = out[-1] if wanted & HIGH else None
    launch(
        x,
        "haar_analysis",
        DTYPES[x.dtype],
        x.data_ptr(),
        x.shape,
        x.stride(),
        *((0, _NO_LOW) if low is None else (low.data_ptr(), low.stride())),
        *((0, _NO_HIGH) if high is None else (high.data_ptr(), allocate.high_strides(high, plan))),
        _plan(x.device.type, plan),
        pad,
    )
    return out


def synthesis(low: Tensor | None, high: Tensor | None, rows: int, columns: int, plan: int, pad: int) -> Tensor:
    x = allocate.image(low, high, rows, columns, plan)
    launch(
        x,
        "haar_synthesis",
        DTYPES[x.dtype],
        *((0, _NO_LOW) if low is None else (low.data_ptr(), low.stride())),
        *((0, _NO_HIGH) if high is None else (high.data_ptr(), allocate.high_strides(high, plan))),
        x.data_ptr(),
        x.shape,
        x.stride(),
        _plan(x.device.type, plan),
        pad,
    )
    return x
