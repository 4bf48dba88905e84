"""The training loop all methods share, and the folder a run leaves behind."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from models.data import InputError

Losses = dict[str, Tensor]


class Run:
    """The folder `<root>/<name>` in BasicSR's layout, and what is said on the way: shown and written to a log.

    Has `models/`, `training_states/`, `visualization/` and `train_<name>_<time>.log`. A folder of that name from
    an earlier run is kept under another name. Raises InputError if the folder cannot be made.
    """

    def __init__(self, root: Path, name: str) -> None:
        now = datetime.now().strftime("%Y%m%d_%H%M%S")
        self.folder = root / name
        self.models = self.folder / "models"
        self.training_states = self.folder / "training_states"
        self.visualization = self.folder / "visualization"
        try:
            if self.folder.exists():
                self.folder.rename(_free_path(root / f"{name}_archived_{now}"))
            for folder in (self.models, self.training_states, self.visualization):
                folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"cannot make the run's folder {self.folder}: {error.strerror}") from error
        self.console = Console(width=None if Console().is_terminal else 110)
        self._log_file = (self.folder / f"train_{name}_{now}.log").open("w", encoding="utf-8")
        self._log = Console(file=self._log_file, width=110)

    def say(self, *renderables: RenderableType) -> None:
        for renderable in renderables:
            self.console.print(renderable)
            self._log.print(renderable)
        self._log_file.flush()

    def progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description:<36}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )

    def close(self) -> None:
        self._log_file.close()


@dataclass
class History:
    """Losses of every step and what was measured on the way.

    Attributes:
        losses: name to a float tensor of length steps.
        measured: (number of updates done, value) as `evaluate` returned them.
        seconds: wall time of the stage, evaluation included.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    measured: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    seconds: float = 0.0


def constant_then_linear(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Full learning rate for the first half of `steps`, then linearly to zero (the shape of DASR's DSN schedule)."""
    return LambdaLR(optimizer, lambda done: min(1.0, 2 * (1 - done / steps)))


def train(
    run: Run,
    title: str,
    steps: int,
    draw: Callable[[], tuple[Tensor, ...]],
    step: Callable[..., Losses],
    optimizers: Sequence[Optimizer],
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluations: int = 4,
) -> History:
    """Calls `step(*draw())` `steps` times under a progress bar.

    Losses stay on the device; they are read only when a line is written, about five times a stage. `evaluate` runs
    before the first step, after the last and evenly between.
    """
    history, rows = History(), []
    schedules = [constant_then_linear(optimizer, steps) for optimizer in optimizers]
    report_at = _evenly(steps, 5)
    evaluate_at = _evenly(steps, evaluations) if evaluate else set()
    start = time.perf_counter()
    if evaluate:
        history.measured.append((0, evaluate()))
    with run.progress() as progress:
        for done in progress.track(range(1, steps + 1), description=title):
            losses = step(*draw())
            for schedule in schedules:
                schedule.step()
            rows.append(torch.stack(list(losses.values())))
            if done in report_at:
                values = "  ".join(f"{name} {float(value):.4f}" for name, value in losses.items())
                run.say(f"  step {done:>5}   {values}")
            if evaluate and done in evaluate_at:
                history.measured.append((done, evaluate()))
    history.losses = dict(zip(losses, torch.stack(rows).cpu().unbind(1), strict=True))
    history.seconds = time.perf_counter() - start
    return history


def _free_path(path: Path) -> Path:
    candidates = (path.with_name(f"{path.name}_{number}") for number in itertools.count(2))
    return path if not path.exists() else next(candidate for candidate in candidates if not candidate.exists())


def _evenly(steps: int, count: int) -> set[int]:
    return {max(1, round(steps * (index + 1) / count)) for index in range(count)}
