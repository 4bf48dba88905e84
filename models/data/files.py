"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path


def check_regular(path: Path) -> None:
    """Raises OSError, naming the path, unless it is a file that can be read to its end; a pipe could wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError."""
    check_regular(path)
    return path.read_bytes()


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
    """Deletes the temporary files that killed processes left in `folder`; nobody else may be writing there."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+\.\w+", path.name):
            path.unlink(missing_ok=True)


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
