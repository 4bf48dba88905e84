"""What every method measures and draws on held-out pictures while it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from models.data import Picture
from models.evaluate import metrics, pictures
from models.evaluate.examples import Example
from models.networks import LPIPS
from models.networks.lpips import COMPARED_OF_VGG16
from models.networks.weight_options import PerceptualFiles, load_lpips
from models.train.job import TrainingJob

SHOWN = 4

# By measure: psnr in dB, ssim, and lpips or hed-lpips where there is a network for it.
Score = Mapping[str, float]


class Measure(NamedTuple):
    """How a measure is shown."""

    title: str
    digits: int
    unit: str = ""
    lower_is_better: bool = False


MEASURES = {
    "psnr": Measure("PSNR", 2, " dB"),
    "ssim": Measure("SSIM", 4),
    "lpips": Measure("LPIPS", 4, lower_is_better=True),
    "hed-lpips": Measure("HED-LPIPS", 4, lower_is_better=True),
}


@dataclass(frozen=True)
class Judge:
    """Scores pictures against references: PSNR and SSIM in RGB, 8 bit, `crop_border` pixels cut, and LPIPS if given."""

    crop_border: int
    lpips: LPIPS | None = None
    _baselines: dict[str, Score] = field(default_factory=dict, repr=False)

    def of_baseline(self, example: Example) -> Score:
        """Of the last picture of `example.shown`, kept by the example's name: it is the same at every validation."""
        if example.name not in self._baselines:
            *_, baseline = example.shown.values()
            self._baselines[example.name] = self(baseline, example.reference)
        return self._baselines[example.name]

    def __call__(self, ours: Picture, reference: Picture) -> Score:
        """NaN for a distance of pictures that are too small for it."""
        options = {"crop_border": self.crop_border, "y_channel": False}
        score = {"psnr": metrics.psnr(ours, reference, **options), "ssim": metrics.ssim(ours, reference, **options)}
        if self.lpips is not None:
            score[self.lpips.name.lower()] = metrics.lpips(self.lpips, ours, reference)
        return score

    @property
    def measures(self) -> tuple[str, ...]:
        return ("psnr", "ssim") if self.lpips is None else ("psnr", "ssim", self.lpips.name.lower())

    @property
    def titles(self) -> str:
        return " / ".join(MEASURES[name].title for name in self.measures)

    @property
    def convention(self) -> str:
        cut = metrics.convention(self.crop_border, y_channel=False)
        return cut if self.lpips is None else f"{cut}; {self.lpips.name} {self.lpips.convention}, crop 0"


def load_judge(job: TrainingJob, crop_border: int, network: str, layers: Sequence[str]) -> Judge:
    """The judge of a stage that trains with a perceptual loss on these layers of a network.

    Warns of a distance that judges by what is trained on. Raises InputError if the files of `job.weights` cannot be
    used.
    """
    lpips = load_perceptual(job.weights, job.device)
    if lpips is not None and (shared := _shared(network, layers, job.weights.lpips_trunk)):
        job.run.say(f"  the perceptual loss trains on {shared}, by which {lpips.name} judges", style="yellow")
    return Judge(crop_border, lpips)


def _shared(network: str, layers: Sequence[str], trunk: str) -> str:
    """What a perceptual loss compares of what LPIPS compares; before the ReLU or behind it is the same layer here."""
    if network == "lpips":
        return "the distance itself"
    judged = {layer.removeprefix("relu") for layer in COMPARED_OF_VGG16} if network == trunk == "vgg16" else ()
    return ", ".join(layer for layer in layers if layer.removeprefix("conv").removeprefix("relu") in judged)


def load_perceptual(weights: PerceptualFiles, device: torch.device) -> LPIPS | None:
    """LPIPS, if its files are named. Raises InputError if they cannot be used."""
    if not weights.given:
        return None
    with torch.random.fork_rng([]):  # first weights are random: training must not depend on who judges
        return load_lpips(weights, "--weights.lpips").to(device)


@torch.inference_mode()
def validate(
    apply: Callable[[Picture], Picture], examples: Iterable[Example], judge: Judge, sheet: Path
) -> dict[str, float]:
    """Mean scores over the examples that have a reference, and a sheet of the first ones at `sheet`.

    `apply` returns a network's picture for an example's input. Without any reference the result is empty and only the
    sheet is made.
    """
    scores, rows = [], []
    for index, example in enumerate(examples):
        ours = apply(example.given)
        found = None if example.reference is None else judge(ours, example.reference)
        if found is not None:
            scores.append(found)
        if index < SHOWN:
            rows.append((example.name, _cells(example, ours, found, judge)))
    if rows:
        note = f"{judge.titles} of the whole picture ({judge.convention})"
        pictures.save_sheet(sheet, rows, note if scores else "")
    return mean_score(scores) if scores else {}


def mean_score(scores: Sequence[Score]) -> dict[str, float]:
    """The mean of every measure over the pictures that it could be taken of; left out where there are none."""
    means = {}
    for name in scores[0]:
        values = [score[name] for score in scores if not math.isnan(score[name])]
        if values:
            means[name] = sum(values) / len(values)
    return means


def caption(score: Score) -> str:
    """The line under a picture, with a dash for what could not be measured."""
    shown = ((MEASURES[name], value) for name, value in score.items())
    return " / ".join(
        "-" if math.isnan(value) else f"{value:.{measure.digits}f}{measure.unit}" for measure, value in shown
    )


def _cells(example: Example, ours: Picture, found: Score | None, judge: Judge) -> list[pictures.SheetCell]:
    *plain, (title, baseline) = example.shown.items()
    cells = [pictures.SheetCell(name, pixels, "") for name, pixels in plain]
    if example.reference is None or found is None:
        return [*cells, pictures.SheetCell(title, baseline, ""), pictures.SheetCell("ours", ours, "")]
    return [
        *cells,
        pictures.SheetCell(title, baseline, caption(judge.of_baseline(example))),
        pictures.SheetCell("ours", ours, caption(found)),
        pictures.SheetCell("reference", example.reference, judge.titles),
    ]
