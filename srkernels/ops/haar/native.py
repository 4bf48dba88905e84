"""Haar transform on the native core: C++ on CPU tensors, CUDA C++ on CUDA tensors. Any strides, odd sizes included."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, get_num_threads

from ..._native import extension, launch
from . import allocate
from .conventions import HIGH, LOW, PLANS

_LAYOUTS = ("band_major", "channel_major", "tuple", "sum")  # codes of csrc/tensor.h


@functools.cache
def _plan(device_type: str, plan: int) -> tuple[Any, int]:
    p = PLANS[plan]
    factors = (p.low, p.v, p.h, p.d, p.slot_v, p.slot_h, p.slot_d, p.shift)
    return extension(device_type).HaarPlan(*factors, p.layout == "sum"), _LAYOUTS.index(p.layout)


def analysis(x: Tensor, plan: int, pad: int, wanted: int) -> list[Tensor]:
    return analysis_into(x, allocate.bands(x, plan, wanted), plan, pad, wanted)


def analysis_into(x: Tensor, out: list[Tensor], plan: int, pad: int, wanted: int) -> list[Tensor]:
    """``analysis`` into given tensors, as ``allocate.bands`` makes them."""
    low = out[0] if wanted & LOW else None
    high = out[-1] if wanted & HIGH else None
    launch(x, "haar_analysis", x, low, high, *_plan(x.device.type, plan), pad)
    return out


def decided_analysis(x: Tensor, plan: int, pad: int, wanted: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """``analysis`` for CPU tensors of this one's dtype, shape and layout: all is decided but where to write."""
    places = [(y.shape, y.stride()) for y in allocate.bands(x, plan, wanted)]
    low_at = places[0] if wanted & LOW else None
    high_at = places[-1] if wanted & HIGH else None
    core = extension("cpu").haar_analysis
    factors, layout = _plan("cpu", plan)

    def call(x: Tensor) -> tuple[Tensor, ...]:
        low = x.new_empty_strided(*low_at) if low_at else None
        high = x.new_empty_strided(*high_at) if high_at else None
        core(x, low, high, factors, layout, pad, get_num_threads())
        if low is None:
            return (high,)  # type: ignore[return-value]
        return (low,) if high is None else (low, high)

    return call


def decided_synthesis(
    low: Tensor | None, high: Tensor | None, rows: int, columns: int, plan: int, pad: int
) -> Callable[[Tensor | None, Tensor | None], Tensor]:
    """``synthesis``, decided likewise."""
    x = allocate.image(low, high, rows, columns, plan)
    shape, stride = x.shape, x.stride()
    core = extension("cpu").haar_synthesis
    factors, layout = _plan("cpu", plan)

    def call(low: Tensor | None, high: Tensor | None) -> Tensor:
        one = high if low is None else low
        x = one.new_empty_strided(shape, stride)  # type: ignore[union-attr]
        core(x, low, high, factors, layout, pad, get_num_threads())
        return x

    return call


def synthesis(low: Tensor | None, high: Tensor | None, rows: int, columns: int, plan: int, pad: int) -> Tensor:
    x = allocate.image(low, high, rows, columns, plan)
    launch(x, "haar_synthesis", x, low, high, *_plan(x.device.type, plan), pad)
    return x
