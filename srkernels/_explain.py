"""Where an op would run, and why."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import functional
from ._dispatch import BACKENDS, parts, ranked, requested, why_not
from ._spec import OpSpec
from ._validate import describe
from .ops import specs
from .tuned import choose
from .tuned.records import Record


def explain(op: str | Callable[..., Any], *inputs: Any, **settings: Any) -> str:
    """Which backend ``op`` would use for these inputs, and why not the others.

    Args:
        op: a public function of ``srkernels`` or its name.
        inputs: what it would be called with; the first tensor decides.
        settings: its other arguments, by name; of a convolution's, stride and the like matter.

    Returns:
        Readable lines: the choice, then every backend with its reason.

    Raises:
        TypeError, ValueError: no such op, no tensor among the inputs, or inputs that it does not take.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", type(op).__name__)
    known = {spec.name: spec for spec in specs()}
    if name not in known:
        raise ValueError(f"explain: op must be one of {', '.join(known)}, got {name!r}")
    spec = known[name]
    x = next((value for value in inputs if isinstance(value, Tensor)), None)
    if x is None:
        raise ValueError("explain: inputs must hold at least one tensor, got none")
    unknown = settings.keys() - inspect.signature(getattr(functional, name)).parameters.keys()
    if unknown:
        raise TypeError(f"explain: {name} takes no argument {', '.join(sorted(unknown))}")
    request = requested()
    for name_of, value in zip(spec.operands, inputs, strict=False):
        if isinstance(value, Tensor) and value.is_nested:
            raise TypeError(f"explain: {name_of} must be a dense tensor, got a nested one")
    try:
        detail = spec.detail(*inputs, **settings)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        named = ", ".join(f"{n} {describe(v)}" for n, v in zip(spec.operands, inputs, strict=False))
        raise ValueError(f"explain: inputs must be those of {name}, got {named}") from error
    order = ranked(x.device, x.dtype, spec.refuses, detail)
    record = None if request else _measured(spec, inputs, settings)
    chosen = request or (next(b for b, reason in order if reason is None) if record is None else record.choice)
    how = "asked for by name" if request else "automatic" if record is None else _decided(record)
    lines = [f"{name} on {x.device.type} {str(x.dtype).removeprefix('torch.')}: {chosen} ({how})"]
    automatic = [b for b, _ in order]
    slower = dict(order)
    for backend in BACKENDS:
        reason = why_not(backend, x.device, x.dtype, spec.refuses, detail)
        if reason is None and record is not None:
            verdict = _by_record(backend, record)
        elif reason is not None:
            verdict = f"cannot run: {reason}"
        elif backend == chosen:
            verdict = "can run, chosen"
        elif slower.get(backend) is not None:
            verdict = f"can run, on request only: {slower[backend]}"
        elif backend in automatic and automatic.index(backend):
            verdict = f"can run, ranked after {automatic[automatic.index(backend) - 1]}"
        else:
            verdict = "can run, on request only"
        lines.append(f"  {backend:<10}{verdict}")
        if reason is None and record is not None:
            tried = [
                name for name in (*record.seconds, *record.dropped) if name != backend and parts(name)[0] == backend
            ]
            lines += [f"    {name}: {_by_record(name, record)}" for name in tried]
    return "\n".join(lines)


def _measured(spec: OpSpec, inputs: tuple[Any, ...], settings: dict[str, Any]) -> Record | None:
    try:
        left_out = [None] * (len(spec.operands) - len(inputs))
        known = choose.asked(lambda: spec.op(*inputs, *left_out, **settings))
    except (AttributeError, TypeError, ValueError, RuntimeError):  # too few inputs for a call
        return None
    return None if known is None else known[1]


def _decided(record: Record) -> str:
    where = f", in the table {record.table}" if record.table else ""
    return f"measured on {record.day}{where}"


def _by_record(candidate: str, record: Record) -> str:
    if candidate in record.dropped:
        return f"dropped when it was measured: {record.dropped[candidate]}"
    if candidate not in record.seconds:
        return "can run, was not measured"
    return f"can run{', chosen' if candidate == record.choice else ''}: took {1e6 * record.seconds[candidate]:.0f} us"
