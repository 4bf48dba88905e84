"""Batches of patches, as the training loop wants them."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from models.data import Cached, InputError, PatchDataset, Source, make_loader
from models.data.patches import Batch
from models.train import distributed
from models.train.device import to_device
from models.train.loop import LoopConfig


def with_cache(source: Source, run: LoopConfig) -> Source:
    """The source, with as many decoded pictures kept in memory as the run allows."""
    return Cached(source, run.cache_megabytes * 2**20) if run.cache_megabytes else source


def loader(
    dataset: PatchDataset, batch: int, updates: int, run: LoopConfig, device: torch.device, option: str
) -> Callable[[int], Generator[Batch, None, None]]:
    """This rank's batches from a given update on, as `models.train.loop.Stage` wants them.

    `batch` counts all ranks. Raises InputError naming `option` if the batch cannot be divided among them.
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
