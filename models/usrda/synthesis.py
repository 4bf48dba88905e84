"""Source LR pictures for USR-DA: HR pictures made small, blurred and noisy, each by numbers of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.resize import bicubic

# First word of seeds, which patches do not use (models.data.patches).
_SOURCE_LR = 3


@dataclass(frozen=True)
class SynthesisConfig:
    """How source LR pictures are made; the paper says "down-sampling, gaussian noise and gaussian blur", no numbers.

    A range of (0, 0) leaves its step out: both so is plain bicubic (the paper's Fig. 6).
    """

    blur: tuple[float, float] = (0.2, 2.0)
    """Range of the Gaussian blur's deviation, in LR pixels; uniform."""
    noise: tuple[float, float] = (0.0, 10.0)
    """Range of the Gaussian noise's deviation, in 1/255; uniform."""
    eight_bit: bool = True
    """Rounds to the 256 levels that a real LR picture has."""


class SourceLR:
    """Makes (N, 3, h, w) in [0, 1] from HR pictures (N, 3, scale * h, scale * w), on their device.

    MATLAB's bicubic, then blur and noise. What picture n gets is a function of (seed, n) alone: the same on every
    device, for any batch size and number of ranks, and when training is resumed.
    """

    def __init__(self, config: SynthesisConfig, scale: int, seed: int) -> None:
        self._config, self._scale, self._seed = config, scale, seed

    @torch.no_grad()
    def __call__(self, hr: Tensor, first: int) -> Tensor:
        """`first` is the number of the first picture of the batch."""
        lr = bicubic(hr.float(), 1 / self._scale)
        drawn = [self._draw(first + index, lr.shape[1:]) for index in range(len(lr))]
        if self._config.blur[1] > 0:
            lr = torch.cat([_blurred(one[None], sigma) for one, (sigma, _) in zip(lr, drawn, strict=True)])
        if self._config.noise[1] > 0:
            lr = lr + torch.stack([noise for _, noise in drawn]).to(lr.device)
        lr = lr.clamp(0, 1)
        return (lr * 255).round() / 255 if self._config.eight_bit else lr

    def _draw(self, number: int, shape: torch.Size) -> tuple[float, Tensor]:
        """The blur's deviation and the noise of one picture, drawn on the CPU: the same numbers for every device."""
        rng = np.random.default_rng([_SOURCE_LR, self._seed, number])
        sigma, level = (rng.uniform(*ends) for ends in (self._config.blur, self._config.noise))
        return sigma, torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32)) * (level / 255)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Gaussian of deviation `sigma`, cut at three of them and normalised; the image goes on mirrored."""
    reach = min(max(1, round(3 * sigma)), min(image.shape[-2:]) - 1)
    if sigma <= 0:
        return image
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=image.device) / sigma).square())
    taps = (taps / taps.sum()).expand(image.shape[1], 1, -1)
    image = F.pad(image, (reach,) * 4, mode="reflect")
    image = F.conv2d(image, taps[..., None], groups=image.shape[1])
    return F.conv2d(image, taps[..., None, :], groups=image.shape[1])
