"""DASR's two steps, taken apart for `python -m models profile`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from models.commands.profile.parts import ProfileParts, Subject, random_weights
from models.commands.profile.stopwatch import Stopwatch, Timed, timed_both_ways, timed_optimizer, timed_update
from models.dasr.build import (
    WeightFiles,
    build_dsn_step,
    build_filter,
    build_srn_step,
    random_distance,
    random_features,
)
from models.dasr.config import DASRConfig, PerceptualConfig, check, load_preset
from models.dasr.stages import cut_to, dsn_streams, srn_streams
from models.dasr.steps import DSNStep, SRNStep
from models.data import (
    InputError,
    Inputs,
    PatchDataset,
    Source,
    check_names,
    eight_bit_rgb,
    to_pixels,
    to_tensor,
    write_picture,
)
from models.data.files import write_whole
from models.data.resize import bicubic

# Generated pairs that are made up for stage srn; patches are drawn from these again and again.
_PAIRS = 16


def prepare(stage: str, config: DASRConfig, hr: Source, real_lr: Source, folder: Path, device: torch.device) -> Subject:
    """The step of a stage with fresh networks, and its patches."""
    torch.manual_seed(config.run.seed)
    none = PerceptualConfig("none")
    bare = replace(config, dsn=replace(config.dsn, perceptual=none), srn=replace(config.srn, perceptual=none))
    notes: tuple[str, ...] = ()
    if stage == "dsn":
        options, step = config.dsn, build_dsn_step(bare, WeightFiles(), device)
        streams = dsn_streams(bare, Inputs(hr, real_lr))
    else:
        options, step = config.srn, build_srn_step(bare, WeightFiles(), device, random_distance(bare, device))
        _write_pairs(hr, config.scale, build_filter(config.dsn.discriminator).stride, folder)
        streams = srn_streams(bare, Inputs(hr, real_lr), folder)
        notes += ("bicubic LR pictures and constant maps stand in for generated ones: the time is the same",)
    if options.perceptual.network != "none":
        step = replace(step, features=random_features(options.perceptual, config.run, device))
        notes += (random_weights(options.perceptual.network),)
    return Subject(
        PatchDataset(streams, config.run.seed, grey_images="convert"),
        options.batch,
        step,
        lambda watch: timed(step, watch),
        notes,
    )


def timed(step: DSNStep | SRNStep, watch: Stopwatch) -> Callable[[Mapping[str, Tensor]], object]:
    """The step on the same networks, with everything it calls timed."""
    players, both = step.players, partial(timed_both_ways, watch)
    gan = SimpleNamespace(
        generator=both(step.gan.generator, "adversarial losses"),
        discriminator=both(step.gan.discriminator, "adversarial losses"),
    )
    inside = replace(
        step,
        players=replace(
            players,
            generator=both(players.generator, "generator"),
            discriminator=both(players.discriminator, "discriminator"),
            optimizer_g=timed_optimizer(watch, players.optimizer_g),
            optimizer_d=timed_optimizer(watch, players.optimizer_d),
        ),
        view=both(step.view, "what D sees"),
        gan=gan,
        features=None if step.features is None else both(step.features, "perceptual loss"),
    )
    if isinstance(inside, SRNStep) and inside.distance is not None:
        inside = replace(inside, distance=Timed(watch, inside.distance, "distance map"))
    return timed_update(watch, inside)


def _write_pairs(hr: Source, scale: int, stride: int, folder: Path) -> None:
    """Bicubic LR pictures and constant maps of the first HR pictures, in the form that stage maps writes."""
    check_names(hr)
    for index in range(min(_PAIRS, len(hr))):
        try:
            pixels = eight_bit_rgb(hr.read(index))
        except InputError:
            continue
        lr = bicubic(to_tensor(cut_to(pixels, scale))[None], 1 / scale)[0]
        write_picture(folder / "lr" / f"{hr.names[index]}.png", to_pixels(lr))
        constant = np.full([side // stride for side in lr.shape[1:]], 0.5, dtype=np.float32)
        write_whole(folder / "maps" / f"{hr.names[index]}.npy", partial(np.save, arr=constant))


PROFILE = ProfileParts(config=DASRConfig, load_preset=load_preset, check=check, stages=("dsn", "srn"), prepare=prepare)
