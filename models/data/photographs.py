"""Which photograph plays which role when the user gives no folders: clean HR, real LR, held-out test pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.data.degradation import CAMERAS, SCALE
from models.data.images import InputError, Photo, Picture, bundled_photos, crop_to_multiple
from models.data.inputs import Inputs
from models.data.sources import ArraySource

# Whole photographs, each in one role only; train and held-out pictures share no scene. The two training sets have
# about equal detail on average, because a method takes any difference between them for a property of the camera.
CLEAN_HR = ("motorcycle_left.png", "rocket.jpg", "camera.png", "brick.png", "gravel.png")
REAL_LR = ("ihc.png", "grass.png", "coins.png")
HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png")

CAMERA = CAMERAS["soft"]


@dataclass(frozen=True)
class Domains:
    """What a method in miniature trains on and is judged by.

    Attributes:
        clean_hr: HR pictures; their LR pictures do not exist anywhere.
        real_lr: LR pictures of other scenes; their HR pictures are not kept.
        held_out: (LR, HR) of yet other scenes, for the numbers and pictures only.
    """

    clean_hr: list[Photo]
    real_lr: list[Photo]
    held_out: list[tuple[Photo, Photo]]

    @property
    def inputs(self) -> Inputs:
        """What a method trains on, and is validated with."""
        return Inputs(self.hr_source, self.lr_source, self.pairs)

    @property
    def hr_source(self) -> ArraySource:
        return _source(self.clean_hr)

    @property
    def lr_source(self) -> ArraySource:
        return _source(self.real_lr)

    def pairs(self) -> Iterator[tuple[str, Picture, Picture]]:
        """The held-out (name, LR, HR), as `Inputs.held_out` yields them."""
        return ((hr.name, lr.pixels, hr.pixels) for lr, hr in self.held_out)


def bundled_domains(seed: int) -> Domains:
    """Photographs of scikit-image's wheel; the simulated camera takes the real LR pictures, with noise from `seed`."""
    rng = np.random.default_rng(seed)
    clean_hr = [crop_to_multiple(photo, 2 * SCALE) for photo in bundled_photos(CLEAN_HR)]
    real_lr = [CAMERA.shoot(crop_to_multiple(photo, SCALE), rng) for photo in bundled_photos(REAL_LR)]
    held_out = [crop_to_multiple(photo, SCALE) for photo in bundled_photos(HELD_OUT)]
    return Domains(clean_hr, real_lr, [(CAMERA.shoot(photo, rng), photo) for photo in held_out])


def check_bundled_scale(scale: int) -> None:
    """Raises InputError unless the scale of a run is that of the bundled pictures."""
    if scale != SCALE:
        raise InputError(f"--scale must be {SCALE}, that of the bundled pictures, got {scale}")


def _source(photos: list[Photo]) -> ArraySource:
    return ArraySource([photo.name for photo in photos], [photo.pixels for photo in photos])
