"""Triton launches where there is no GPU: all of Triton's own Python runs, its compiler and its driver do not.

So calls on CPU tensors cost what they cost the host of a GPU, but for PyTorch's and the driver's launches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from srkernels import _dispatch, _launch, _triton, use_backend
from srkernels._launch import Launch, redirected
from srkernels._spec import BenchCase, OpSpec

from .. import timing
from ..record import BY_TRITON, OURS
from .providers import problem, tiny

_numbers = itertools.count(1000)  # Triton keeps kernels by device: no other may find these


class Device:
    """Stands in for Triton's driver and compiler. ``launch`` receives what a launcher would: grid and stream, the
    kernel's handle, one for each that was compiled, metadata, hooks, arguments. ``stream``: the current one.
    """

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.stream, self.kernels = 0, 0
        self.launch: Callable[..., None] = lambda *received: None

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return self.stream

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def compile(self, src: Any, target: Any = None, options: Any = None, **_: Any) -> _Compiled:
        self.kernels += 1
        return _Compiled(self, src, options)


class _Compiled(triton.compiler.CompiledKernel):  # type: ignore[misc]
    """As Triton's, of nothing."""

    def __init__(self, device: Device, src: Any, options: Any) -> None:
        self.src, self.name, self.metadata = src, src.name, SimpleNamespace(**options)
        self.function, self.module, self.hash = device.kernels, device, str(device.kernels)
        self.packed_metadata = (device.number, device.kernels)
        self._run = lambda *received: device.launch(*received)

    def __del__(self) -> None:
        """Nothing was loaded."""


@contextmanager
def without_gpu() -> Iterator[Device]:
    """Inside, Triton's backends run on CPU tensors and compute nothing."""
    device = Device()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", device)
        patch.setattr(triton.compiler, "compile", device.compile)
        patch.setattr(_triton, "why_not", lambda device: None)
        patch.setattr(_dispatch, "_cache", {})
        patch.setattr(_launch, "_ready", {})
        yield device


def by_triton(launch: Launch, *tensors: Tensor | None) -> None:
    """A launch with nothing prepared."""
    launch.kernel[launch.grid](*tensors, *launch.arguments, **launch.options)


def launch_cost(
    spec: OpSpec, backend: str, device: torch.device, *, batches: int = 30, batch: int = 100
) -> list[dict[str, Any]]:
    """Host microseconds of a tiny call on ``backend``, forward and forward+backward: as it is, with each launch planned
    anew and made by ``kernel[grid]``, and of eager PyTorch, which on a CPU includes its arithmetic.
    """
    found = []
    with without_gpu() if device.type == "cpu" else nullcontext(), use_backend(backend):
        for passes in ("forward", "forward+backward"):
            whole = tiny(spec)
            bench = whole if passes != "forward" else BenchCase(whole.case, passes)
            given = problem(spec, bench, device)
            call = given.call(spec.op)

            def unprepared(call: Callable[[], Any] = call) -> None:
                with redirected(by_triton):
                    call()

            launched: list[Launch] = []
            with redirected(lambda launch, *tensors: launched.append(launch)):  # noqa: B023
                call()
            calls = {OURS: call, BY_TRITON: unprepared, "eager": given.call(spec.eager)}
            times = timing.host_us(calls, device, batches=batches, batch=batch)
            found.append(
                {
                    "op": spec.name,
                    "backend": backend,
                    "case": bench.case.id,
                    "passes": passes,
                    "launches": len(launched),
                    "providers": {name: stats.as_dict() for name, stats in times.items()},
                }
            )
    return found
