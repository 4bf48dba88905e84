"""`python -m models evaluate`: how close SR pictures come to their HR pictures."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.progress import track
from rich.table import Table

from models.config import Bound, check_bounds
from models.data import InputError, Picture, pair_files, read_photo
from models.data.files import readable, write_whole
from models.evaluate import metrics
from models.networks.weight_options import LPIPSFiles, load_lpips
from models.train.run import make_console

PictureRow = tuple[str, list[float]]


@dataclass(frozen=True)
class EvaluateOptions(LPIPSFiles):
    """Measures PSNR and SSIM, in RGB and in Y, and LPIPS if its weights are given, of SR pictures against HR ones.

    Pictures are matched by name: baby.png goes with baby.png, or with a name that adds one word after an underscore,
    such as baby_x4.png or baby_out.png. All are measured as 8-bit RGB. Pairs that are too small for LPIPS are named and
    left out of its mean.
    """

    sr: Path
    """Folder of SR pictures."""
    hr: Path
    """Folder of HR pictures, of the same sizes."""
    crop_border: Annotated[int, Bound(0, 1024)] = 4
    """Pixels cut from every side before PSNR and SSIM, by convention the scale; LPIPS sees whole pictures."""
    csv: Path | None = None
    """A file for the numbers, with a line for each picture and one for the mean."""


@dataclass(frozen=True)
class _Measure:
    name: str
    convention: str
    digits: int
    of: Callable[[Picture, Picture], float]
    least_side: int = 0  # pixels; a smaller picture measures NaN


def main(arguments: Sequence[str]) -> int:
    return run_evaluate(tyro.cli(EvaluateOptions, args=arguments, prog="python -m models evaluate"))


def run_evaluate(options: EvaluateOptions) -> int:
    """Prints a table, writes `options.csv`, and returns 0. One pair of pictures is in memory at a time.

    A pair too small for LPIPS has a dash in the table and an empty cell in the file.

    Raises InputError if a folder is empty, a picture has no partner or not its size, or weights cannot be used.
    """
    check_bounds(options)
    measures = _measures(options)
    pairs = pair_files(options.sr, options.hr)
    rows = [(hr.stem, _measure(measures, sr, hr)) for sr, hr in track(pairs, description="evaluate", transient=True)]
    rows.append(("mean", [_mean(column) for column in zip(*(values for _, values in rows), strict=True)]))
    console = make_console()
    console.print(_table(measures, rows))
    if small := [readable(name) for name, values in rows[:-1] if any(map(math.isnan, values))]:
        name, least = measures[-1].name, measures[-1].least_side
        console.out(f"less than {least} pixels a side, too small for {name}: {', '.join(small)}", highlight=False)
    if options.csv is not None:
        _write_csv(options.csv, measures, rows)
    return 0


def _measures(options: EvaluateOptions) -> list[_Measure]:
    measures = []
    for y_channel in (False, True):
        how = {"crop_border": options.crop_border, "y_channel": y_channel}
        for name, digits, of in (("PSNR (dB)", 2, metrics.psnr), ("SSIM", 4, metrics.ssim)):
            measures.append(_Measure(name, metrics.convention(**how), digits, partial(of, **how)))
    if options.given:
        network = load_lpips(options, "--lpips")
        shown = f"{network.convention}, {metrics.convention(0, y_channel=False)}"
        measures.append(_Measure(network.name, shown, 4, partial(metrics.lpips, network), network.least_side))
    return measures


def _measure(measures: Sequence[_Measure], sr_path: Path, hr_path: Path) -> list[float]:
    sr, hr = read_photo(sr_path).pixels, read_photo(hr_path).pixels
    try:
        return [measure.of(sr, hr) for measure in measures]
    except ValueError as error:
        raise InputError(f"cannot compare {sr_path} with {hr_path}: {error}") from error


def _mean(column: Sequence[float]) -> float:
    """Of what could be measured."""
    measured = [value for value in column if not math.isnan(value)]
    return float(np.mean(measured)) if measured else math.nan


def _table(measures: Sequence[_Measure], rows: Sequence[PictureRow]) -> Table:
    table = Table("picture")
    for measure in measures:
        table.add_column(f"{measure.name}\n{measure.convention}", justify="right")
    for name, values in rows:
        cells = [
            "-" if math.isnan(value) else f"{value:.{measure.digits}f}"
            for measure, value in zip(measures, values, strict=True)
        ]
        table.add_row(readable(name), *cells, style="bold" if (name, values) is rows[-1] else None)
    return table


def _write_csv(path: Path, measures: Sequence[_Measure], rows: Sequence[PictureRow]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(["picture", *(f"{measure.name}, {measure.convention}" for measure in measures)])
            writer.writerows([name, *("" if math.isnan(value) else value for value in values)] for name, values in rows)

    try:
        write_whole(path, write)
    except OSError as error:
        raise InputError(f"--csv: cannot write {path}: {error.strerror}") from error
