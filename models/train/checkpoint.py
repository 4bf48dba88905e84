"""The training states that a run can resume from, and the weights beside them."""

from __future__ import annotations

import re
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

    def latest(self) -> dict[str, Any] | None:
        """The newest state that can be read, or None. Unreadable ones (a dying disk) are skipped."""
        for step in reversed(self.steps()):
            try:
                state: dict[str, Any] = torch.load(self.path(step), map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError):
                continue
            return state
        return None


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
