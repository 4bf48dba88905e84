"""Which photograph plays which role when the user gives no folders, in the demo and in the miniature of the ablation.

They come in wheels. Those of scikit-image are CC0, public domain or without known restrictions, as `skimage.data` says
of each; for motorcycle_left, of the Middlebury 2014 stereo benchmark, it names the source and no licence. china and
flower of scikit-learn are CC BY 2.0 (danielbuechele and vultilion on Flickr). grace_hopper of Matplotlib is of the
United States Navy, in the public domain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np

from models.data.degradation import CAMERAS, SCALE
from models.data.images import SCIKIT_IMAGE, InputError, Photo, Picture, Wheel, bundled_photos, crop_to_multiple
from models.data.inputs import Inputs
from models.data.sources import ArraySource

# The demo's: whole photographs, each in one role only; train and held-out pictures share no scene. The two training
# sets have about equal detail on average, because a method takes any difference between them for one of the camera.
CLEAN_HR = ("motorcycle_left.png", "rocket.jpg", "camera.png", "brick.png", "gravel.png")
REAL_LR = ("ihc.png", "grass.png", "coins.png")
HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png")

SCIKIT_LEARN = Wheel("sklearn", "scikit-learn", "datasets/images")
MATPLOTLIB = Wheel("matplotlib", "matplotlib", "mpl-data/sample_data")

# The miniature's: what a photograph is for. Settings are chosen on `validation`, and `held-out` ones, on whose scores
# no choice was made, report. Of a photograph for training one half is clean HR, the other half real LR.
Judged = Literal["validation", "held-out"]
ROLES: dict[Wheel, dict[str, Literal["training"] | Judged]] = {
    SCIKIT_IMAGE: {
        "astronaut.png": "training",
        "brick.png": "training",
        "camera.png": "training",
        "chelsea.png": "training",
        "coins.png": "training",
        "gravel.png": "training",
        "ihc.png": "training",
        "coffee.png": "validation",
        "motorcycle_left.png": "held-out",
        "rocket.jpg": "held-out",
    },
    SCIKIT_LEARN: {"flower.jpg": "validation", "china.jpg": "held-out"},
    MATPLOTLIB: {"grace_hopper.jpg": "held-out"},
}


@dataclass(frozen=True)
class Domains:
    """What a method in miniature trains on and is judged by.

    Attributes:
        clean_hr: HR pictures; their LR pictures do not exist anywhere.
        real_lr: LR pictures of other scenes, or of other parts of them; their HR pictures are not kept.
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


def bundled_domains(seed: int, camera: str = "soft") -> Domains:
    """The demo's photographs; one of `CAMERAS` takes the real LR pictures, with noise from `seed`."""
    rng, taken = np.random.default_rng(seed), CAMERAS[camera]
    clean_hr = [crop_to_multiple(photo, 2 * SCALE) for photo in bundled_photos(CLEAN_HR)]
    real_lr = [taken.shoot(crop_to_multiple(photo, SCALE), rng) for photo in bundled_photos(REAL_LR)]
    held_out = [crop_to_multiple(photo, SCALE) for photo in bundled_photos(HELD_OUT)]
    return Domains(clean_hr, real_lr, [(taken.shoot(photo, rng), photo) for photo in held_out])


def miniature_domains(seed: int, camera: str, judged: Judged) -> Domains:
    """The miniature's photographs, as one of `CAMERAS` takes them, with noise from `seed`.

    Both domains show the same scenes, so that nothing but the camera tells them apart, and no place is in both.
    """
    rng = np.random.default_rng(seed)
    taken = CAMERAS[camera]
    training = list(_photographs("training"))
    clean_hr = [crop_to_multiple(_half(photo, 0), 2 * SCALE) for photo in training]
    real_lr = [taken.shoot(crop_to_multiple(_half(photo, 1), SCALE), rng) for photo in training]
    whole = [crop_to_multiple(photo, SCALE) for photo in _photographs(judged)]
    return Domains(clean_hr, real_lr, [(taken.shoot(photo, rng), photo) for photo in whole])


def missing_photographs() -> list[str]:
    """A line for each wheel that is not installed and whose photographs are therefore left out."""
    return [
        f"without {wheel.distribution} the miniature does without {', '.join(roles)}: pip install {wheel.distribution}"
        for wheel, roles in ROLES.items()
        if not _installed(wheel)
    ]


def check_bundled_scale(scale: int) -> None:
    """Raises InputError unless the scale of a run is that of the bundled pictures."""
    if scale != SCALE:
        raise InputError(f"--scale must be {SCALE}, that of the bundled pictures, got {scale}")


def _photographs(role: str) -> Iterable[Photo]:
    for wheel, roles in ROLES.items():
        names = [name for name, its in roles.items() if its == role]
        if wheel == SCIKIT_IMAGE or _installed(wheel):  # without scikit-image it is an error that says so
            yield from bundled_photos(names, wheel)


def _installed(wheel: Wheel) -> bool:
    return find_spec(wheel.package) is not None


def _half(photo: Photo, which: Literal[0, 1]) -> Photo:
    """The left or the right half."""
    middle = photo.pixels.shape[1] // 2
    return Photo(photo.name, photo.pixels[:, :middle] if which == 0 else photo.pixels[:, middle:])


def _source(photos: list[Photo]) -> ArraySource:
    return ArraySource([photo.name for photo in photos], [photo.pixels for photo in photos])
