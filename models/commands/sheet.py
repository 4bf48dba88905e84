"""`python -m models sheet`: results of several methods side by side, in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from models.commands.folders import named_folders
from models.config import Bound, check_bounds
from models.data import InputError, pair_files, read_photo
from models.data.files import readable
from models.evaluate import pictures
from models.evaluate.examples import resized
from models.evaluate.pictures import SheetCell, enlarge_nearest
from models.evaluate.validation import MEASURES, Judge, caption
from models.networks.weight_options import LPIPSFiles, load_lpips
from models.train.run import make_console

_FIRST = 4
_MEASURES = ("psnr", "lpips", "hed-lpips")  # captions have room for two


@dataclass(frozen=True)
class SheetOptions(LPIPSFiles):
    """Draws results of several methods side by side: LR, bicubic, one column for each method, reference.

    A row is a picture, in a window where the results differ, whichever is the best, and the reference has edges. Under
    each stand the PSNR of the whole picture and, if its weights are given, LPIPS. Pictures are matched by name as
    `evaluate` does.
    """

    methods: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME=]DIR ...")]
    """Folders of results, one for each method, under the folder's name or the one given."""
    hr: Path
    """Folder of the reference pictures, of the same sizes."""
    lr: Path
    """Folder of the LR pictures, smaller by a whole number of times."""
    out: Path
    """The picture to write, such as sheet.png."""
    pictures: tuple[str, ...] = ()
    """Names of the pictures to show; the first four by default."""
    crop: Annotated[int, Bound(16, 4096)] = 128
    """Side of the window in HR pixels."""
    crop_border: Annotated[int, Bound(0, 1024)] = 4
    """Pixels cut from every side before PSNR, by convention the scale; LPIPS sees whole pictures."""


def main(arguments: Sequence[str]) -> int:
    return run_sheet(tyro.cli(SheetOptions, args=arguments, prog="python -m models sheet"))


def run_sheet(options: SheetOptions) -> int:
    """Writes the sheet and returns 0. Raises InputError naming what is missing, cannot be read or has another size."""
    check_bounds(options)
    judge = Judge(options.crop_border, load_lpips(options, "--lpips") if options.given else None)
    folders = named_folders(options.methods)
    if taken := {"LR", "bicubic"} & folders.keys():
        raise InputError(f"{min(taken)} is a column of its own: give this folder another name, as in ours=DIR")
    folders = {"LR": options.lr, **folders}
    pairs = {name: pair_files(folder, options.hr) for name, folder in folders.items()}
    known = [hr.stem for _, hr in pairs["LR"]]
    for name in options.pictures:
        if name not in known:
            raise InputError(f"--pictures: no picture is named {name}, there are {', '.join(map(readable, known))}")
    rows, windows = [], []
    for name in options.pictures or known[:_FIRST]:
        at = known.index(name)
        cells = _cells({title: each[at][0] for title, each in pairs.items()}, pairs["LR"][at][1], judge)
        results = [cell.pixels for cell in cells[1:-1]]  # without LR and reference
        rows.append((name, cells))
        windows.append(pictures.telling_window(results, cells[-1].pixels, options.crop))
    measures = " / ".join(MEASURES[name].title for name in _MEASURES if name in judge.measures)
    pictures.save_sheet(options.out, rows, f"{measures} of the whole picture ({judge.convention})", windows, inches=1.6)
    make_console().out(f"{readable(str(options.out))}: {len(rows)} pictures", highlight=False)
    return 0


def _cells(paths: Mapping[str, Path], hr_path: Path, judge: Judge) -> list[SheetCell]:
    """LR, the bicubic picture, results, reference, all of the reference's size; `paths` begins with LR."""
    reference = read_photo(hr_path).pixels
    (_, lr_path), *others = paths.items()
    lr = read_photo(lr_path).pixels
    scale = max(1, reference.shape[0] // lr.shape[0])
    results = {"LR": enlarge_nearest(lr, scale), "bicubic": resized(lr, scale)}
    results |= {name: read_photo(path).pixels for name, path in others}
    cells = []
    for name, pixels in results.items():
        if pixels.shape != reference.shape:
            path = paths.get(name, lr_path)
            times = f", enlarged {scale} times," if path == lr_path else ""
            (height, width, _), (wanted_height, wanted_width, _) = pixels.shape, reference.shape
            raise InputError(
                f"{path}{times} is {width} x {height} pixels, {hr_path} is {wanted_width} x {wanted_height}"
            )
        score = {} if name == "LR" else judge(pixels, reference)
        shown = {measure: score[measure] for measure in _MEASURES if measure in score}
        cells.append(SheetCell(readable(name), pixels, caption(shown)))
    return [*cells, SheetCell("reference", reference, "")]
