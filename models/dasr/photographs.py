"""Who plays which role in the demo: clean HR, real LR, held-out test pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.dasr.config import DemoOptions
from models.data import InputError, Photo, bundled_photos, crop_to_multiple, read_folder
from models.degradation import Camera

# Whole photographs, each in one role only; train and held-out pictures share no scene. The two training sets have
# about equal detail on average, because DASR takes any difference between them for a property of the camera.
CLEAN_HR = ("motorcycle_left.png", "rocket.jpg", "camera.png", "brick.png", "gravel.png")
REAL_LR = ("ihc.png", "grass.png", "coins.png")
HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png")

CAMERA = Camera(blur=2.6, shot_noise=0.0003, read_noise=0.008, jpeg_quality=90)


@dataclass(frozen=True)
class Domains:
    """What the demo trains on and is judged by.

    Attributes:
        clean_hr: HR pictures; their LR pictures do not exist anywhere.
        real_lr: LR pictures of other scenes; their HR pictures are not kept.
        held_out: (LR, HR) of yet other scenes, for the numbers and pictures only.
    """

    clean_hr: list[Photo]
    real_lr: list[Photo]
    held_out: list[tuple[Photo, Photo]]


def collect(options: DemoOptions) -> Domains:
    """Reads the bundled photographs or the user's folders. Raises InputError naming what cannot be used."""
    if options.lr_dir and not (options.test_hr_dir and options.test_lr_dir):
        raise InputError("--lr-dir needs --test-hr-dir and --test-lr-dir: held-out pairs must be from the same camera")
    if options.test_lr_dir and not options.lr_dir:
        raise InputError("--test-lr-dir needs --lr-dir: held-out pairs must be from the same camera")
    rng = np.random.default_rng(options.seed)

    clean_hr = read_folder(options.hr_dir) if options.hr_dir else bundled_photos(CLEAN_HR)
    clean_hr = [crop_to_multiple(photo, 8) for photo in clean_hr]

    if options.lr_dir:
        real_lr = read_folder(options.lr_dir)
    else:
        real_lr = [CAMERA.shoot(crop_to_multiple(photo, 4), rng) for photo in bundled_photos(REAL_LR)]

    test_hr = read_folder(options.test_hr_dir) if options.test_hr_dir else bundled_photos(HELD_OUT)
    test_hr = [crop_to_multiple(photo, 4) for photo in test_hr]
    if options.test_lr_dir:
        held_out = _pair(read_folder(options.test_lr_dir), test_hr)
    else:
        held_out = [(CAMERA.shoot(photo, rng), photo) for photo in test_hr]

    largest = max(options.dsn.patch, options.srn.patch)
    _require_size(clean_hr, 4 * largest, "an HR patch")
    _require_size(real_lr, largest, "an LR patch")
    _require_size(test_hr, 32, "measuring SSIM")
    return Domains(clean_hr, real_lr, held_out)


def _pair(lr: list[Photo], hr: list[Photo]) -> list[tuple[Photo, Photo]]:
    by_name = {photo.name: photo for photo in lr}
    pairs = []
    for photo in hr:
        small = by_name.get(photo.name)
        if small is None:
            raise InputError(f"--test-lr-dir has no picture named {photo.name} to go with the one in --test-hr-dir")
        expected = tuple(side // 4 for side in photo.pixels.shape[:2])
        if small.pixels.shape[:2] != expected:
            raise InputError(
                f"the LR picture {small.name} in --test-lr-dir must be {expected[1]} x {expected[0]} pixels, a quarter "
                f"of its HR picture, got {small.pixels.shape[1]} x {small.pixels.shape[0]}"
            )
        pairs.append((small, photo))
    return pairs


def _require_size(photos: list[Photo], side: int, purpose: str) -> None:
    for photo in photos:
        height, width = photo.pixels.shape[:2]
        if min(height, width) < side:
            raise InputError(
                f"the picture {photo.name} is too small: {width} x {height} pixels, {purpose} needs {side}"
            )
