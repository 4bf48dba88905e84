"""What every method measures and draws on held-out pictures while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models import metrics, pictures
from models.data import InputError, Source, eight_bit_rgb

Pixels = NDArray[np.uint8]
SHOWN = 4


class Score(NamedTuple):
    """PSNR in dB and SSIM, in RGB, `crop_border` pixels cut, 8 bit."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Example:
    """A picture that a network is tried on, what there is to compare with, and the truth if it is known.

    `shown` are pictures of the output's size by title, drawn left of it; the last is the baseline that is measured.
    """

    name: str
    given: Pixels
    shown: dict[str, Pixels]
    reference: Pixels | None = None


class Pairs:
    """Held-out (name, LR, HR), read one after the other each time they are asked for; uint8 RGB.

    Raises InputError if an LR picture has no HR picture of its name, or is not `scale` times smaller.
    """

    def __init__(self, lr: Source, hr: Source, scale: int) -> None:
        self._lr, self._hr, self._scale = lr, hr, scale
        indices = {name: index for index, name in enumerate(hr.names)}
        for index, name in enumerate(lr.names):
            if name not in indices:
                raise InputError(f"no HR picture is named {name}, to go with {lr.label(index)}")
        self._partners = [indices[name] for name in lr.names]

    def __call__(self) -> Iterator[tuple[str, Pixels, Pixels]]:
        for index, partner in enumerate(self._partners):
            lr, hr = eight_bit_rgb(self._lr.read(index)), eight_bit_rgb(self._hr.read(partner))
            height, width = (side * self._scale for side in lr.shape[:2])
            if not (0 <= hr.shape[0] - height < self._scale and 0 <= hr.shape[1] - width < self._scale):
                raise InputError(
                    f"{self._lr.label(index)} is {lr.shape[1]} x {lr.shape[0]} pixels, which is not 1/{self._scale} of "
                    f"{self._hr.label(partner)}, {hr.shape[1]} x {hr.shape[0]}"
                )
            yield self._lr.names[index], lr, hr[:height, :width]


@torch.inference_mode()
def validate(
    apply: Callable[[Pixels], Pixels], examples: Iterable[Example], crop_border: int, sheet: Path
) -> dict[str, float]:
    """Mean `psnr` and `ssim` over the examples that have a reference, and a sheet of the first ones at `sheet`.

    `apply` gives a network's picture of an example's input. Without any reference the result is empty and the sheet
    alone is made.
    """
    scores, rows = [], []
    for index, example in enumerate(examples):
        ours = apply(example.given)
        if example.reference is not None:
            scores.append(score(ours, example.reference, crop_border))
        if index < SHOWN:
            rows.append((example.name, _cells(example, ours, crop_border)))
    if rows:
        note = f"PSNR / SSIM of the whole picture ({metrics.convention(crop_border, y_channel=False)})"
        pictures.save_sheet(sheet, rows, note if scores else "")
    if not scores:
        return {}
    return {"psnr": float(np.mean([s.psnr for s in scores])), "ssim": float(np.mean([s.ssim for s in scores]))}


def score(ours: Pixels, reference: Pixels, crop_border: int) -> Score:
    options = {"crop_border": crop_border, "y_channel": False}
    return Score(metrics.psnr(ours, reference, **options), metrics.ssim(ours, reference, **options))


def _cells(example: Example, ours: Pixels, crop_border: int) -> list[pictures.SheetCell]:
    reference = example.reference

    def caption(pixels: Pixels) -> str:
        return "" if reference is None else "{:.2f} dB / {:.4f}".format(*score(pixels, reference, crop_border))

    *plain, (title, baseline) = example.shown.items()
    cells = [pictures.SheetCell(name, pixels, "") for name, pixels in plain]
    cells += [pictures.SheetCell(title, baseline, caption(baseline)), pictures.SheetCell("ours", ours, caption(ours))]
    if reference is not None:
        cells.append(pictures.SheetCell("reference", reference, "PSNR / SSIM"))
    return cells
