"""What a method brings to the ablation: the tables of its paper, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from models.data import InputError, Photo, Picture, write_picture
from models.data.photographs import SCALE, Domains
from models.evaluate import metrics
from models.evaluate.examples import enlarged, resized
from models.evaluate.validation import Judge, Score
from models.networks import LPIPS, load_weights
from models.networks.weight_options import LPIPSFiles, PerceptualFiles
from models.train.checkpoint import newest_weights
from models.train.run import Run

C = TypeVar("C")

# What is measured of an SR network.
JUDGED_SR = f"Real LR of the photographs, enlarged, against the HR, {metrics.convention(SCALE, y_channel=False)}"

# The folder of the baselines' pictures.
RESIZED = "bicubic-resize"

# Of an adversarial weight, where there is no perceptual loss: the supervised losses are smaller by as much.
WEIGHTLESS = 0.1


@dataclass(frozen=True)
class Trial:
    """What a row is trained with: photographs of one seed, the folder of everything trained with them, weight files.

    The folder also has the held-out pictures, `held_out/lr` and `held_out/hr`, and each row's, `generated/ROW` (LR) or
    `enlarged/ROW`.
    """

    domains: Domains
    folder: Path
    run: Run
    device: torch.device
    weights: PerceptualFiles
    lpips: LPIPS | None  # by those weights

    def keep_held_out(self) -> None:
        """Writes the held-out pictures."""
        for lr, hr in self.domains.held_out:
            for kind, photo in (("lr", lr), ("hr", hr)):
                write_picture(self.folder / "held_out" / kind / f"{photo.name}.png", photo.pixels)

    def teachers(self, *networks: str) -> dict[str, Path | None]:
        """The files for training with perceptual losses on these networks.

        LPIPS, which on a CPU takes as long as half of a row's updates, judges a row once, at its end.
        """
        files = vars(self.weights)
        return files if "lpips" in networks else files | dict.fromkeys(vars(LPIPSFiles()))


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: for `--rows`, and of its folder.
        cells: what it is, one for each of the table's columns.
        paper: the paper's numbers by measure; none for a row that is ours.
        config: what it is trained with.
    """

    name: str
    cells: tuple[str, ...]
    paper: Mapping[str, float]
    config: Any


@dataclass(frozen=True)
class Claim:
    """A difference that a paper is about: the sum of the rows `better` minus that of the rows `worse`."""

    says: str
    better: tuple[str, ...]
    worse: tuple[str, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        name: for `--tables`, and key of its baseline among the results.
        title, columns: its heading, and those of `Row.cells`.
        judged: what our numbers compare, and how.
        camera: which of `CAMERAS` takes its real LR.
        digits: as many as the paper prints, by measure.
        rows: in the paper's order.
        claims: what is compared, picture by picture and seed by seed.
        plan: weights and lengths of a row's configuration, which are shown before anything is trained.
        train: trains a row, or what is left to train of it, and returns its score on every held-out picture.
        baseline: scores of the bicubic pictures.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    judged: str
    camera: str
    digits: Mapping[str, int]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    plan: Callable[[Any], Mapping[str, str]]
    train: Callable[[Row, Trial], list[Score]]
    baseline: Callable[[Trial], list[Score]]


@dataclass(frozen=True)
class Size:
    """How much is trained: seeds, and by what updates, features, blocks and batches of the preset are multiplied."""

    seeds: tuple[int, ...]
    updates: float = 1.0
    features: int = 1
    blocks: int = 1
    batch: int = 1

    def times(self, updates: int) -> int:
        return max(1, round(self.updates * updates))


@dataclass(frozen=True)
class AblationParts(Generic[C]):
    """What a method brings: its options, its tables for a configuration, and a line on how it is trained here.

    Its options have a `scale`, and those of the loop as `run`.

    Attributes:
        resize: a configuration in another size.
        prepare: checks the configuration and the weight files, and returns it as the tables take it: without the
            weights of a perceptual loss, without the loss.
    """

    title: str
    config: type[C]
    load_preset: Callable[[str], C]
    resize: Callable[[C, Size], C]
    prepare: Callable[[C, PerceptualFiles], C]
    tables: Callable[[C], tuple[PaperTable, ...]]
    setting: Callable[[C], str]
    paper_setting: str


def trained(folder: Path, updates: int, device: torch.device) -> nn.Module:
    """The generator as it is after its last update."""
    return load_weights(newest_weights(folder, "generator", updates)).to(device).eval()


def score_generated(trial: Trial, name: str, generate: Callable[[Picture], Picture]) -> list[Score]:
    """Scores of a row's LR pictures of the held-out HR, or of the baseline's."""
    pictures = [generate(hr.pixels) for _, hr in trial.domains.held_out]
    return _score(trial, trial.folder / "generated" / name, 0, pictures, [lr for lr, _ in trial.domains.held_out])


def score_enlarged(trial: Trial, name: str, enlarge: Callable[[Picture], Picture]) -> list[Score]:
    """Scores of a row's SR pictures of the held-out LR, or of the baseline's."""
    pictures = [enlarge(lr.pixels) for lr, _ in trial.domains.held_out]
    return _score(trial, trial.folder / "enlarged" / name, SCALE, pictures, [hr for _, hr in trial.domains.held_out])


def _score(
    trial: Trial, folder: Path, crop_border: int, pictures: Sequence[Picture], truth: Sequence[Photo]
) -> list[Score]:
    """Scores of the pictures, which are kept in `folder`."""
    for pixels, photo in zip(pictures, truth, strict=True):
        write_picture(folder / f"{photo.name}.png", pixels)
    judge = Judge(crop_border, trial.lpips)
    return [judge(pixels, photo.pixels) for pixels, photo in zip(pictures, truth, strict=True)]


def score_network(trial: Trial, name: str, network: nn.Module) -> list[Score]:
    return score_enlarged(trial, name, lambda lr: enlarged(network, SCALE, lr, trial.device))


def score_bicubic_hr(trial: Trial) -> list[Score]:
    """The baseline of SR networks: held-out LR, enlarged."""
    return score_enlarged(trial, RESIZED, lambda lr: resized(lr, SCALE))


def lacks(weights: PerceptualFiles, network: str) -> bool:
    """Whether a perceptual loss on this network has no weights."""
    try:
        weights.check(network, "")
    except InputError:
        return True
    return False
