"""The pictures that a network is tried on, and large pictures through a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from models.data import InputError, Inputs, Picture, Source, eight_bit_rgb, to_pixels, to_tensor
from models.data.resize import bicubic
from models.evaluate.pictures import enlarge_nearest
from models.evaluate.tiling import enlarge_tiled

# How large pictures go through a network, in LR pixels; at x4 the overlap is the reach of the paper's DSN.
TILES = {"tile": 256, "overlap": 16}

# Where nothing is held out, networks are tried on training pictures: how many, and how large at most (LR pixels).
_TRIED, TRIED_SIDE = 3, 192


@dataclass(frozen=True)
class Example:
    """A picture that a network is tried on, pictures to compare with, and the truth if it is known.

    `shown` holds pictures of the output's size by title, drawn to its left; the last is the baseline that is measured.
    """

    name: str
    given: Picture
    shown: dict[str, Picture]
    reference: Picture | None = None


def sr_examples(inputs: Inputs, scale: int, side: int) -> Iterator[Example]:
    """Examples for an SR network: the held-out pairs or, if there are none, real LR of at least `side` pixels."""
    if inputs.held_out is None:
        pairs: Iterable[tuple[str, Picture, Picture | None]] = (
            (name, lr, None) for name, lr in tried(inputs.real_lr, side, TRIED_SIDE)
        )
    else:
        pairs = inputs.held_out()
    for name, lr, hr in pairs:
        yield Example(name, lr, {"LR": enlarge_nearest(lr, scale), "bicubic": resized(lr, scale)}, hr)


def enlarged(generator: nn.Module, scale: int, lr: Picture, device: torch.device) -> Picture:
    """The SR network's output, computed tile by tile, without compiling anything for the picture's size."""
    with torch.compiler.set_stance("force_eager"):
        return enlarge_tiled(lambda x: generator(x.to(device)), scale, lr, **TILES)


def tried(source: Source, least: int, side: int) -> Iterator[tuple[str, Picture]]:
    """The centres of the first readable pictures whose sides are at least `least` pixels, as uint8 RGB."""
    found = 0
    for index in range(len(source)):
        try:
            pixels = eight_bit_rgb(source.read(index))
        except InputError:
            continue
        if min(pixels.shape[:2]) < least:
            continue
        yield source.names[index], middle(pixels, side)
        found += 1
        if found == _TRIED:
            return


def middle(pixels: Picture, side: int) -> Picture:
    """The centre of a picture, at most `side` pixels a side."""
    top, left = (max(0, (whole - side) // 2) for whole in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def resized(pixels: Picture, scale: float) -> Picture:
    """The bicubic picture, rounded to 8 bits."""
    return to_pixels(bicubic(to_tensor(pixels)[None], scale)[0])
