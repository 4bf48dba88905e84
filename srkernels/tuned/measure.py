"""Measuring one call: what is right on the very operands, and how long each takes."""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import _parity
from .._dispatch import BACKENDS, configured, parts
from .._spec import Case
from . import clock
from .records import Record, sane

_CASE = Case("measured", ())
# Of a gradient's elements, those that may be off: where an activation's input is zero but for rounding, another order
# of a convolution's sum puts it on the other side, and its gradient is another one.
_KINKS = 1e-5
_TRIED = 4  # of a pass's configurations: each is compiled


class Runnable(Protocol):
    """What is measured: a registered op (``_op.FusedOp``)."""

    def why_not(self, backend: str, operands: Any, settings: Any) -> str | None: ...

    def run(self, backend: str, operands: Any, settings: Any, keep: bool) -> Sequence[Tensor]: ...

    def formula(self, operands: Any, settings: Any) -> Sequence[Tensor]: ...

    def configurations(self, backend: str, operands: Any, settings: Any) -> Sequence[Sequence[str]]: ...


class _Formulas(NamedTuple):
    """What decides parity: the same formula in fp64 and in the operands' dtype."""

    oracle: Callable[..., Sequence[Tensor]]
    eager: Callable[..., Sequence[Tensor]]


def measure(op: Runnable, operands: Any, settings: Any, keep: bool, needs: Sequence[bool]) -> Record | None:
    """Times every candidate that can run the call and is right: forward, and backward if any gradient is needed.

    Candidates are the backends; then, of one whose kernels have configurations, those of its first pass, and those of
    each further pass in the best that was found before. One that raises, runs out of memory or is wrong is dropped. The
    caller's tensors, graph and hooks are left alone. None: operands are not finite, and tell nothing of who is right.
    """
    kind = type(operands)
    if not all(bool(x.detach().isfinite().all()) for x in operands if x is not None):
        return None
    device = next(x.device for x in operands if x is not None)
    wanted = [i for i, need in enumerate(needs) if need]
    dropped: dict[str, str] = {}
    with torch.enable_grad(), _without_hooks():
        leaves = kind(
            *(None if x is None else x.detach().requires_grad_(need) for x, need in zip(operands, needs, strict=True))
        )
        answers = _answers(op, leaves, settings, wanted)

        def right(names: Sequence[str]) -> dict[str, Callable[[], Any]]:
            """How to call those that are."""
            found = {}
            for name in names:
                run = functools.partial(_run, op, name, kind, settings, keep)
                reason = None if name == "reference" else _wrong(run, answers)
                if reason is None:
                    found[name] = _call(run, leaves, answers.draws[0].cotangents, wanted)
                else:
                    dropped[name] = reason
            return found

        runnable = [backend for backend in BACKENDS if op.why_not(backend, leaves, settings) is None]
        calls = right(runnable)
        times = clock.medians(calls, device)
        for backend in runnable:
            best = backend
            for names in op.configurations(backend, leaves, settings):
                more = right([configured(best, name) for name in names[1 : 1 + _TRIED]])
                if not more:
                    continue
                beside = {name: calls[name] for name in ("reference", best) if name in calls}
                times = _together(times, clock.medians(beside | more, device))
                calls |= more
                found = {name: t for name, t in sane(times).items() if parts(name)[0] == backend}
                best = min(found, key=found.__getitem__, default=best)
    return Record(times, dropped, datetime.date.today().isoformat())


def _run(
    op: Runnable, name: str, kind: Callable[..., Any], settings: Any, keep: bool, *tensors: Tensor | None
) -> Sequence[Tensor]:
    return op.run(name, kind(*tensors), settings, keep)


def _together(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Times of two rounds, the first's as the second would have had them: eager PyTorch, in both, tells the drift."""
    drift = now["reference"] / before["reference"] if before["reference"] else math.nan
    return {name: drift * t for name, t in before.items()} | dict(now)


def _without_hooks() -> AbstractContextManager[Any]:
    """Keeps the caller's hooks on saved tensors (checkpointing, offloading) from counting or moving ours."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top is not None and top(False) is None:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach(), lambda x: x)


def _answers(op: Runnable, leaves: Any, settings: Any, wanted: Sequence[int]) -> _parity.Answers:
    kind = type(leaves)

    def formula(*tensors: Tensor | None) -> Sequence[Tensor]:
        return op.formula(kind(*tensors), settings)

    formulas = _Formulas(formula, formula)
    generator = torch.Generator().manual_seed(0)
    outputs = _parity.values(formula, _CASE, leaves)
    cotangents = [
        torch.empty(y.shape).uniform_(-0.25, 1, generator=generator).to(y).detach().contiguous() for y in outputs
    ]
    drawn = _parity.draw(formulas, _CASE, leaves, cotangents, wanted)
    return _parity.answers(formulas, _CASE, [drawn], wanted)


def _wrong(candidate: Callable[..., Sequence[Tensor]], answers: _parity.Answers) -> str | None:
    (draw,) = answers.draws
    try:
        found = _parity.values(candidate, _CASE, draw.operands)
        for i, (y, exact, eager) in enumerate(zip(found, draw.exact_values, draw.eager_values, strict=True)):
            _parity.check(f"output {i}", y, exact, eager, answers.values[i])
        grads = _parity.gradients(candidate, _CASE, draw.operands, draw.cotangents, answers.wanted)
        for i, (g, exact, eager) in enumerate(zip(grads, draw.exact_gradients, draw.eager_gradients, strict=True)):
            g = _without_kinks(g, exact, answers.gradients[i])
            _parity.check(f"gradient {i}", g, exact, eager, answers.gradients[i])
            _parity.check_magnitude(f"gradient {i}", g, exact, answers.gradients[i])
    except AssertionError as error:
        return f"wrong: {error}"
    except Exception as error:  # whatever a compiler, a driver or an allocator raises
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None


def _without_kinks(gradient: Tensor, exact: Tensor, allowed: _parity.Error) -> Tensor:
    """``gradient`` with the oracle's value where it is off, if those are few of many."""
    rounding = torch.finfo(gradient.dtype).eps * exact.abs()
    off = (gradient.double() - exact).abs() > allowed.largest + rounding
    count = int(off.sum())
    return torch.where(off, exact.to(gradient.dtype), gradient) if 0 < count <= _KINKS * gradient.numel() else gradient


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
