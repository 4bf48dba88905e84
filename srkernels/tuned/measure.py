"""Measuring one call: what is right on the very operands, and how long each takes."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import _parity
from .._dispatch import BACKENDS
from .._spec import Case
from . import clock
from .records import Record


class Runnable(Protocol):
    """What is measured: a registered op (``_op.FusedOp``)."""

    def why_not(self, backend: str, operands: Any) -> str | None: ...

    def run(self, backend: str, operands: Any, settings: Any, keep: bool) -> Sequence[Tensor]: ...

    def formula(self, operands: Any, settings: Any) -> Sequence[Tensor]: ...


class _Formulas(NamedTuple):
    """What decides parity: the same formula in fp64 and in the operands' dtype."""

    oracle: Callable[..., Sequence[Tensor]]
    eager: Callable[..., Sequence[Tensor]]


def measure(op: Runnable, operands: Any, settings: Any, keep: bool, needs: Sequence[bool]) -> Record:
    """Times every backend that can run the call and is right: forward, and backward if any gradient is needed.

    A backend that raises, runs out of memory or is wrong is dropped. The caller's tensors and graph are left alone.
    """
    kind = type(operands)
    device = next(x.device for x in operands if x is not None)
    wanted = [i for i, need in enumerate(needs) if need]
    with torch.enable_grad():
        leaves = kind(
            *(None if x is None else x.detach().requires_grad_(need) for x, need in zip(operands, needs, strict=True))
        )

        def candidate(backend: str) -> Callable[..., Sequence[Tensor]]:
            return lambda *tensors: op.run(backend, kind(*tensors), settings, keep)

        answers = _answers(op, leaves, settings, wanted)
        dropped: dict[str, str] = {}
        calls: dict[str, Callable[[], Any]] = {}
        for backend in BACKENDS:
            if op.why_not(backend, leaves) is not None:
                continue
            reason = _wrong(candidate(backend), answers) if backend != "reference" else None
            if reason is None:
                calls[backend] = _call(candidate(backend), leaves, answers.draws[0].cotangents, wanted)
            else:
                dropped[backend] = reason
        times = clock.medians(calls, device)
    return Record(times, dropped, datetime.date.today().isoformat())


def _answers(op: Runnable, leaves: Any, settings: Any, wanted: Sequence[int]) -> _parity.Answers:
    kind = type(leaves)

    def formula(*tensors: Tensor | None) -> Sequence[Tensor]:
        return op.formula(kind(*tensors), settings)

    formulas, case = _Formulas(formula, formula), Case("measured", ())
    generator = torch.Generator().manual_seed(0)
    outputs = _parity.values(formula, case, leaves)
    cotangents = [
        torch.empty(y.shape).uniform_(-0.25, 1, generator=generator).to(y).detach().contiguous() for y in outputs
    ]
    drawn = _parity.draw(formulas, case, leaves, cotangents, wanted)
    return _parity.answers(formulas, case, [drawn], wanted)


def _wrong(candidate: Callable[..., Sequence[Tensor]], answers: _parity.Answers) -> str | None:
    try:
        answers.check(candidate, Case("measured", ()))
    except AssertionError as error:
        return f"wrong: {error}"
    except Exception as error:  # whatever a compiler, a driver or an allocator raises
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None


def _call(
    candidate: Callable[..., Sequence[Tensor]], leaves: Any, cotangents: Sequence[Tensor], wanted: Sequence[int]
) -> Callable[[], Any]:
    if not wanted:

        def forward() -> Any:
            with torch.no_grad():
                return candidate(*leaves)

        return forward
    tensors = [leaves[i] for i in wanted]
    return lambda: torch.autograd.grad(candidate(*leaves), tensors, list(cotangents))
