"""Which backend a call takes, if its class was measured, and measuring it where that is asked for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from .._modes import capturing, in_forward_mode, records, transforms_active
from . import store
from .measure import Runnable, measure
from .records import Call, Record, Records


class Measurable(Runnable, Protocol):
    name: str

    def shape(self, operands: Any, settings: Any) -> tuple[int | torch.dtype, ...]: ...


class Tuner:
    """What one ``tuning()`` measures; as text, how many classes of calls were measured and what was chosen."""

    def __init__(self) -> None:
        self.found: dict[Call, Record] = {}
        self.used: dict[Call, list[str]] = {}  # by which modules
        self.module = ""

    def __str__(self) -> str:
        chosen = Counter(record.choice for record in self.found.values())
        counts = ", ".join(f"{name} {count}" for name, count in chosen.most_common())
        return f"{len(self.found)} classes of calls measured" + (f": {counts}" if counts else "")

    def note(self, call: Call) -> None:
        names = self.used.setdefault(call, [])
        if self.module not in names:
            names.append(self.module)


class _Asked(Exception):
    """Carries what is known of a call instead of making it."""

    def __init__(self, known: tuple[Call, Record | None]) -> None:
        super().__init__()
        self.known = known


_records = Records()
_loaded: set[torch.device] = set()
_choices: dict[tuple[Any, ...], str] = {}
_MOST_CHOICES = 4096
_quiet: set[torch.device] = set()  # nothing was measured there and nobody asks: one look for most users' calls
# SRKERNELS_TUNE=1 measures whatever comes, on one rank.
_always = os.environ.get("SRKERNELS_TUNE") == "1"
_tuner: Tuner | None = Tuner() if _always else None
_paused = _asking = False


def choice(op: Measurable, operands: Any, settings: Any, keep: bool, derived: bool) -> str:
    """The backend measured fastest for this class of calls; "" if it was not measured.

    ``derived``: the call is part of a backward pass, where nothing is measured.
    """
    x = operands[0] if operands[0] is not None else operands[1]
    device = x.device
    if device in _quiet:
        return ""
    if device not in _loaded:
        _load(device)
    if _tuner is None and not _asking and (_paused or not _records.about(op.name, device)):
        if not _records.on(device):
            _quiet.add(device)
        return ""
    recording = records(*operands)
    needs = [recording and x is not None and x.requires_grad for x in operands]
    if _tuner is None and not _asking:
        return _remembered(op, operands, settings, needs)
    call = _class(op, operands, settings, needs)
    record = _records.get(call)
    if _asking:
        raise _Asked((call, record))
    if _tuner is not None and not derived and _plain():
        _tuner.note(call)
        if record is None and call not in _tuner.found:
            found = {call: measure(op, operands, settings, keep, needs)}
            _tuner.found |= found
            if not _several_ranks():  # which learn it together, when the measurement ends
                _records.add(found)
                record = found[call]
            if _always:
                _keep(found)
    return "" if record is None or _paused else record.choice


def _class(op: Measurable, operands: Any, settings: Any, needs: Sequence[bool]) -> Call:
    device = (operands[0] if operands[0] is not None else operands[1]).device
    return Call(op.name, device, op.shape(operands, settings), sum(need << i for i, need in enumerate(needs)))


def _remembered(op: Measurable, operands: Any, settings: Any, needs: Sequence[bool]) -> str:
    """As above, for calls that were seen before with these very shapes and strides: a class takes longer to name."""
    key: list[Any] = [op.name, settings, *needs]
    for x in operands:
        key.append(None if x is None else (x.shape, x.stride(), x.dtype, x.device))
    seen = tuple(key)
    found = _choices.get(seen)
    if found is None:
        record = _records.get(_class(op, operands, settings, needs))
        if len(_choices) >= _MOST_CHOICES:
            _choices.clear()
        found = _choices[seen] = "" if record is None else record.choice
    return found


def _plain() -> bool:
    """Whether a call may be measured here."""
    if transforms_active() or in_forward_mode() or capturing():
        return False
    return not (_always and _several_ranks())


def known(call: Call) -> Record | None:
    return _records.get(call)


def _load(device: torch.device) -> None:
    _loaded.add(device)
    if device.type in ("cpu", "cuda"):
        _records.add(store.load(device))


def _several_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def tuning() -> Iterator[Tuner]:
    """Measure every class of calls inside that was not measured yet, and choose accordingly from then on.

    Each backend that can run a call is first shown to be right on its operands, within the budget of the tests, then
    timed against eager PyTorch, forward and, where gradients are recorded, backward. The fastest is chosen if it beats
    eager PyTorch by 3 %. What was found is kept in a file for this machine and these versions, in the folder
    ``SRKERNELS_CACHE`` or the platform's folder for caches, and used by every later process.

    Nothing is measured inside a graph capture, a trace or a transform of ``torch.func``. With several ranks of
    ``torch.distributed`` each rank enters, and all take what rank 0 measured when they leave.

    >>> with srkernels.tuning():
    ...     loss(model(lr), hr).backward()
    """
    global _tuner
    outer, _tuner = _tuner, Tuner()
    _quiet.clear()
    _choices.clear()
    try:
        yield _tuner
    finally:
        tuner, _tuner = _tuner, outer
        _keep(tuner.found)


def _keep(found: dict[Call, Record]) -> None:
    if _several_ranks():
        found = _of_rank_0(found)
        _records.add(found)
        if torch.distributed.get_rank() != 0:
            return
    for device in {call.device for call in found}:
        store.save(device, {call: record for call, record in found.items() if call.device == device})


def _of_rank_0(found: dict[Call, Record]) -> dict[Call, Record]:
    """Its records, of this rank's own device."""
    own = {call.device.type: call.device for call in found}
    shared = [[(call._replace(device=torch.device(call.device.type)), record) for call, record in found.items()]]
    torch.distributed.broadcast_object_list(shared)
    return {call._replace(device=own.get(call.device.type, call.device)): record for call, record in shared[0]}


@contextmanager
def paused() -> Iterator[None]:
    """Choose as if nothing had been measured."""
    global _paused
    before, _paused = _paused, True
    try:
        yield
    finally:
        _paused = before


def asked(make: Callable[[], Any]) -> tuple[Call, Record | None] | None:
    """What is known of the first op that ``make`` would call, which is not run."""
    global _asking
    before, _asking = _asking, True
    _quiet.clear()
    try:
        make()
    except _Asked as answer:
        return answer.known
    finally:
        _asking = before
    return None


@contextmanager
def named(model: nn.Module, tuner: Tuner) -> Iterator[None]:
    """Tells ``tuner`` which module is running."""
    handles = []
    outer: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            outer.append(tuner.module)
            tuner.module = name

        return hook

    def leave(*_: Any) -> None:
        tuner.module = outer.pop()

    for name, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(enter(name)),
            module.register_forward_hook(leave, always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
