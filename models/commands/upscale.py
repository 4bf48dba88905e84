"""`python -m models upscale`: enlarges pictures with a trained network, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from models.config import Bound, check_bounds
from models.data import (
    IMAGE_SUFFIXES,
    InputError,
    check_writable,
    list_files,
    read_profiled,
    write_picture,
)
from models.data.files import readable
from models.evaluate.tiling import enlarge_tiled
from models.networks import RRDBNet, USRDAGenerator
from models.networks.weight_options import load_network
from models.train.device import pick_device


@dataclass(frozen=True)
class UpscaleOptions:
    """Enlarges a picture, or the pictures of a folder, with an SR network.

    Grey pictures stay grey, 16 bits stay 16, and alpha is kept, enlarged bicubically. They are turned upright as EXIF
    says, and an ICC colour profile goes into a PNG, JPEG or WebP file.
    """

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A picture, or a folder of pictures."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The picture to write, or for a folder the folder of PNG files to write, under the same names."""
    weights: Path
    """Weights of an RRDBNet or of a USR-DA generator, ours or published."""
    tile: Annotated[int, Bound(1, 10**6)] = 192
    """Side of the tiles that are enlarged at once, in input pixels. Memory grows with its square: with 192 and a
    published network, 2040 x 1356 pixels x4 take 1.5 GB on a CPU."""
    overlap: Annotated[int, Bound(0, 1024)] = 16
    """Input pixels around a tile that the network also sees, to avoid seams."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""
    bf16: bool = False
    """Computes in bf16, which is faster where the hardware supports it, and one digit less precise."""


def main(arguments: Sequence[str]) -> int:
    return run_upscale(tyro.cli(UpscaleOptions, args=arguments, prog="python -m models upscale"))


def run_upscale(options: UpscaleOptions) -> int:
    """Writes the enlarged pictures, each whole or not at all, and returns 0.

    Raises InputError naming the option, the weights or the picture that cannot be used; of a folder's pictures the
    others are enlarged first.
    """
    check_bounds(options)
    jobs = _jobs(options.input, options.output)
    device = pick_device(options.device)
    network = (
        load_network(options.weights, "--weights", (RRDBNet, USRDAGenerator))
        .to(device, memory_format=torch.channels_last)
        .eval()
    )

    def enlarge(rgb: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            return network(rgb.to(device, memory_format=torch.channels_last)).float()

    failed = 0
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        say = partial(progress.console.out, highlight=False)
        tiles = progress.add_task("tiles")
        for source, target in progress.track(jobs, description="pictures"):
            progress.update(tiles, description=readable(source.name))
            track = partial(progress.track, task_id=tiles)
            try:
                pixels, profile = read_profiled(source)
                height, width, channels = pixels.shape
                check_writable(target, pixels.dtype, (network.scale * height, network.scale * width, channels))
                enlarged = enlarge_tiled(enlarge, network.scale, pixels, options.tile, options.overlap, track)
                if not write_picture(target, enlarged, profile):
                    say(readable(f"note: {target} is without the colour profile of {source.name}: it cannot hold it"))
            except InputError as error:
                named = error if readable(str(source)) in str(error) else InputError(f"{source}: {error}")
                if len(jobs) == 1:
                    raise named from error
                say(f"error: {named}")
                failed += 1
    if failed:
        raise InputError(f"{failed} of {len(jobs)} pictures could not be enlarged")
    return 0


def _jobs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """(picture to read, picture to write)."""
    if source.is_dir():
        if target.is_file():
            raise InputError(f"{target} is a file; for the folder {source} it must be a folder")
        jobs = [(path, target / f"{path.stem}.png") for path in list_files(source, IMAGE_SUFFIXES, "image")]
    else:
        jobs = [(source, target / f"{source.stem}.png" if target.is_dir() else target)]
    for index, (path, written) in enumerate(jobs):
        if written.exists() and path.exists() and written.samefile(path):
            raise InputError(f"{written} would be written over the picture to read")
        if written in [other for _, other in jobs[:index]]:
            raise InputError(f"two pictures in {source} are named {path.stem}")
    return jobs
