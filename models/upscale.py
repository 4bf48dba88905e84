"""`python -m models upscale`: enlarges pictures with a trained network, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from models.data import (
    IMAGE_SUFFIXES,
    InputError,
    check_writable,
    list_files,
    read_image,
    to_pixels,
    to_tensor,
    write_picture,
)
from models.device import pick_device
from models.networks import RRDBNet, load_weights
from models.resize import bicubic

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class UpscaleOptions:
    """Enlarges a picture, or the pictures of a folder, with an SR network.

    Grey pictures stay grey, 16 bits stay 16, and alpha is kept, enlarged bicubically.
    """

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A picture, or a folder of pictures."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The picture to write, or for a folder the folder of PNG files to write, under the same names."""
    weights: Path
    """Weights of an RRDBNet, ours or published."""
    tile: int = 192
    """Side in input pixels of what is enlarged at once. Memory grows with its square: with 192 and a published network,
    2040 x 1356 pixels x4 take 1.5 GB on a CPU."""
    overlap: int = 16
    """Input pixels around a tile that the network sees besides, against seams."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""
    bf16: bool = False
    """Computes in bf16, which is faster where the hardware has it and costs a digit."""


def main(arguments: Sequence[str]) -> int:
    return run_upscale(tyro.cli(UpscaleOptions, args=arguments, prog="python -m models upscale"))


def run_upscale(options: UpscaleOptions) -> int:
    """Writes the enlarged pictures, each whole or not at all, and returns 0.

    Raises InputError naming the option, the weights or the picture that cannot be used.
    """
    if options.tile < 1 or options.overlap < 0:
        raise InputError(f"--tile must be at least 1 and --overlap 0, got {options.tile} and {options.overlap}")
    jobs = _jobs(options.input, options.output)
    device = pick_device(options.device)
    network = _load(options.weights).to(device, memory_format=torch.channels_last).eval()

    def enlarge(rgb: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            return network(rgb.to(device, memory_format=torch.channels_last)).float()

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        tiles = progress.add_task("tiles")
        for source, target in progress.track(jobs, description="pictures"):
            progress.update(tiles, description=source.name)
            pixels = read_image(source)
            check_writable(target, pixels.dtype, pixels.shape[2])
            track = partial(progress.track, task_id=tiles)
            write_picture(target, enlarge_tiled(enlarge, network.scale, pixels, options.tile, options.overlap, track))
    return 0


class _Span(NamedTuple):
    """One axis of a tile, in input pixels: what it gives, what the network sees for it, and the one in the other."""

    given: slice
    seen: slice
    inner: slice


Tile = tuple[_Span, _Span]


@torch.inference_mode()
def enlarge_tiled(
    enlarge: Callable[[Tensor], Tensor],
    scale: int,
    pixels: Pixels,
    tile: int,
    overlap: int,
    track: Callable[[Sequence[Tile]], Iterable[Tile]] = iter,
) -> Pixels:
    """(H, W, C) grey, RGB or RGBA to (scale * H, scale * W, C) of the same depth.

    Args:
        enlarge: (1, 3, h, w) in [0, 1] to (1, 3, scale * h, scale * w); h and w come as multiples of 4 / scale.
        tile: the picture is cut into parts of one size, of sides no longer than this (rounded up to such a multiple).
        overlap: pixels around a part that `enlarge` sees too, where the picture has any.
        track: wraps the list of tiles, to show progress.

    With an overlap no shorter than the reach of `enlarge`, the result is that of the whole picture at once.
    """
    multiple = math.ceil(4 / scale)
    height, width, channels = pixels.shape
    pixels = np.pad(pixels, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="symmetric")
    larger = np.empty((scale * pixels.shape[0], scale * pixels.shape[1], channels), pixels.dtype)
    rows, columns = (_spans(side, tile, overlap, multiple) for side in pixels.shape[:2])
    for y, x in track(list(product(rows, columns))):
        enlarged = _enlarge_channels(enlarge, scale, to_tensor(pixels[y.seen, x.seen])[None])[0]
        inner = enlarged[:, _times(scale, y.inner), _times(scale, x.inner)]
        larger[_times(scale, y.given), _times(scale, x.given)] = to_pixels(inner, pixels.dtype)
    return larger[: scale * height, : scale * width]


def _spans(side: int, tile: int, overlap: int, multiple: int) -> list[_Span]:
    part = multiple * math.ceil(side / math.ceil(side / tile) / multiple)
    margin = multiple * math.ceil(overlap / multiple)
    spans = []
    for start in range(0, side, part):
        stop = min(start + part, side)
        first = max(start - margin, 0)
        spans.append(_Span(slice(start, stop), slice(first, stop + margin), slice(start - first, stop - first)))
    return spans


def _times(scale: int, span: slice) -> slice:
    return slice(scale * span.start, scale * span.stop)


def _enlarge_channels(enlarge: Callable[[Tensor], Tensor], scale: int, image: Tensor) -> Tensor:
    if image.shape[1] == 1:
        return enlarge(image.expand(-1, 3, -1, -1)).clamp(0, 1).mean(1, keepdim=True)
    colour = enlarge(image[:, :3])
    if image.shape[1] == 3:
        return colour
    return torch.cat((colour, bicubic(image[:, 3:], scale).to(colour.device)), 1)


def _load(path: Path) -> RRDBNet:
    try:
        network = load_weights(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--weights: {error}") from error
    if not isinstance(network, RRDBNet):
        raise InputError(f"--weights: {path} holds a {type(network).__name__}, wanted an RRDBNet")
    return network


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
