"""What the stages of every method have in common: their pictures, their batches, and how an SR network is tried."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models import distributed
from models.checkpoint import TrainingStates
from models.data import Cached, InputError, PatchDataset, Source, eight_bit_rgb, make_loader, to_pixels, to_tensor
from models.data.patches import Batch
from models.device import to_device
from models.loop import LoopConfig
from models.pictures import enlarge_nearest
from models.resize import bicubic
from models.tiling import enlarge_tiled
from models.validation import Example, Pixels

HeldOut = Iterable[tuple[str, Pixels, Pixels]]

# How large pictures go through a network, in LR pixels; at x4 the overlap is the reach of the paper's DSN.
TILES = {"tile": 256, "overlap": 16}

# What is tried on training pictures where nothing is held out: how many, and how large at most (LR pixels).
_TRIED, TRIED_SIDE = 3, 192


@dataclass(frozen=True)
class Inputs:
    """Sources of pictures.

    Attributes:
        hr: clean HR pictures.
        real_lr: LR pictures of the target domain, of other scenes.
        held_out: gives the held-out (name, LR, HR) of the target domain, one after the other; None if there are none.
    """

    hr: Source
    real_lr: Source
    held_out: Callable[[], HeldOut] | None = None


def cached(source: Source, run: LoopConfig) -> Source:
    """The source with as many of its pictures decoded in memory as the run wants."""
    return Cached(source, run.cache_megabytes * 2**20) if run.cache_megabytes else source


def loader(
    dataset: PatchDataset, batch: int, updates: int, run: LoopConfig, device: torch.device, option: str
) -> Callable[[int], Generator[Batch, None, None]]:
    """This rank's batches from an update's number on, as `models.loop.Stage` wants them.

    `batch` counts all ranks. Raises InputError naming `option`, its name, if it cannot be shared out.
    """
    if batch % distributed.world_size():
        raise InputError(f"{option} of {batch} cannot be shared out to {distributed.world_size()} ranks")

    def batches(done: int) -> Generator[Batch, None, None]:
        return make_loader(
            dataset,
            batch,
            done,
            updates - done,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=run.workers,
            pin_memory=device.type == "cuda",
        )

    return batches


def first_batch(dataset: PatchDataset, batch: int, run: LoopConfig, device: torch.device) -> dict[str, Tensor]:
    """The batch of a run's first update, on the device."""
    return to_device(next(make_loader(dataset, batch, 0, 1)), device, run.layout)


def sr_examples(inputs: Inputs, scale: int, side: int) -> Iterator[Example]:
    """What an SR network is tried on: the held-out pairs or, failing these, real LR of `side` pixels at least."""
    if inputs.held_out is None:
        pairs: Iterable[tuple[str, Pixels, Pixels | None]] = (
            (name, lr, None) for name, lr in tried(inputs.real_lr, side, TRIED_SIDE)
        )
    else:
        pairs = inputs.held_out()
    for name, lr, hr in pairs:
        yield Example(name, lr, {"LR": enlarge_nearest(lr, scale), "bicubic": resized(lr, scale)}, hr)


def enlarged(generator: nn.Module, scale: int, lr: Pixels, device: torch.device) -> Pixels:
    """The SR network's picture, made tile by tile, without compiling anything for its size."""
    with torch.compiler.set_stance("force_eager"):
        return enlarge_tiled(lambda x: generator(x.to(device)), scale, lr, **TILES)


def tried(source: Source, least: int, side: int) -> Iterator[tuple[str, Pixels]]:
    """The middles of the first pictures that can be read and have `least` pixels a side, as uint8 RGB."""
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


def middle(pixels: Pixels, side: int) -> Pixels:
    """The middle of a picture, `side` pixels a side at most."""
    top, left = (max(0, (whole - side) // 2) for whole in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def resized(pixels: Pixels, scale: float) -> Pixels:
    """The bicubic picture, rounded to 8 bits."""
    return to_pixels(bicubic(to_tensor(pixels)[None], scale)[0])


def newest_weights(folder: Path, name: str, updates: int) -> Path:
    """The weights that a stage of so many updates left, the averaged ones where there are some.

    Raises InputError if the stage was not trained, or not to its end.
    """
    steps = TrainingStates(folder / "training_states", keep=1).steps()
    if not steps:
        raise InputError(f"no weights of a {name} in {folder / 'models'}: train that stage first, or name a file")
    if steps[-1] < updates:
        raise InputError(
            f"stage {folder.name} stopped behind update {steps[-1]} of {updates}: train it to its end first"
        )
    averaged = folder / "models" / f"{steps[-1]}_{name}_ema.safetensors"
    return averaged if averaged.exists() else averaged.with_name(f"{steps[-1]}_{name}.safetensors")
