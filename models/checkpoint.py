"""Files that appear whole or not at all, and the bounded row of training states a run can resume from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary path beside `path` and moves the result there once it is on the disk.

    A crash at any moment leaves the old file or the new one. If writing fails (a full disk), what had been there
    stays, the temporary file goes, and the error is raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # some writers keep their files to themselves
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


class TrainingStates:
    """The last `keep` states of a stage, `<folder>/<step>.state`, newest last.

    A state is a tree of tensors, numbers, strings, lists and dicts, read back with `weights_only=True`.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def steps(self) -> list[int]:
        found = (re.fullmatch(r"(\d+)\.state", path.name) for path in self.folder.glob("*.state"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        return self.folder / f"{step}.state"

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes the state, and only then deletes those beyond `keep`. Raises OSError if the disk refuses."""
        try:
            write_whole(self.path(step), lambda temporary: torch.save(state, temporary))
        except RuntimeError as error:  # torch's zip writer reports a failed write as one
            raise OSError(f"cannot write {self.path(step)}: {error}") from error
        for old in self.steps()[: -self._keep]:
            self.path(old).unlink()

    def latest(self) -> dict[str, Any] | None:
        """The newest state that can be read, or None. One that cannot (a dying disk) is passed over."""
        for step in reversed(self.steps()):
            try:
                state: dict[str, Any] = torch.load(self.path(step), map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError):
                continue
            return state
        return None
