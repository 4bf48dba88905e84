"""What the stages of a method work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch

from models.data import Inputs
from models.data.files import write_text
from models.train import distributed
from models.train.run import Run

C = TypeVar("C")
W = TypeVar("W")


@dataclass(frozen=True)
class TrainingJob(Generic[C, W]):
    """A run of a method: its configuration, pictures, weight files, folder and device.

    `folders` names the folders of stages that do not live in the run's own folder, such as those that several rows of
    an ablation share; the configuration is then recorded elsewhere.
    """

    config: C
    inputs: Inputs
    weights: W
    run: Run
    device: torch.device
    folders: Mapping[str, Path] = field(default_factory=dict)

    def folder(self, stage: str = "") -> Path:
        """The folder of a stage; a method with a single stage, which needs no name, uses the run's folder."""
        return self.folders.get(stage, self.run.folder / stage)

    def record(self, written: str) -> None:
        """Leaves the configuration, as YAML, in the run's folder."""
        if distributed.is_main() and not self.folders:
            write_text(self.run.folder / "config.yaml", written)
