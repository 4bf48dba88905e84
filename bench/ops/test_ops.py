"""Every bench case of every op, the host cost of a tiny call, and the bandwidth into a reused buffer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from srkernels import use_backend
from srkernels._spec import BenchCase, OpSpec
from srkernels.ops import specs

from ..conftest import Results
from . import harness
from .providers import Gate, backends, on_triton, problem, tiny

_CASES = [pytest.param(spec, bench, id=harness.case_id(spec, bench)) for spec in specs() for bench in spec.bench]
_OPS = [pytest.param(spec, id=spec.name) for spec in specs()]
_ON_TRITON = [pytest.param(spec, backend, id=f"{spec.name}-{backend}") for spec, backend in on_triton()]
HandOver = Callable[[dict[str, Any], Callable[[], Any]], None]


@pytest.mark.parametrize(("spec", "bench"), _CASES)
def test_case(
    spec: OpSpec, bench: BenchCase, timed: bool, seconds: float, results: Results, hand_over: HandOver
) -> None:
    """Parity, then times. A case outside the budget fails and prints no figure."""
    device = results.device
    if not timed:
        Gate(spec, bench, problem(spec, bench, device)).passing(backends(spec, device, getattr(torch, bench.dtype))[0])
        return
    record = harness.measure(spec, bench, device, seconds=seconds)
    results.cases.append(record)
    with use_backend(None):
        hand_over(record, problem(spec, bench, device).call(spec.op))


@pytest.mark.parametrize("spec", _OPS)
def test_host_cost(spec: OpSpec, timed: bool, seconds: float, results: Results) -> None:
    """Host time of a call too small for anything else to show."""
    if timed:
        results.host.extend(harness.host_cost(spec, results.device, batches=max(3, min(30, round(10 * seconds)))))
    else:
        problem(spec, tiny(spec), results.device).call(spec.op)()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(("spec", "backend"), _ON_TRITON)
def test_host_time_of_launches(spec: OpSpec, backend: str, timed: bool, seconds: float, results: Results) -> None:
    """What Triton's launches cost the host, with a GPU or without: prepared ones and ``kernel[grid]``."""
    from .launches import launch_cost

    batches, batch = (max(3, min(30, round(10 * seconds))), 100) if timed else (1, 1)
    rows = launch_cost(spec, backend, results.device, batches=batches, batch=batch)
    if timed:
        results.launches.extend(rows)


def test_reused_buffer(timed: bool, seconds: float, results: Results) -> None:
    """The native Haar kernel without page faults: what share of the copy bandwidth it reaches."""
    if timed:
        check = harness.reused_buffer(results.device, seconds=seconds)
        results.checks.append(check)
    else:
        check = harness.reused_buffer(results.device, seconds=0.1, shape=(2, 3, 64, 64))
    if check["measured"] is None:
        pytest.skip(check["reason"])
