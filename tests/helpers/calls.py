"""Calling an op of any signature: its outputs as a flat list, its gradients by operand, the raw ops underneath."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srkernels._spec import Case


@dataclass(frozen=True)
class Target:
    """Where an op runs."""

    backend: str
    device: str

    @property
    def interpreted(self) -> bool:
        """Triton on CPU tensors: milliseconds per program."""
        return self.backend == "triton" and self.device == "cpu"

    def __str__(self) -> str:
        return self.backend if self.device == "cpu" else f"{self.backend}-{self.device}"


def flat(output: Any) -> list[Tensor]:
    """The tensors of an op's return value, in order."""
    if isinstance(output, Tensor):
        return [output]
    return [] if output is None else [y for part in output for y in flat(part)]


def values(op: Callable[..., Any], case: Case, operands: Sequence[Tensor | None]) -> list[Tensor]:
    return flat(op(*operands, **case.kwargs))


def gradients(
    op: Callable[..., Any],
    case: Case,
    operands: Sequence[Tensor | None],
    cotangents: Sequence[Tensor],
    wanted: Sequence[int],
    create_graph: bool = False,
) -> list[Tensor]:
    """Gradients of the operands ``wanted``, the others requiring none; ``create_graph``: on the way to second ones."""
    leaves = [None if x is None else x.detach().requires_grad_(i in wanted) for i, x in enumerate(operands)]
    outputs = flat(op(*leaves, **case.kwargs))
    grads = torch.autograd.grad(outputs, [leaves[i] for i in wanted], list(cotangents), create_graph=create_graph)
    return [g.detach() for g in grads]


def present(operands: Sequence[Tensor | None]) -> tuple[int, ...]:
    return tuple(i for i, x in enumerate(operands) if x is not None)


def subsets(items: Sequence[int], few: bool = False) -> Iterator[tuple[int, ...]]:
    """Every non-empty subset, the whole first; of more than six items the whole, all but one, and each alone.

    ``few``: the whole and each alone, whatever the number.
    """
    for size in range(len(items), 0, -1):
        if size in (1, len(items)) or (not few and (len(items) <= 6 or size == len(items) - 1)):
            yield from combinations(items, size)


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
