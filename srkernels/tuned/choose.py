"""Which backend a call takes, if its class was measured, and measuring it where that is asked for."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from .._modes import capturing, plain, records
from . import store
from .measure import Runnable, measure
from .records import Call, Record, Records


class Measurable(Runnable, Protocol):
    name: str

    def shape(self, operands: Any, settings: Any, keep: bool) -> tuple[int | torch.dtype, ...]: ...


class Tuner:
    """What one ``tuning()`` measures; as text, how many classes of calls were measured and what was chosen."""

    def __init__(self) -> None:
        self.found: dict[Call, Record] = {}
        self.used: dict[Call, list[str]] = {}  # by which modules
        self.tried: set[Call] = set()  # those that could not be measured among them
        self.names: dict[nn.Module, str] = {}  # of the modules to look for
        self.module = ""  # where none of them calls

    def __str__(self) -> str:
        chosen = Counter(record.choice for record in self.found.values())
        counts = ", ".join(f"{name} {count}" for name, count in chosen.most_common())
        return f"{len(self.found)} classes of calls measured" + (f": {counts}" if counts else "")

    def note(self, call: Call) -> None:
        names, name = self.used.setdefault(call, []), self._caller()
        if name not in names:
            names.append(name)

    def _caller(self) -> str:
        """The innermost module that is running, found on the stack: one with a hook of ours might run another code."""
        frame: FrameType | None = sys._getframe() if self.names else None
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and module in self.names:
                return self.names[module]
            frame = frame.f_back
        return self.module


class _Asked(Exception):
    """Carries what is known of a call instead of making it."""

    def __init__(self, known: tuple[Call, Record | None]) -> None:
        super().__init__()
        self.known = known


class _Thread(threading.local):
    asking = False
    paused = False


_records = Records()
_loaded: set[torch.device] = set()
_choices: dict[tuple[Any, ...], str] = {}
_MOST_CHOICES = 4096
_quiet: set[torch.device] = set()  # nothing was measured there: one look for most users' calls
# SRKERNELS_TUNE=1 measures whatever comes, on one rank.
_always = os.environ.get("SRKERNELS_TUNE") == "1"
_tuner: Tuner | None = Tuner() if _always else None
_tuning = threading.Lock()
_thread = _Thread()


def choice(op: Measurable, operands: Any, settings: Any, keep: bool, derived: bool) -> str:
    """The backend measured fastest for this class of calls, and its configuration; "" if it was not measured.

    ``derived``: the call is part of a backward pass, where nothing is measured.
    """
    device = (operands[0] if operands[0] is not None else operands[1]).device
    if device in _quiet and not _thread.asking:
        return ""
    if _thread.paused or not plain(operands):
        return ""
    if device not in _loaded:
        _load(device)
    tuner = _tuner  # another thread may end it meanwhile
    if tuner is None and not _thread.asking and not _records.about(op.name, device):
        if not _records.on(device):
            _quiet.add(device)
            if _tuner is not None:  # another thread has just begun to measure
                _quiet.discard(device)
        return ""
    recording = records(*operands)
    needs = [recording and x is not None and x.requires_grad for x in operands]
    if tuner is None and not _thread.asking:
        return _remembered(op, operands, settings, keep, needs)
    call = _class(op, operands, settings, keep, needs)
    record = _followed(op, call, operands, settings)
    if _thread.asking:
        raise _Asked((call, record))
    if tuner is not None and not derived and not capturing() and not (_always and _several_ranks()):
        record = _measured(tuner, op, call, operands, settings, keep, needs) or record
    return "" if record is None else record.choice


def _class(op: Measurable, operands: Any, settings: Any, keep: bool, needs: Sequence[bool]) -> Call:
    device = (operands[0] if operands[0] is not None else operands[1]).device
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    bits = sum(need << i for i, need in enumerate(needs))
    return Call(op.name, device, threads, op.shape(operands, settings, keep), bits)


def _followed(op: Measurable, call: Call, operands: Any, settings: Any) -> Record | None:
    """The record of a class whose choice can run here."""
    record = _records.get(call)
    return None if record is None or op.why_not(record.choice, operands, settings) is not None else record


def _remembered(op: Measurable, operands: Any, settings: Any, keep: bool, needs: Sequence[bool]) -> str:
    """As above, for calls that were seen before with these very shapes and strides: a class takes longer to name."""
    key: list[Any] = [op.name, settings, keep, torch.get_num_threads(), *needs]
    for x in operands:
        key.append(None if x is None else (x.shape, x.stride(), x.dtype, x.device))
    seen = tuple(key)
    found = _choices.get(seen)
    if found is None:
        record = _followed(op, _class(op, operands, settings, keep, needs), operands, settings)
        if len(_choices) >= _MOST_CHOICES:
            _choices.clear()
        found = _choices[seen] = "" if record is None else record.choice
    return found


def _measured(
    tuner: Tuner, op: Measurable, call: Call, operands: Any, settings: Any, keep: bool, needs: Sequence[bool]
) -> Record | None:
    """Measures a class that ``tuner`` has not tried; None for what is known, or cannot be measured."""
    tuner.note(call)
    before = _records.get(call)
    if call in tuner.tried or (before and not before.table) or call.device.type not in ("cpu", "cuda"):
        return None
    tuner.tried.add(call)
    try:
        found = measure(op, operands, settings, keep, needs)
    except Exception as error:  # out of memory in fp64, say; the call itself goes on
        first, *_ = str(error).splitlines() or [""]
        warnings.warn(f"srkernels: {op.name} could not be measured: {type(error).__name__}: {first}", stacklevel=2)
        return None
    if found is None:
        return None
    tuner.found[call] = found
    if _several_ranks():  # which learn it together, when the measurement ends
        return None
    _records.add({call: found})
    if _always:
        _save({call: found})
    return found


def known(call: Call) -> Record | None:
    return _records.get(call)


def _load(device: torch.device) -> None:
    _loaded.add(device)
    if device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available()):
        _records.add(store.shipped(device))
        _records.add(store.load(device))  # what was measured here counts more


def _several_ranks() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@contextmanager
def tuning() -> Iterator[Tuner]:
    """Measure every class of calls inside that was not measured yet, and choose accordingly from then on.

    Each backend that can run a call, and each configuration of its kernels, is first shown to be right on its operands,
    then timed against eager PyTorch, forward and, where gradients are recorded, backward. The fastest is chosen if it
    beats eager PyTorch by 3 %. What was found is kept in a file for this machine and these versions, in the folder
    ``SRKERNELS_CACHE`` or the platform's folder for caches, and used by every later process.

    Nothing is measured inside a graph capture, a trace or a transform of ``torch.func``, nor on operands that are not
    finite. With several ranks of ``torch.distributed`` each rank enters, and all take what rank 0 measured when they
    leave. Process-wide, and one at a time.

    >>> with srkernels.tuning():
    ...     loss(model(lr), hr).backward()

    Raises:
        RuntimeError: inside another ``tuning()``.
    """
    global _tuner
    if not _tuning.acquire(blocking=False):
        raise RuntimeError("tuning: already inside srkernels.tuning()")
    outer, mine = _tuner, Tuner()
    try:
        _tuner = mine
        _quiet.clear()
        try:
            yield mine
        except BaseException:
            if not _several_ranks():  # the others wait elsewhere: nothing is shared
                _save(mine.found)
            raise
        _share(mine)
    finally:
        _tuner = outer
        _choices.clear()
        _tuning.release()


def _share(tuner: Tuner) -> None:
    """Keeps what was measured; of several ranks, what rank 0 knows of the calls that it made."""
    if not _several_ranks():
        _save(tuner.found)
        return
    own = {call: record for call in tuner.used if (record := tuner.found.get(call) or _records.get(call)) is not None}
    shared = [[(call._replace(device=torch.device(call.device.type)), record) for call, record in own.items()]]
    torch.distributed.broadcast_object_list(shared)
    _records.add({call._replace(device=_own(call.device)): record for call, record in shared[0]})
    if torch.distributed.get_rank() == 0:
        _save(tuner.found)


def _own(device: torch.device) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def _save(found: dict[Call, Record]) -> None:
    for device in {call.device for call in found}:
        store.save(device, {call: record for call, record in found.items() if call.device == device})


@contextmanager
def paused() -> Iterator[None]:
    """Choose, in this thread, as if nothing had been measured."""
    before, _thread.paused = _thread.paused, True
    try:
        yield
    finally:
        _thread.paused = before


def asked(make: Callable[[], Any]) -> tuple[Call, Record | None] | None:
    """What is known of the first op that ``make`` would call, which is not run."""
    before, _thread.asking = _thread.asking, True
    try:
        make()
    except _Asked as answer:
        return answer.known
    finally:
        _thread.asking = before
    return None
