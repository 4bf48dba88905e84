"""`--run.memory`: what a run keeps for its backward passes, chosen so that a step fits a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from models.config import bytes_of
from models.data import InputError
from models.train import distributed
from models.train.loop import LoopConfig
from models.train.memory import MemoryCount, count_step, empty_batch, imagine, imagined, kept_networks
from models.train.players import Step


class Saving(NamedTuple):
    """What a run keeps less of for its backward passes, by the names of its options."""

    recompute: bool = False
    feature_signs: bool = False

    def __str__(self) -> str:
        chosen = [f"--run.{name.replace('_', '-')}" for name, value in self._asdict().items() if value]
        return " ".join(chosen) or "all activations kept"


# Fastest first: signs cost passes over VGG's activations, recomputing runs the generator's blocks once more.
_SAVINGS = (Saving(), Saving(feature_signs=True), Saving(recompute=True), Saving(recompute=True, feature_signs=True))


def fit(
    run: LoopConfig, vgg: bool, count: Callable[[LoopConfig], MemoryCount], stage: str, say: Callable[[str], None]
) -> LoopConfig:
    """The run with the fastest saving of which `count` says that a step fits `run.memory`; as it is without a budget.

    What the run saves anyway, it saves here too; without a `vgg` there are no signs. `say` is told the choice. Raises
    InputError if nothing fits.
    """
    if run.memory is None:
        return run
    budget, counts = round(bytes_of(run.memory)), {}
    for saving in _SAVINGS:
        useful = vgg or saving.feature_signs == run.feature_signs
        if not useful or saving.recompute < run.recompute or saving.feature_signs < run.feature_signs:
            continue
        tried = replace(run, **saving._asdict())
        counts[saving] = count(tried).peak
        if counts[saving] <= budget:
            say(f"  {stage}: a step needs {_gigabytes(counts[saving])} of {run.memory} by count: {saving}")
            return tried
    leanest = min(counts, key=counts.__getitem__)
    raise InputError(
        f"--run.memory {run.memory} is too little: by count a step of {stage} needs {_gigabytes(counts[leanest])} in "
        f"{run.precision} with {leanest}; a smaller batch or crop needs less"
    )


def count_run(step: Step, shapes: Mapping[str, Sequence[int]], run: LoopConfig, device: torch.device) -> MemoryCount:
    """The memory of a step on the meta device, as it will run on `device`, by itself if there are other ranks.

    `shapes` are those of a batch; no parameter of the step can be used for anything else afterwards.
    """
    players = step.players
    networks, optimizers = kept_networks(step, average=run.ema > 0), (players.optimizer_g, players.optimizer_d)
    precision = players.precision
    if precision is torch.bfloat16 and device.type != "cpu":
        precision = torch.float16  # of the same size; some CPUs choose ops of their own for bf16
    with imagined(), distributed.alone():
        imagine(networks, optimizers)
        return count_step(step.in_precision(precision), empty_batch(shapes, run.layout), networks, optimizers)


def _gigabytes(size: int) -> str:
    """Rounded up, so that a budget of what is printed is enough."""
    return f"{math.ceil(size / 1e7) / 100:.2f} GB"
