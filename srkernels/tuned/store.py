"""Files of records, one for each machine and set of versions: in the user's cache folder (``SRKERNELS_CACHE``), and
tables that ship with the library, one for each card and minor versions.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import _native
from .._dispatch import BACKENDS, parts
from .._machine import processor
from .._version import __version__
from .records import Call, Record

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
TABLES = Path(__file__).parents[1] / "tables"


def folder() -> Path:
    """Where records are kept: ``SRKERNELS_CACHE``, or srkernels in the platform's folder for caches."""
    for variable, below in (("SRKERNELS_CACHE", ""), ("XDG_CACHE_HOME", "srkernels"), ("LOCALAPPDATA", "srkernels")):
        if os.environ.get(variable):
            return Path(os.environ[variable]) / below
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path.home() / caches / "srkernels"


def made_on(device: torch.device) -> dict[str, Any]:
    """What a time depends on besides the call: the hardware and versions."""
    found: dict[str, Any] = {"srkernels": __version__, "torch": torch.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "cores": properties.multi_processor_count}
        found |= {"runtime": torch.version.cuda or torch.version.hip, "triton": _triton_version()}
    else:
        found["device"] = processor()
        if _native.why_not(device) is None:
            extension = _native.extension("cpu")
            found |= {"instructions": extension.isa(), "amx": extension.amx_available()}
    return found


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def path(device: torch.device) -> Path:
    key = json.dumps(made_on(device), sort_keys=True).encode()
    return folder() / f"tuned-{device.type}-{hashlib.sha256(key).hexdigest()[:16]}.json"


def _holds_for(made: Mapping[str, Any]) -> dict[str, Any]:
    """What a table that ships asks of a machine: the hardware, and minor versions of what decides which kernels run."""
    minor = {name: ".".join(made[name].split(".")[:2]) for name in ("torch", "triton", "runtime") if name in made}
    return {name: value for name, value in made.items() if name not in ("srkernels", *minor)} | minor


def table(made: Mapping[str, Any], where: Path | None = None) -> Path:
    """The file of the table for a machine and versions (``made_on``)."""
    holds = {"device": "", **_holds_for(made)}
    words = [f"{value}" if name in ("device", "cores") else f"{name} {value}" for name, value in holds.items()]
    return (where or TABLES) / f"{re.sub('[^a-z0-9.]+', '-', ' '.join(words).lower()).strip('-')}.json"


def _encoded(call: Call, record: Record) -> dict[str, Any]:
    shape = [str(size).removeprefix("torch.") if isinstance(size, torch.dtype) else int(size) for size in call.shape]
    return {
        "op": call.op, "threads": call.threads, "shape": shape, "needs": call.needs,
        "seconds": dict(record.seconds), "dropped": dict(record.dropped), "day": record.day,
    }  # fmt: skip


def _decoded(row: Any, device: torch.device) -> tuple[Call, Record]:
    """Raises whatever a row that is none raises."""
    shape = tuple(getattr(torch, size) if isinstance(size, str) else int(size) for size in row["shape"])
    if not all(isinstance(size, (int, torch.dtype)) for size in shape):
        raise TypeError("a shape of something else")
    seconds = {name: float(t) for name, t in row["seconds"].items() if parts(name)[0] in BACKENDS}
    dropped = {str(name): str(reason) for name, reason in row["dropped"].items()}
    call = Call(str(row["op"]), device, int(row["threads"]), shape, int(row["needs"]))
    return call, Record(seconds, dropped, str(row["day"]))


def read(text: bytes, device: torch.device, holds: Callable[[Any], bool]) -> dict[Call, Record]:
    """The records in a file's text, if it ``holds`` by what it was made on; those that are none are passed over.

    Raises one of ``_DAMAGE`` for a text that is no such file.
    """
    content = json.loads(text)
    if content["format"] != _FORMAT or not holds(content["made_on"]):
        return {}
    found = {}
    for row in list(content["records"]):
        try:
            call, record = _decoded(row, device)
        except (*_DAMAGE, OverflowError):
            continue
        found[call] = record
    return found


def load(device: torch.device) -> dict[Call, Record]:
    """The records of this machine and these versions; a damaged file is set aside with a warning."""
    try:
        file, made = path(device), made_on(device)
        text = file.read_bytes()
    except (OSError, RuntimeError):  # no such file, or no home to look in
        return {}
    try:
        return read(text, device, lambda other: other == made)
    except _DAMAGE as error:
        _set_aside(file, error)
        return {}


def shipped(device: torch.device) -> dict[Call, Record]:
    """The records of the table that ships for such a machine; a damaged one is passed over with a warning."""
    made = made_on(device)
    file = table(made)
    try:
        found = read(file.read_bytes(), device, lambda other: _holds_for(other) == _holds_for(made))
    except OSError:  # there is none
        return {}
    except _DAMAGE as error:
        warnings.warn(f"srkernels: {file} is damaged ({type(error).__name__}: {error}): not read", stacklevel=2)
        return {}
    return {call: replace(record, table=file.stem) for call, record in found.items()}


def _set_aside(file: Path, error: Exception) -> None:
    aside = file.with_suffix(".damaged")
    try:
        file.replace(aside)
        where = f"set aside as {aside}"
    except OSError:
        where = "passed over"
    warnings.warn(f"srkernels: {file} is damaged ({type(error).__name__}: {error}) and was {where}", stacklevel=2)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds off other processes that add to ``file``; where a platform has no locks, the last one's records remain."""
    if fcntl is None:
        yield
        return
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def save(device: torch.device, found: Mapping[Call, Record]) -> Path | None:
    """Adds ``found`` to the file and returns its path. A folder that cannot be written is a warning, and None."""
    temporary = None
    try:
        file = path(device)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file):
            records = load(device) | dict(found)
            with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as out:
                temporary = Path(out.name)
                out.write(written(made_on(device), records))
            temporary.replace(file)  # at once: a reader sees the old file or the new one
    except (OSError, RuntimeError) as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        warnings.warn(f"srkernels: what was measured is not kept: {error}", stacklevel=2)
        return None
    return file


def written(made: Mapping[str, Any], records: Mapping[Call, Record]) -> str:
    """A file's text: JSON with one record a line."""
    rows = ",\n".join(json.dumps(_encoded(call, record)) for call, record in records.items())
    head = json.dumps({"format": _FORMAT, "made_on": made})
    return f'{head[:-1]}, "records": [\n{rows}\n]}}\n'
