"""USR-DA's step, taken apart for `python -m models profile`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from models.commands.profile.parts import ProfileParts, Subject, random_weights
from models.commands.profile.stopwatch import Stopwatch, timed_both_ways, timed_optimizer, timed_update
from models.data import Inputs, Source
from models.train.losses import FeatureLoss
from models.usrda.build import WeightFiles, assemble, random_features
from models.usrda.config import USRDAConfig, check, load_preset
from models.usrda.stages import make_dataset
from models.usrda.steps import USRDAStep


def prepare(
    stage: str, config: USRDAConfig, hr: Source, real_lr: Source, folder: Path, device: torch.device
) -> Subject:
    """The step with fresh networks, and its patches; there is only one stage, and it writes no files."""
    torch.manual_seed(config.run.seed)
    features = random_features(config)
    notes = () if features is None else (random_weights(config.perceptual.network),)
    step = assemble(config, features, WeightFiles(), device)
    run = replace(config.run, grey_images="convert")  # some of the bundled photographs are grey
    dataset = make_dataset(replace(config, run=run), Inputs(hr, real_lr))
    return Subject(dataset, config.batch, step, lambda watch: timed(step, watch), notes)


def timed(step: USRDAStep, watch: Stopwatch) -> Callable[[Mapping[str, Tensor]], object]:
    """The step on the same networks, with everything it calls timed."""
    players, both = step.players, partial(timed_both_ways, watch)
    g = players.generator
    inside = replace(
        players,
        generator=SimpleNamespace(
            encoder=both(g.encoder, "encoder"),
            to_target=both(g.to_target, "G_t"),
            super_resolve=both(g.super_resolve, "G_SR"),
            parameters=g.parameters,
        ),
        discriminator=nn.ModuleDict(
            {name: both(network, "discriminators") for name, network in players.discriminator.items()}
        ),
        optimizer_g=timed_optimizer(watch, players.optimizer_g),
        optimizer_d=timed_optimizer(watch, players.optimizer_d),
    )
    features = None if step.features is None else _TimedFeatures(step.features, watch)
    return timed_update(watch, replace(step, players=inside, features=features))


class _TimedFeatures:
    """The perceptual loss of several images; `Timed` gives one tensor."""

    def __init__(self, features: FeatureLoss, watch: Stopwatch) -> None:
        self._features = features
        self._timed = timed_both_ways(watch, self._stacked, "perceptual loss")

    def each(self, images: Sequence[Tensor], target: Tensor) -> Sequence[Tensor]:
        return self._timed(target, *images).unbind()

    def _stacked(self, target: Tensor, *images: Tensor) -> Tensor:
        return torch.stack(self._features.each(images, target))


PROFILE = ProfileParts(config=USRDAConfig, load_preset=load_preset, check=check, stages=("usrda",), prepare=prepare)
