"""``tune``: a network run under ``tuning``, and what that found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._dispatch import parts
from .._spec import BenchCase, OpSpec
from ..ops import specs
from . import choose, clock
from .records import Call, Record


@dataclass(frozen=True)
class Row:
    """One class of calls: the modules that make them, and what was measured."""

    modules: tuple[str, ...]
    call: Call
    record: Record


@dataclass(frozen=True)
class Report:
    """What ``tune`` found.

    Attributes:
        rows: each class of calls that was made.
        before, after: seconds of a forward and backward pass of the whole, without and with the choices.
    """

    rows: tuple[Row, ...]
    before: float
    after: float

    def __str__(self) -> str:
        whole = f"forward and backward {_microseconds(self.before)} us, tuned {_microseconds(self.after)} us"
        gain = f" ({self.before / self.after:.2f}x)" if self.after > 0 else ""
        return f"{table(self.rows)}\n{whole}{gain}"


def table(rows: Sequence[Row]) -> str:
    """The times, of a backend in its best configuration, the choices, and what was dropped, as aligned text."""
    backends = list(dict.fromkeys(parts(name)[0] for row in rows for name in row.record.seconds))
    lines = [["module", "op", "of", *(f"{name}, us" for name in backends), "choice"]]
    for row in rows:
        times = [_microseconds(_best(row.record, backend)) for backend in backends]
        lines.append([_several(row.modules), row.call.op, _shown(row.call), *times, row.record.choice])
    dropped = dict.fromkeys(
        f"{row.call.op} of {_shown(row.call)}: {name} was dropped: {reason}"
        for row in rows
        for name, reason in row.record.dropped.items()
    )
    return "\n".join([*_aligned(lines), *dropped])


def _best(record: Record, backend: str) -> float | None:
    return min((t for name, t in record.seconds.items() if parts(name)[0] == backend), default=None)


def _microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:.0f}"


def _several(modules: Sequence[str]) -> str:
    first = modules[0] if modules and modules[0] else "(network)"
    return first if len(modules) < 2 else f"{first} and {len(modules) - 1} more"


def _shown(call: Call) -> str:
    """The first image of the call, and whether it trains."""
    first = next(i for i, size in enumerate(call.shape) if isinstance(size, torch.dtype))
    dtype, channels, pixels, order = call.shape[first : first + 4]
    assert isinstance(pixels, int) and isinstance(order, int)
    name, layout = str(dtype).removeprefix("torch."), ("", ", channels_last", ", strided")[order]
    return f"{channels} channels, up to {2**pixels:,} pixels, {name}{layout}{', training' if call.needs else ''}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def rows_of(tuner: choose.Tuner) -> tuple[Row, ...]:
    known = ((call, choose.known(call), modules) for call, modules in tuner.used.items())
    return tuple(Row(tuple(modules), call, record) for call, record, modules in known if record is not None)


def tune(model: nn.Module, *inputs: Any) -> Report:
    """Measure which backend runs each op of a network fastest, on these inputs, and choose accordingly from then on.

    Runs ``model(*inputs)`` in its present mode, under ``srkernels.tuning()``, then times forward and backward passes
    of the whole with and without the choices. Parameters, gradients, buffers and the random state are as before.

    Args:
        model: any network that calls srkernels, patched ones too; its parameters say which gradients are needed.
        inputs: what it is trained or used on: sizes count.

    Returns:
        A report; ``print`` shows it as a table.

    Raises:
        Whatever ``model(*inputs)`` raises.
    """
    buffers = [(b, b.clone()) for b in model.buffers()]
    device = next((x.device for x in (*model.parameters(), *_tensors(inputs))), torch.device("cpu"))
    wanted = [p for p in model.parameters() if p.requires_grad]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            with choose.tuning() as tuner:
                tuner.names = {module: name for name, module in model.named_modules()}
                outputs = [y for y in _tensors(model(*inputs)) if y.requires_grad]
            cotangents = [torch.ones_like(y) for y in outputs]
            del outputs

            def step() -> None:
                found = [y for y in _tensors(model(*inputs)) if y.requires_grad]
                if found and wanted:
                    torch.autograd.grad(found, wanted, cotangents, allow_unused=True)

            def untuned() -> None:
                with choose.paused():
                    step()

            times = clock.medians({"before": untuned, "after": step}, device)
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
    return Report(rows_of(tuner), times["before"], times["after"])


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, dict):
        return _tensors(tuple(value.values()))
    if isinstance(value, (tuple, list)):
        return [x for part in value for x in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def tune_benches() -> str:
    """Measure the calls that ``pytest bench`` times, on every device; returns the table."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with choose.tuning() as tuner:
        for spec in specs():
            for bench in spec.bench:
                for device in devices:
                    tuner.module = bench.case.id
                    make(spec, bench, device)
    return table(rows_of(tuner))


def make(spec: OpSpec, bench: BenchCase, device: torch.device | str) -> None:
    """The call that a bench times, on random operands."""
    memory_format = torch.channels_last if bench.channels_last else torch.contiguous_format
    generator, operands = torch.Generator().manual_seed(0), []
    for name, shape in zip(spec.operands, bench.case.shapes, strict=True):
        x = None if shape is None else torch.rand(shape, generator=generator).to(device, getattr(torch, bench.dtype))
        if x is not None and x.dim() == 4:
            x = x.contiguous(memory_format=memory_format)
        if x is not None and bench.passes != "forward" and name in bench.differentiable:
            x.requires_grad_()
        operands.append(x)
    spec.op(*operands, **bench.case.kwargs)
