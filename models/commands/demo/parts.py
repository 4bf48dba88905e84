"""What a method brings to the demo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from models.commands.demo.timing import Work
from models.data.photographs import Domains
from models.networks.weight_options import PerceptualFiles
from models.train.loop import History
from models.train.run import Run

C = TypeVar("C")


@dataclass(frozen=True)
class DemoJob(Generic[C]):
    """What a method works with: its options, the pictures, the run, its device, and networks that perceive."""

    config: C
    domains: Domains
    run: Run
    device: torch.device
    weights: PerceptualFiles


@dataclass(frozen=True)
class Trained:
    """The SR network before its first update and after its last, and the history of every stage, its own last."""

    before: nn.Module
    after: nn.Module
    histories: Mapping[str, History]


@dataclass(frozen=True)
class DemoParts(Generic[C]):
    """What a method brings.

    Attributes:
        title: its name.
        config, load_preset, check: its options.
        teacher: the network of its SR network's perceptual loss, "none" without one.
        train: all its stages, into the run's folder.
        timed: the rows of the timing table, as (title, work, factor on the number of interleaved pairs).
        ops: the ops of srkernels that it calls.
        draw: its own pictures, into a folder.
    """

    title: str
    config: type[C]
    load_preset: Callable[[str], C]
    check: Callable[[C, PerceptualFiles], None]
    teacher: Callable[[C], str]
    train: Callable[[DemoJob[C]], Trained]
    timed: Callable[[DemoJob[C]], Sequence[tuple[str, Work, int]]]
    ops: tuple[str, ...]
    draw: Callable[[DemoJob[C], Path], None]
