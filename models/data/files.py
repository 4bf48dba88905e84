"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

# Of `write_whole`, with the number of the process that writes.
_TEMPORARY = re.compile(r"\..+\.(\d+)\.(csv|jpe?g|md|npy|png|pth|safetensors|state|tiff?|webp|bmp|yaml)")
# Of safetensors' own save_file, which an earlier version left among a run's weights.
_SAFETENSORS = re.compile(r"\.tmp\w{6}")


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary path beside `path` and moves the result into place once it is on disk.

    A crash at any moment leaves either the old file or the new one. If writing fails (a full disk), the old file stays,
    the temporary one is deleted, and the error is raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # some writers create files that only their owner may read
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Deletes, at any depth, the temporary files of `write_whole` whose processes are dead.

    Nothing may be in the making there. A file of this process's number is of an earlier one: containers count anew.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            ours = _TEMPORARY.fullmatch(name)
            dead = ours and (int(ours[1]) == os.getpid() or not _lives(int(ours[1])))
            if dead or (Path(parent).name == "models" and _SAFETENSORS.fullmatch(name)):
                Path(parent, name).unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
