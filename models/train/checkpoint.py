"""The training states that a run can resume from, and the weights beside them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from models.data import InputError
from models.data.files import write_whole


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
        """Writes the state, and only then deletes those beyond `keep`. Raises OSError if writing fails."""
        try:
            write_whole(self.path(step), lambda temporary: torch.save(state, temporary))
        except RuntimeError as error:  # torch's zip writer reports a failed write as one
            raise OSError(f"cannot write {self.path(step)}: {error}") from error
        for old in self.steps()[: -self._keep]:
            self.path(old).unlink()

    def latest(self, fields: Collection[str] = (), say: Callable[[str], None] = print) -> dict[str, Any] | None:
        """The newest state that is whole and has these fields, or None; `say` is told of each that is passed over."""
        for step in reversed(self.steps()):
            try:
                return _read(self.path(step), fields)
            except Exception as error:  # a file can be damaged in more ways than torch and zipfile have errors for
                first, *_ = str(error).splitlines() or [""]
                say(f"{self.path(step)} cannot be read and is passed over ({type(error).__name__}: {first[:120]})")
        return None


def _read(path: Path, fields: Collection[str]) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # what torch.save writes: with checksums, at which torch.load does not look
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    missing = [name for name in fields if not isinstance(state, dict) or name not in state]
    if missing or not isinstance(state, dict):
        raise ValueError(f"no state of a run: it lacks {', '.join(missing)}")
    return state


def newest_weights(folder: Path, name: str, updates: int) -> Path:
    """The weights that a finished stage left behind, the averaged ones if there are any.

    Raises InputError if the stage was not trained, or not to its end.
    """
    steps = TrainingStates(folder / "training_states", keep=1).steps()
    if not steps:
        raise InputError(f"no weights of a {name} in {folder / 'models'}: train that stage first, or name a file")
    if steps[-1] < updates:
        raise InputError(
            f"stage {folder.name} stopped behind update {steps[-1]} of {updates}: train it to its end first"
        )
    averaged = folder / "models" / f"{steps[-1]}_{name}_ema.safetensors"
    return averaged if averaged.exists() else averaged.with_name(f"{steps[-1]}_{name}.safetensors")
