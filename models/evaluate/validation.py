"""What every method measures and draws on held-out pictures while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from models.data import Picture
from models.evaluate import metrics, pictures
from models.evaluate.examples import Example

SHOWN = 4


class Score(NamedTuple):
    """PSNR in dB and SSIM, in RGB, `crop_border` pixels cut, 8 bit."""

    psnr: float
    ssim: float


@torch.inference_mode()
def validate(
    apply: Callable[[Picture], Picture], examples: Iterable[Example], crop_border: int, sheet: Path
) -> dict[str, float]:
    """Mean `psnr` and `ssim` over the examples that have a reference, and a sheet of the first ones at `sheet`.

    `apply` returns a network's picture for an example's input. Without any reference the result is empty and only the
    sheet is made.
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


def score(ours: Picture, reference: Picture, crop_border: int) -> Score:
    options = {"crop_border": crop_border, "y_channel": False}
    return Score(metrics.psnr(ours, reference, **options), metrics.ssim(ours, reference, **options))


def _cells(example: Example, ours: Picture, crop_border: int) -> list[pictures.SheetCell]:
    reference = example.reference

    def caption(pixels: Picture) -> str:
        return "" if reference is None else "{:.2f} dB / {:.4f}".format(*score(pixels, reference, crop_border))

    *plain, (title, baseline) = example.shown.items()
    cells = [pictures.SheetCell(name, pixels, "") for name, pixels in plain]
    cells += [pictures.SheetCell(title, baseline, caption(baseline)), pictures.SheetCell("ours", ours, caption(ours))]
    if reference is not None:
        cells.append(pictures.SheetCell("reference", reference, "PSNR / SSIM"))
    return cells
