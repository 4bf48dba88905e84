"""Haar transform on the native core: C++ on CPU tensors, CUDA C++ on CUDA tensors. Any strides, odd sizes included."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from ..._native import extension, launch
from . import allocate
from .arguments import Analysis, Bands, Image, Synthesis
from .conventions import HIGH, LOW, PLANS

_LAYOUTS = ("band_major", "channel_major", "tuple", "sum")  # codes of csrc/bind/haar.h


@functools.cache
def _plan(device_type: str, plan: int) -> tuple[Any, int]:
    p = PLANS[plan]
    factors = (p.low, p.v, p.h, p.d, p.slot_v, p.slot_h, p.slot_d, p.shift)
    return extension(device_type).HaarPlan(*factors, p.layout == "sum"), _LAYOUTS.index(p.layout)


def analysis(operands: Image, settings: Analysis) -> list[Tensor]:
    (x,) = operands
    return analysis_into(x, allocate.bands(x, settings), settings)


def analysis_into(x: Tensor, out: list[Tensor], settings: Analysis) -> list[Tensor]:
    """``analysis`` into given tensors, as ``allocate.bands`` makes them."""
    plan, pad, wanted = settings
    low = out[0] if wanted & LOW else None
    high = out[-1] if wanted & HIGH else None
    launch(x, "haar_analysis", allocate.covered(x, pad), low, high, *_plan(x.device.type, plan), pad)
    return out


def synthesis(operands: Bands, settings: Synthesis) -> list[Tensor]:
    low, high = operands
    plan, pad = settings.plan, settings.pad
    x = allocate.image(operands, settings)
    launch(x, "haar_synthesis", allocate.covered(x, pad), low, high, *_plan(x.device.type, plan), pad)
    allocate.clear_dropped(x, pad)
    return [x]
