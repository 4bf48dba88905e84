"""How long calls take, interleaved so that a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

_WARMUP = 2
_ROUNDS = (5, 41)
_SECONDS = 0.2  # for one call of all that are compared
_COLD = 256 * 2**20  # bytes written between two calls on a GPU, more than its L2 holds


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """How long one call takes; on a GPU from launch to end, with a cold L2."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    with torch.cuda.device(device):
        torch.empty(_COLD, dtype=torch.int8, device=device).zero_()
        begin_event, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin_event.record()
        call()
        end.record()
        end.synchronize()
        return begin_event.elapsed_time(end) / 1e3


def medians(calls: Mapping[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """Median seconds of each, over interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_WARMUP):
        together = sum(seconds(call, device) for call in calls.values())
    rounds = min(_ROUNDS[1], max(_ROUNDS[0], int(_SECONDS * len(calls) / max(together, 1e-9))))
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return {name: statistics.median(found) for name, found in times.items()}
