"""Folders that one process at a time writes to."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.data.files import FULL, remove_leftovers
from models.data.images import InputError

_NAME = ".lock"

# A forked process, such as a loader's, must not hold what its parent locked: it may outlive it.
_held: set[int] = set()


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Makes the folder, keeps other processes out of it, and removes what killed ones left in it.

    The lock is the operating system's, on the file `.lock`, and ends with the process that holds it, however that
    dies. Yields whether there is one: some network file systems have none, and then nothing keeps a second process out.
    Raises InputError if another process holds it, or if the folder cannot be written.
    """
    folder = folder.resolve()
    path = folder / _NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, holds = _acquire(path)
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise InputError(f"cannot write to the folder {folder}: {error.strerror}") from error
    _held.add(descriptor)
    try:
        remove_leftovers(folder)
        yield holds
    finally:
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):  # not if the folder was set aside
            path.unlink()
        _held.discard(descriptor)
        os.close(descriptor)


def _acquire(path: Path) -> tuple[int, bool]:
    """An open descriptor of the file, and whether it is locked."""
    while True:
        descriptor, holds = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise InputError(
                f"{path.parent} is in use by {holder}: wait for it or stop it, or write to another folder"
            ) from None
        except OSError:
            holds = False
        # Whoever held it before has removed the file if it is another one by now.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor, holds
        os.close(descriptor)
