"""What a method brings to the ablation: the tables of its paper, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from models.data.photographs import SCALE, Domains
from models.evaluate import metrics
from models.evaluate.examples import resized
from models.evaluate.validation import Judge, Score, mean_score
from models.networks import LPIPS
from models.networks.weight_options import PerceptualFiles
from models.train.loop import History
from models.train.run import Run

C = TypeVar("C")

# What is measured of an SR network.
JUDGED_SR = f"Real LR of the held-out HR, enlarged, against the HR, {metrics.convention(SCALE, y_channel=False)}"


@dataclass(frozen=True)
class Trial:
    """What a row is trained with: one seed, its photographs, and the folder of everything trained with it."""

    seed: int
    domains: Domains
    folder: Path
    run: Run
    device: torch.device
    weights: PerceptualFiles
    lpips: LPIPS | None  # by those weights


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: for `--rows`.
        cells: what it is, one for each of the table's columns.
        paper: the paper's numbers by measure.
        config: what it is trained with.
    """

    name: str
    cells: tuple[str, ...]
    paper: Mapping[str, float]
    config: Any


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        name: key of its baseline among the results.
        title, columns: its heading, and those of `Row.cells`.
        judged: what our numbers compare, and how.
        digits: as many as the paper prints, by measure.
        rows: in the paper's order.
        train: trains a row, or what is left to train of it, and returns its score on the held-out pictures.
        baseline: score of the bicubic pictures.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    judged: str
    digits: Mapping[str, int]
    rows: tuple[Row, ...]
    train: Callable[[Row, Trial], Score]
    baseline: Callable[[Trial], Score]


@dataclass(frozen=True)
class AblationParts(Generic[C]):
    """What a method brings: its options, its tables for a configuration, and a line on how it is trained here.

    Its options have a `scale`, and those of the loop as `run`.
    """

    title: str
    config: type[C]
    load_preset: Callable[[str], C]
    check: Callable[[C, PerceptualFiles], None]
    tables: Callable[[C], tuple[PaperTable, ...]]
    setting: Callable[[C], str]
    paper_setting: str


def last_score(history: History) -> Score:
    """What the loop measured after the last update."""
    return history.measured[-1][1]


def score_bicubic_hr(trial: Trial) -> Score:
    """The baseline of SR networks: held-out LR, enlarged."""
    judge = Judge(SCALE, trial.lpips)
    return mean_score([judge(resized(lr.pixels, SCALE), hr.pixels) for lr, hr in trial.domains.held_out])
