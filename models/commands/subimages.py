"""`python -m models subimages`: cuts photographs into overlapping squares, little more to decode than a crop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import track

from models.config import Bound, Pixels, check_bounds
from models.data import FolderSource, InputError, check_names, locked, write_lmdb, write_picture


@dataclass(frozen=True)
class SubimagesOptions:
    """Cuts the pictures of a folder into overlapping PNG squares, named as BasicSR names them: photo_s001.png."""

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A folder of pictures."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder to write, or with --lmdb the folder whose contents go into OUT.lmdb."""
    size: Pixels = 480
    """Side of a square in pixels; a smaller picture is kept as it is."""
    step: Pixels = 240
    """Distance between two squares; the last ones touch the border."""
    lmdb: bool = False
    """Also writes the database OUT.lmdb."""
    workers: Annotated[int, Bound(1, 128)] = 2
    """Pictures cut in parallel."""


def main(arguments: Sequence[str]) -> int:
    return run_subimages(tyro.cli(SubimagesOptions, args=arguments, prog="python -m models subimages"))


def run_subimages(options: SubimagesOptions) -> int:
    """Writes the squares, each whole or not at all, and returns 0. Raises InputError naming what cannot be used."""
    check_bounds(options)
    if options.step > options.size:
        raise InputError(f"--step must be at most --size, got {options.step} and {options.size}")
    source = FolderSource(options.input)
    if os.path.realpath(options.output) == os.path.realpath(options.input):
        raise InputError(f"{options.output} is the folder to read")
    check_names(source)
    database = options.output.with_name(f"{options.output.name}.lmdb")
    if options.lmdb and database.exists():
        raise InputError(f"cannot write {database}: it exists")

    def square_path(index: int, number: int) -> Path:
        return options.output / f"{source.names[index]}_s{number:03}.png"

    def cut(index: int) -> None:
        pixels = source.read(index)
        corners = (
            (top, left) for top in _starts(pixels.shape[0], options) for left in _starts(pixels.shape[1], options)
        )
        for number, (top, left) in enumerate(corners, 1):
            square = pixels[top : top + options.size, left : left + options.size]
            write_picture(square_path(index, number), square)
        while (left_over := square_path(index, number := number + 1)).exists():  # of a run with other squares
            left_over.unlink()

    with locked(options.output):
        with ThreadPoolExecutor(options.workers) as pool:
            list(track(pool.map(cut, range(len(source))), total=len(source), description="pictures"))
        if options.lmdb:
            write_lmdb(options.output, database)
    return 0


def _starts(side: int, options: SubimagesOptions) -> list[int]:
    last = max(0, side - options.size)
    return sorted({*range(0, last + 1, options.step), last})
