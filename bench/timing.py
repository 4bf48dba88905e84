"""Medians of calls timed against each other.

All providers of a case run in one loop, one call each per round in a shuffled order, so that a slow phase of the
machine hits all alike and none always follows the same neighbour. A call includes the allocation and release of
whatever it returns.

CPU: a sample is one call between two readings of the host clock. CUDA: a sample is one replay of a graph that calls
the provider on buffer sets which together exceed three times the L2 cache, between two events, divided by the number of
sets. What cannot be captured is timed by events around plain calls and says so.
"""

from __future__ import annotations

import gc
import itertools
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from srkernels._meter import saved_storages

Call = Callable[[], Any]
Around = Callable[[str], AbstractContextManager[Any]]

L2_MULTIPLE = 3
MAX_SETS = 256
# A graph that keeps every output alive must fit alongside the inputs on small cards too.
MAX_SET_BYTES = 4 << 30


@dataclass(frozen=True)
class Stats:
    """Microseconds per call. ``passes_us``: medians of the independent passes over the rounds.

    ``page_faults``: median per call on the host. Memory that the C library has returned to the system comes back page
    by page, at half a microsecond each; whether it was returned depends on what else the process allocates.
    """

    median_us: float
    p20_us: float
    p80_us: float
    samples: int
    passes_us: tuple[float, ...]
    method: str
    page_faults: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passes_us": list(self.passes_us)}


def summarise(passes: Sequence[Sequence[float]], method: str) -> Stats:
    """Median and p20-p80 of the pooled samples, and the median of each pass."""
    pooled = [s for one in passes for s in one]
    if len(pooled) < 2:
        p20 = p80 = pooled[0]
    else:
        fifths = statistics.quantiles(pooled, n=5, method="inclusive")
        p20, p80 = fifths[0], fifths[3]
    medians = tuple(statistics.median(one) for one in passes if one)
    return Stats(statistics.median(pooled), p20, p80, len(pooled), medians, method)


def ratio(stats: Stats, base: Stats) -> float:
    """How many times longer ``stats`` takes than ``base``, by medians."""
    return stats.median_us / base.median_us


def cold_sets(set_bytes: int, device: torch.device) -> int:
    """Number of buffer sets of ``set_bytes`` whose rotation leaves nothing useful in the L2 cache; 1 on CPU."""
    if device.type != "cuda":
        return 1
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    wanted = -(-L2_MULTIPLE * l2 // max(set_bytes, 1)) + 1
    return max(2, min(wanted, MAX_SETS, MAX_SET_BYTES // max(set_bytes, 1)))


def time_calls(
    calls: Mapping[str, Sequence[Call]],
    device: torch.device,
    *,
    seconds: float,
    rounds: tuple[int, int] = (15, 200),
    around: Around = lambda name: nullcontext(),
) -> dict[str, Stats]:
    """Interleaved timing of providers.

    Args:
        calls: provider -> the same call on each of the rotated buffer sets (one set on CPU).
        seconds: total time to spend, once the fewest rounds are done.
        rounds: fewest and most samples per provider.
        around: provider name -> context that every one of its calls needs, entered outside the timed region.
    """
    if device.type == "cuda":
        return _time_cuda(calls, device, seconds, rounds, around)
    return _time_host(calls, seconds, rounds, around)


def _shuffled(names: list[str], generator: random.Random) -> list[str]:
    return generator.sample(names, len(names))


def _time_host(
    calls: Mapping[str, Sequence[Call]], seconds: float, rounds: tuple[int, int], around: Around
) -> dict[str, Stats]:
    names = list(calls)
    for name in names:
        with around(name):
            for _ in range(2):
                calls[name][0]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    faults: dict[str, list[int]] = {name: [] for name in names}
    order = random.Random(20201)
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        for done in range(rounds[1]):
            if done >= rounds[0] and time.perf_counter() - begin > seconds:
                break
            for name in _shuffled(names, order):
                call = calls[name][done % len(calls[name])]
                with around(name):
                    before = _page_faults()
                    start = time.perf_counter_ns()
                    call()
                    stop = time.perf_counter_ns()
                    faults[name].append(_page_faults() - before)
                samples[name].append((stop - start) / 1e3)
    finally:
        if collecting:
            gc.enable()
    # Even and odd rounds are two passes over the same stretch of time.
    return {
        name: replace(summarise([s[0::2], s[1::2]], "host clock"), page_faults=statistics.median(faults[name]))
        for name, s in samples.items()
    }


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _time_cuda(
    calls: Mapping[str, Sequence[Call]],
    device: torch.device,
    seconds: float,
    rounds: tuple[int, int],
    around: Around,
) -> dict[str, Stats]:
    names = list(calls)
    runs: dict[str, tuple[Call, int, str]] = {}
    for name in names:
        with around(name):
            runs[name] = _prepare_cuda(calls[name], device)
    # Two passes, each in its own shuffled order: a difference between versions smaller than theirs is noise.
    passes: dict[str, list[list[float]]] = {name: [[], []] for name in names}
    order = random.Random(20201)
    event = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    for half in range(2):
        begin = time.perf_counter()
        for done in range(rounds[1]):
            if done >= rounds[0] and time.perf_counter() - begin > seconds / 2:
                break
            for name in _shuffled(names, order):
                run, per, _ = runs[name]
                with around(name):
                    event[0].record()
                    run()
                    event[1].record()
                event[1].synchronize()
                passes[name][half].append(event[0].elapsed_time(event[1]) * 1e3 / per)
    return {name: summarise(passes[name], runs[name][2]) for name in names}


def _prepare_cuda(sets: Sequence[Call], device: torch.device) -> tuple[Call, int, str]:
    """(run, calls per run, method): a graph over all sets, or a plain loop with the reason why not."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            sets[0]()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    reason = _why_not_capturable(sets[0])
    if reason is None:
        graph = torch.cuda.CUDAGraph()
        kept: list[Any] = []
        try:
            with torch.cuda.graph(graph):
                for call in sets:
                    # Kept alive, so that every output is a fresh buffer and is written cold.
                    kept.append(call())
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            torch.cuda.synchronize(device)
        else:

            def replay() -> None:
                # The outputs' memory belongs to the graph as long as it may be replayed.
                assert kept
                graph.replay()

            replay()
            torch.cuda.synchronize(device)
            return replay, len(sets), "graph"
    some = sets[: min(len(sets), 32)]

    def loop() -> None:
        for call in some:
            call()

    loop()
    torch.cuda.synchronize(device)
    return loop, len(some), f"events, launch gaps included (no graph: {reason[:120]})"


def _why_not_capturable(call: Call) -> str | None:
    """A call that waits for the device would break the capture and leave the generator in it; detected beforehand."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return None


def copy_gbps(nbytes: int, device: torch.device, *, seconds: float = 0.3, rounds: tuple[int, int] = (9, 100)) -> float:
    """Copy bandwidth at ``nbytes`` read plus written, into a reused buffer: the best of three medians, in GB/s."""
    half = max(nbytes // 2, 16) // 4
    sets: list[Call] = []
    for _ in range(cold_sets(8 * half, device)):
        source = torch.rand(half, device=device)
        target = torch.empty_like(source)
        sets.append(lambda t=target, s=source: t.copy_(s))  # type: ignore[misc]
    medians = [
        time_calls({"copy": sets}, device, seconds=seconds / 3, rounds=rounds)["copy"].median_us for _ in range(3)
    ]
    return 8 * half / min(medians) / 1e3


def host_us(
    calls: Mapping[str, Call], device: torch.device, *, batches: int = 30, batch: int = 200
) -> dict[str, Stats]:
    """Host time per call, in batches interleaved over providers. On CUDA, launches are not awaited."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(batch):
            call()
    order = random.Random(20201)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(batches):
            for name in _shuffled(list(calls), order):
                call = calls[name]
                synchronize(device)
                start = time.perf_counter_ns()
                for _ in range(batch):
                    call()
                stop = time.perf_counter_ns()
                samples[name].append((stop - start) / 1e3 / batch)
    finally:
        if collecting:
            gc.enable()
        synchronize(device)
    return {name: summarise([s[0::2], s[1::2]], "host clock") for name, s in samples.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kernels(call: Call, device: torch.device) -> list[tuple[str, float]]:
    """(name, microseconds) of each piece of work that one call runs on the device (CPU: its torch operators)."""
    from torch.profiler import ProfilerActivity, profile

    call()
    synchronize(device)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        call()
        synchronize(device)
    found = []
    for event in profiled.events():
        if device.type == "cuda":
            if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False):
                found.append((event.name, float(event.device_time)))
        elif event.name.startswith(("aten::", "srkernels::")) and event.cpu_parent is None:
            found.append((event.name, float(event.cpu_time)))
    return found


def peak_bytes(call: Call, device: torch.device) -> int:
    """Memory that one call needs beyond what was allocated before it, as counted by torch's allocator."""
    call()
    if device.type == "cpu":
        return _peak_on_host(call)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    kept = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del kept
    return peak - before


def _peak_on_host(call: Call) -> int:
    """The CPU's allocator keeps no count: the profiler sees what it allocates and frees."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # garbage of earlier calls would be freed in this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = call()
    del kept
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in changes), initial=0))


def saved_bytes(forward: Callable[[], Sequence[Tensor]], operands: Sequence[Tensor | None]) -> int:
    """Bytes that only the backward pass keeps alive: saved storages that are neither operands nor outputs."""
    outputs, found = saved_storages(forward)
    others = {x.untyped_storage().data_ptr() for x in (*operands, *outputs) if x is not None}
    return sum(nbytes for pointer, nbytes in found.items() if pointer not in others)
