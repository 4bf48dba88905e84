"""Source LR pictures for USR-DA: HR pictures made small, blurred and noisy, each with its own random numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.config import Bound
from models.data import PatchDataset, Stream
from models.data.resize import bicubic

# First word of seeds, which patches do not use (models.data.patches).
_SOURCE_LR = 3


@dataclass(frozen=True)
class SynthesisConfig:
    """How source LR pictures are made; the paper says "down-sampling, gaussian noise and gaussian blur", no numbers.

    A range of (0, 0) skips its step; with both, plain bicubic is left (the paper's Fig. 6).
    """

    resize: Literal["matlab", "torch"] = "matlab"
    """MATLAB's bicubic, or F.interpolate's without antialiasing (the unofficial code)."""
    blur: tuple[Annotated[float, Bound(0, 100)], Annotated[float, Bound(0, 100)]] = (0.2, 2.0)
    """Range of the Gaussian blur's deviation, in LR pixels; uniform."""
    noise: tuple[Annotated[float, Bound(0, 255)], Annotated[float, Bound(0, 255)]] = (0.0, 10.0)
    """Range of the Gaussian noise's deviation, in 1/255; uniform."""
    eight_bit: bool = True
    """Rounds to the 256 levels from 0 to 1 that a real LR picture has; without it nothing is clamped either."""


class SourceLR:
    """Makes a (3, h, w) picture from an HR picture in [0, 1], (3, scale * h, scale * w): bicubic, then blur and noise.

    What picture n gets is a function of (seed, n) alone, and no global random state is touched.
    """

    def __init__(self, config: SynthesisConfig, scale: int, seed: int) -> None:
        self._config, self._scale, self._seed = config, scale, seed

    @torch.no_grad()
    def __call__(self, hr: Tensor, number: int) -> Tensor:
        config = self._config
        rng = np.random.default_rng([_SOURCE_LR, self._seed, number])
        sigma, level = (rng.uniform(*ends) for ends in (config.blur, config.noise))
        lr = self._small(hr[None])
        if config.blur[1] > 0:
            lr = _blurred(lr, sigma)
        lr = lr[0]
        if config.noise[1] > 0:
            lr = lr + torch.from_numpy(rng.standard_normal(tuple(lr.shape), dtype=np.float32)) * (level / 255)
        return (lr.clamp(0, 1) * 255).round() / 255 if config.eight_bit else lr

    def _small(self, hr: Tensor) -> Tensor:
        if self._config.resize == "matlab":
            return bicubic(hr, 1 / self._scale)
        return F.interpolate(hr, scale_factor=1 / self._scale, mode="bicubic", align_corners=False)


class SourceDataset(PatchDataset):
    """Patches whose field `hr` gets a `source_lr` beside it, made by the process that reads the pictures."""

    def __init__(self, streams: Iterable[Stream], source_lr: SourceLR, seed: int, **policy: Any) -> None:
        super().__init__(streams, seed, **policy)
        self._source_lr = source_lr

    def __getitem__(self, n: int) -> dict[str, Any]:
        sample = super().__getitem__(n)
        sample["source_lr"] = self._source_lr(sample["hr"], n)
        return sample


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Gaussian of deviation `sigma`, cut off at three deviations and normalised; the image is mirrored."""
    reach = min(max(1, round(3 * sigma)), min(image.shape[-2:]) - 1)
    if sigma <= 0:
        return image
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    taps = (taps / taps.sum()).expand(image.shape[1], 1, -1)
    image = F.pad(image, (reach,) * 4, mode="reflect")
    image = F.conv2d(image, taps[..., None], groups=image.shape[1])
    return F.conv2d(image, taps[..., None, :], groups=image.shape[1])
