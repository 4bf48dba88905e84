"""Domain-distance maps: how much each place of a generated LR picture looks like real LR, as judged by the DSN's D."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dasr.config import MapsConfig, MapWeights
from models.networks import PatchDiscriminator
from models.networks.frequency import FrequencyFilter
from models.train.losses import widen


class DistanceMap(nn.Module):
    """w = sigmoid(D(H(y))), smoothed as `config` says; frozen.

    Args:
        discriminator: the DSN's D.
        view: H(.), the one that D was trained with.
        config: smoothing and border.

    Input an LR picture (N, 3, h, w), before rounding; output (N, 1, h', w') in (0, 1), high where the picture looks
    like the target domain, constant for autograd. h' is h // 2 for a Haar view and h otherwise.
    """

    def __init__(self, discriminator: PatchDiscriminator, view: FrequencyFilter, config: MapsConfig) -> None:
        super().__init__()
        self.discriminator, self.view, self._config = discriminator, view, config
        self._box = config.box or discriminator.receptive_field

    @property
    def margin(self) -> int:
        """Pixels by which an LR picture is continued beyond each border; its sides must be longer."""
        return self._beyond * self.discriminator.jump * self.view.stride

    @property
    def _beyond(self) -> int:
        """Scores beyond each border."""
        if self._config.padding == "zero":
            return 0
        # Zero padding in D's convolutions distorts scores along the border; these keep that outside the picture.
        return math.ceil((self.discriminator.receptive_field / 2 + self.view.reach) / self.discriminator.jump)

    @torch.no_grad()
    def forward(self, lr: Tensor) -> Tensor:
        height, width = (side // self.view.stride for side in lr.shape[-2:])
        jump = self.discriminator.jump
        beyond = self._beyond
        lr = F.pad(lr, (self.margin,) * 4, mode="reflect")
        scores = widen(self.discriminator(self.view(lr))).sigmoid()
        rows, columns = scores.shape[-2:]
        if jump == 1:  # the Haar view rounds odd sides up
            rows, columns = height + 2 * beyond, width + 2 * beyond
        scores = scores[..., beyond : rows - beyond, beyond : columns - beyond]
        if self._config.smoothing == "receptive_field":
            return spread(scores, self._box, jump, self.discriminator.first_centre, (height, width))
        if scores.shape[-2:] == (height, width):
            return scores
        return F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)


def weights_of(maps: Tensor, kind: MapWeights, cap: float) -> Tensor:
    """What weighs the losses, from the maps w of a batch (N, 1, h, w); m is their mean over all places and pictures.

    | kind | weights | |
    |---|---|---|
    | map | w | Eq. 5 |
    | normalised | w / m | as strong beside the adversarial loss as without weights |
    | capped | min(w / m, cap) | no place or picture counts more than `cap` times |
    | constant | m | what Eq. 5 does to the losses' strength alone |

    The mean is the batch's, because Eq. 5 weighs whole pictures against each other too, which that of each picture
    would undo. With several ranks it is that of a rank's own share.
    """
    if kind == "map":
        return maps
    mean = maps.mean()
    if kind == "constant":
        return mean.expand_as(maps)
    # Maps lie in (0, 1) but may underflow to 0 in all places, where any weights are 0.
    relative = maps / mean.clamp_min(torch.finfo(maps.dtype).tiny)
    return relative if kind == "normalised" else relative.clamp_max(cap)


def spread(scores: Tensor, box: int, jump: int, first_centre: float, size: tuple[int, int]) -> Tensor:
    """Spreads each score over the `box` x `box` places it judged and averages what overlaps (the published code).

    Score i stands `i * jump + first_centre` places from the border, which may lie between two places. (N, 1, h, w) to
    (N, 1, *size); with jump 1 it is an average pooling that leaves out what lies beyond the border.
    """
    start = math.floor(first_centre - (box - 1) / 2)
    rows, columns = (
        _covers(count, jump, start, box, places, scores.device).to(scores.dtype)
        for count, places in zip(scores.shape[-2:], size, strict=True)
    )
    return rows @ scores @ columns.T / (rows.sum(1)[:, None] * columns.sum(1))


def _covers(scores: int, jump: int, start: int, box: int, places: int, device: torch.device) -> Tensor:
    """Which places (rows) each score (columns) judged, as a boolean matrix."""
    first = torch.arange(scores, device=device) * jump + start
    place = torch.arange(places, device=device)[:, None]
    covers = (place >= first) & (place < first + box)
    # Places beyond the last field (a grid that the strides do not divide) take the last score.
    covers[:, -1] |= ~covers.any(1)
    return covers
