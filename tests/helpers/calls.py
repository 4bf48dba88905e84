"""Calling an op of any signature: its outputs as a flat list, its gradients by operand, the raw ops underneath."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from srkernels import _dispatch
from srkernels._spec import Case, OpSpec


@dataclass(frozen=True)
class Target:
    """Where an op runs."""

    backend: str
    device: str

    @property
    def interpreted(self) -> bool:
        """Triton on CPU tensors: milliseconds per program."""
        return self.backend in ("triton", "pointwise") and self.device == "cpu"

    def __str__(self) -> str:
        return self.backend if self.device == "cpu" else f"{self.backend}-{self.device}"


def subsets(items: Sequence[int], few: bool = False, fewest: bool = False) -> Iterator[tuple[int, ...]]:
    """Every non-empty subset, the whole first; for more than six items the whole, all but one, and each alone.

    ``few``: the whole and each alone, whatever the number. ``fewest``: the whole, the first alone, all but the first.
    """
    if fewest:
        yield from dict.fromkeys(filter(None, (tuple(items), tuple(items[:1]), tuple(items[1:]))))
        return
    for size in range(len(items), 0, -1):
        if size in (1, len(items)) or (not few and (len(items) <= 6 or size == len(items) - 1)):
            yield from combinations(items, size)


def detail_of(spec: OpSpec, case: Case) -> tuple[int, ...]:
    return spec.detail(*(None if s is None else torch.empty(s) for s in case.shapes), **case.kwargs)


def why_not(
    spec: OpSpec, case: Case | None, backend: str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> str | None:
    """Why ``backend`` cannot run a case, or, for None, none of them; or None if it can."""
    detail = () if case is None else detail_of(spec, case)
    return _dispatch.why_not(backend, torch.device(device), dtype, spec.refuses, detail)


@dataclass(frozen=True)
class RawCall:
    """One call of a registered op."""

    op: Any
    args: tuple[Any, ...]

    @property
    def backend(self) -> str:
        return self.args[-1]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[RawCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == "srkernels":
            self.calls.append(RawCall(func, tuple(args)))
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded() -> Iterator[list[RawCall]]:
    """The registered ``srkernels`` ops that run inside the block."""
    with _Recorder() as recorder:
        yield recorder.calls
