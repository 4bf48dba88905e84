"""What a method brings to the profile: its steps, whole and taken apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from models.commands.profile.stopwatch import Stopwatch
from models.data import PatchDataset, Source

C = TypeVar("C")


@dataclass(frozen=True)
class Subject:
    """A step that can be profiled.

    Attributes:
        dataset, batch: its patches.
        update: the plain step, on a batch on the device.
        timed: the same, reporting its parts to the stopwatch.
        notes: what stands in for something that is missing.
    """

    dataset: PatchDataset
    batch: int
    update: Callable[[Mapping[str, Tensor]], object]
    timed: Callable[[Stopwatch], Callable[[Mapping[str, Tensor]], object]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProfileParts(Generic[C]):
    """What a method brings; `prepare` takes a stage, options, HR and real LR pictures, a folder for files, a device."""

    config: type[C]
    load_preset: Callable[[str], C]
    check: Callable[[C], None]
    stages: tuple[str, ...]
    prepare: Callable[[str, C, Source, Source, Path, torch.device], Subject]


def random_weights(network: str) -> str:
    """The note for a perceptual loss whose weights were not requested."""
    return f"random weights stand in for those of {network}: the time is the same"
