"""What the commands that train have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.data import HeldOut, InputError, Inputs, Pairs, open_source
from models.train.run import Run


@dataclass(frozen=True)
class TrainCommand:
    """Options of every method."""

    hr: Path
    """Clean HR pictures."""
    lr: Path
    """Real LR pictures of other scenes, the target domain."""
    out: Path
    """The run's folder."""
    preset: str
    """A preset's name, or a YAML file in the same form."""
    val_hr: Path | None = None
    """Held-out HR pictures to validate on; needs --val-lr."""
    val_lr: Path | None = None
    """Their real LR pictures, under the same names."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""
    resume: Literal["auto", "never"] = "auto"
    """auto resumes from the run's last checkpoint; never sets an earlier run aside and starts from scratch."""

    def inputs(self, scale: int) -> Inputs:
        """The sources that the options name. Raises InputError if one cannot be used."""
        return Inputs(open_source(self.hr), open_source(self.lr), self._held_out(scale))

    def _held_out(self, scale: int) -> Callable[[], HeldOut] | None:
        if self.val_hr is None and self.val_lr is None:
            return None
        if self.val_hr is None or self.val_lr is None:
            raise InputError("--val-hr and --val-lr go together: validation needs pairs")
        return Pairs(open_source(self.val_lr), open_source(self.val_hr), scale)

    def start(self, part: str = ".") -> Run:
        """The run; if it is to start from scratch, this part of the folder's earlier one is set aside."""
        return Run(self.out, self.out / part if self.resume == "never" else None)
