"""`python -m models usrda --dry-run`: the memory that a training step needs, for each way of saving some."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.optim import Optimizer

import srkernels
from models.networks.vgg import VGG
from models.train.budget import Saving
from models.train.memory import (
    MemoryCount,
    count_step,
    empty_batch,
    imagine,
    imagined,
    kept_networks,
    largest_batch,
)
from models.train.run import make_console
from models.usrda.build import WeightFiles, assemble, random_features
from models.usrda.config import USRDAConfig
from models.usrda.steps import USRDAStep


@dataclass(frozen=True)
class Option:
    """A way of saving memory. `backend` is srkernels' if it is requested by name, None if ops choose."""

    precision: str
    saving: Saving
    backend: str | None


@dataclass(frozen=True)
class MemoryRow:
    """What a step needs on a batch as configured, and the largest batch that fits the card, 0 for none."""

    option: Option
    count: MemoryCount
    largest: int


def print_memory(config: USRDAConfig, preset: str, card: float) -> None:
    """Counts and prints; nothing is computed. `card` is a GPU's memory in GB of 1e9 bytes."""
    console = make_console()
    rows = count_rows(config, 1e9 * card, options(config), console)
    console.print(table(rows, config, preset, card), *conditions(config), sep="\n", highlight=False)


def options(config: USRDAConfig) -> list[Option]:
    """The run as configured, and what else there is; the backend by name is the environment's or that for GPUs."""
    savings = [Saving(), Saving(recompute=True)]
    if config.perceptual.network in VGG:
        savings.append(Saving(recompute=True, feature_signs=True))
    found = [Option(*each) for each in product(("fp32", "bf16"), savings, (None, _named_backend() or "triton"))]
    chosen = _chosen(config)
    return found if chosen in found else [chosen, *found]


def _chosen(config: USRDAConfig) -> Option:
    run = config.run
    return Option(run.precision, Saving(run.recompute, run.feature_signs), _named_backend())


def count_rows(
    config: USRDAConfig, limit: float, wanted: Sequence[Option], console: Console | None = None
) -> list[MemoryRow]:
    """Counts the configuration with each option, for a card of `limit` bytes; the console shows progress."""
    rows = []
    built = {saving: _build(config, saving) for saving in {option.saving for option in wanted}}
    shown = console is not None and console.is_terminal
    with imagined():
        for step, networks in built.values():
            imagine(networks, _optimizers(step))
        for option in track(wanted, "counting", console=console, transient=True, disable=not shown):
            step, networks = built[option.saving]
            # fp16 stands in for bf16, which has the same size, because some CPUs choose ops of their own for bf16.
            step = step.in_precision(torch.float16 if option.precision == "bf16" else None)
            with srkernels.use_backend(option.backend):
                count = functools.cache(functools.partial(_count, config, step, networks))
                rows.append(MemoryRow(option, count(config.batch), largest_batch(count, limit, config.batch)))
    return rows


def _build(config: USRDAConfig, saving: Saving) -> tuple[USRDAStep, list[nn.Module]]:
    """The step on the meta device, and all networks that a run keeps."""
    config = replace(config, run=replace(config.run, **saving._asdict(), compile=False))
    with torch.device("meta"):
        features = random_features(config)
        step = assemble(config, features, WeightFiles(), torch.device("meta"))
    return step, kept_networks(step, average=config.run.ema > 0)


def _optimizers(step: USRDAStep) -> tuple[Optimizer, Optimizer]:
    return step.players.optimizer_g, step.players.optimizer_d


def _count(config: USRDAConfig, step: USRDAStep, networks: Sequence[nn.Module], batch: int) -> MemoryCount:
    given = empty_batch(config.batch_shapes(batch), config.run.layout)
    return count_step(step, given, networks, _optimizers(step))


def _named_backend() -> str | None:
    return os.environ.get("SRKERNELS_BACKEND") or None


def table(rows: Sequence[MemoryRow], config: USRDAConfig, preset: str, card: float) -> Table:
    """Gigabytes of 1e9 bytes; the run as configured is marked."""
    chosen = _chosen(config)
    title = f"{preset}: GB of a step on a batch of {config.batch}"
    shown = Table("", "precision", "recompute", "signs", "ops", title=title)
    for name in ("networks", "gradients", "optimiser", "activations", "peak", f"batch in\n{card:g} GB"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        option, count = row.option, row.count
        sizes = (count.networks, count.gradients, count.optimizer, count.activations, count.peak)
        shown.add_row(
            ">" if option == chosen else "",
            option.precision,
            "yes" if option.saving.recompute else "no",
            "yes" if option.saving.feature_signs else "no",
            option.backend or "automatic",
            *(f"{size / 1e9:.2f}" for size in sizes),
            str(row.largest or "none"),
            style="bold" if option == chosen else None,
        )
    return shown


def conditions(config: USRDAConfig) -> list[str]:
    """What was counted and what was not."""
    named = _named_backend() or "triton"
    lines = [
        f"> the run as configured; crops of {config.crop} (HR) and {config.lr_crop} pixels (LR); 1 GB is 1e9 bytes",
        "counted: all tensors of one process when a step needs most; no picture is read, nothing is computed",
        "not counted: cuDNN's workspaces, the CUDA context, what the allocator loses between blocks",
        "ops: automatic is eager PyTorch for convolutions on a GPU, whatever they keep; kernels asked for by name,",
        f"SRKERNELS_BACKEND={named}, keep less and have not been timed against cuDNN yet",
        "recompute: --run.recompute; signs: --run.feature-signs",
    ]
    return [*lines, "--run.compile is left out of the count"] if config.run.compile else lines
