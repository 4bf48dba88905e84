"""A fresh discriminator that learns to tell generated LR pictures from real ones, and its scores of held-out crops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Adam

from models.config import Batch, Bound, Features, Pixels, Rate, Updates
from models.data import (
    Cached,
    InputError,
    PatchDataset,
    Selected,
    Source,
    Stream,
    Unusable,
    as_rgb,
    read_usable,
    to_tensor,
)
from models.evaluate.statistics import Interval, interval, resample
from models.networks import PatchDiscriminator
from models.networks.frequency import frequency_filter
from models.train.losses import GANLoss

# Bytes of pictures that are kept, and how many patches of real LR tell the range of what D sees.
_CACHE = 2**30
_MEASURED = 64


@dataclass(frozen=True)
class JudgeConfig:
    """The discriminator, how long it learns, and what it is tried on."""

    frequency: Literal["haar", "gbfs", "average", "rgb"] = "haar"
    """What it sees: high Haar bands, a Gaussian or average high-pass, or the picture itself, colours and all."""
    num_feat: Features = 32
    """Features of its first layer."""
    crop: Pixels = 32
    """Side in pixels of the LR crops that it learns from and is tried on."""
    batch: Batch = 8
    """Crops of each group, and of real LR, per update."""
    updates: Updates = 500
    """Updates of one training."""
    learning_rate: Rate = 2e-3
    """Adam's."""
    held_out: Annotated[float, Bound(0, 1, above=True, below=True)] = 0.34
    """Share of the pictures that a training never sees, drawn anew for each seed."""
    max_crops: Annotated[int, Bound(2, 10_000)] = 400
    """Held-out crops of a group that are scored per seed, at most."""


class Scored(NamedTuple):
    """What D gave the held-out crops of a group: scores from 0, generated, to 1, real.

    `owners` says, crop by crop, which of the pictures, by name, it is from.
    """

    scores: NDArray[np.float64]
    owners: NDArray[np.int64]
    pictures: list[str]


class Gap(NamedTuple):
    """The area under the ROC curve of a group against real LR: 0.5 if D cannot tell them apart, 1 if it always can.

    `interval` holds 95 %, None for a single picture and seed; `each` is the area of every seed.
    """

    area: float
    interval: Interval | None
    each: list[float]


def judge(sources: Sequence[Source], config: JudgeConfig, seed: int, device: torch.device) -> list[Scored]:
    """Trains D on real LR, the first source, against all others, and scores the held-out crops of each.

    All of one name are held out together, because groups show the same contents. Raises InputError naming a picture
    that cannot be used, or a source that is too small to hold pictures out of it.
    """
    held_out = _hold_out(sources, config.held_out, seed)
    torch.manual_seed(seed)
    view = frequency_filter(config.frequency).to(device)
    network = PatchDiscriminator(view.channels, config.num_feat, norm="none").to(device)

    streams = []
    for index, source in enumerate(sources):
        seen = Selected(source, set(source.names) - held_out)
        streams.append(Stream((f"group{index}",), (Cached(seen, _CACHE // len(sources)),), (config.crop,)))
    patches = PatchDataset(streams, seed, bad_images="stop", grey_images="convert")
    # High-pass views lie near 0.5 with little spread, from which a network learns next to nothing in minutes.
    sample = view(torch.stack([patches[number]["group0"] for number in range(_MEASURED)]).to(device))
    mean, spread = (each(sample, (0, 2, 3), keepdim=True) for each in (torch.mean, torch.std))

    def logits(lr: Tensor) -> Tensor:
        return network((view(lr) - mean) / spread.clamp(min=1e-6))

    optimizer, loss = Adam(network.parameters(), config.learning_rate, betas=(0.5, 0.999)), GANLoss()
    for update in range(config.updates):
        samples = [patches[number] for number in range(update * config.batch, (update + 1) * config.batch)]
        real, *fakes = ([sample[f"group{index}"] for sample in samples] for index in range(len(sources)))
        scores = logits(torch.stack([*real, *chain.from_iterable(fakes)]).to(device))
        optimizer.zero_grad()
        loss.discriminator(scores[: config.batch], scores[config.batch :]).backward()
        optimizer.step()
    scored = [_score(Selected(source, held_out), logits, config, device) for source in sources]
    if not all(np.isfinite(each.scores).all() for each in scored):
        raise InputError(
            f"--learning-rate {config.learning_rate} is too large: the discriminator's scores are not finite"
        )
    return scored


def _hold_out(sources: Sequence[Source], share: float, seed: int) -> set[str]:
    """Names that no training sees: drawn until every source has its share of them."""
    groups = [set(source.names) for source in sources]
    missing = [max(1, round(share * len(group))) for group in groups]
    held_out: set[str] = set()
    for name in np.random.default_rng(seed).permutation(np.array(sorted(set().union(*groups)), dtype=object)):
        if any(name in group and count > 0 for group, count in zip(groups, missing, strict=True)):
            held_out.add(name)
            missing = [count - (name in group) for group, count in zip(groups, missing, strict=True)]
    for source, group in zip(sources, groups, strict=True):
        if held_out >= group:
            raise InputError(
                f"no picture beside {source.label(0)} is left to train on: every folder needs two at least, and "
                f"--held-out must leave some, it is {share}"
            )
    return held_out


@torch.no_grad()
def _score(source: Source, logits: Callable[[Tensor], Tensor], config: JudgeConfig, device: torch.device) -> Scored:
    """The scores of crops side by side, of as many pictures as there are and evenly over each."""
    pictures = min(len(source), config.max_crops)
    scores: list[Tensor] = []
    owners: list[int] = []
    for index in range(pictures):
        try:
            pixels = as_rgb(read_usable(source, index, config.crop, "stop", "convert"))
        except Unusable as error:
            raise InputError(error.to_skip().reason) from error
        rows, columns = (range(0, side - config.crop + 1, config.crop) for side in pixels.shape[:2])
        corners = [(top, left) for top in rows for left in columns]
        chosen = np.linspace(0, len(corners) - 1, min(len(corners), config.max_crops // pictures)).astype(int)
        crops = [
            pixels[top : top + config.crop, left : left + config.crop] for top, left in (corners[i] for i in chosen)
        ]
        scores += [logits(to_tensor(crop, device)[None]).mean().sigmoid() for crop in crops]
        owners += [index] * len(crops)
    return Scored(torch.stack(scores).double().cpu().numpy(), np.array(owners), list(source.names[:pictures]))


def gap(real: Sequence[Scored], group: Sequence[Scored]) -> Gap:
    """How far a group is from real LR, from the scores of every seed.

    The interval is a bootstrap over seeds and, within each, over held-out pictures, because crops of one are alike; if
    both have the same pictures by name, both are drawn together.
    """
    rng = np.random.default_rng(0)
    each, replicates = [], []
    for pair in zip(real, group, strict=True):
        higher = np.sign(pair[0].scores[:, None] - pair[1].scores) / 2 + 0.5
        owns = [np.eye(len(scored.pictures))[scored.owners] for scored in pair]
        first = resample(len(pair[0].pictures), rng)
        together = pair[0].pictures == pair[1].pictures
        drawn = (first, first if together else resample(len(pair[1].pictures), rng))
        won = ((drawn[0] @ (owns[0].T @ higher @ owns[1])) * drawn[1]).sum(1)
        crops = [times @ own.sum(0) for times, own in zip(drawn, owns, strict=True)]
        each.append(float(higher.mean()))
        replicates.append(won / (crops[0] * crops[1]))
    means = (resample(len(each), rng) * np.array(replicates).T).sum(1) / len(each)
    once = len(each) == 1 and len(real[0].pictures) == len(group[0].pictures) == 1
    return Gap(float(np.mean(each)), None if once else interval(means), each)
