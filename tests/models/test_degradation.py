"""Simulated cameras: what each does to a scene, by formula, and where one differs from place to place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.data import Photo
from models.data.degradation import CAMERAS, Camera

PLAIN = Camera(blur=0, shot_noise=0, read_noise=0, jpeg_quality=None)


def shot(camera: Camera, pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    return camera.shoot(Photo("a", pixels), np.random.default_rng(seed)).pixels


@pytest.mark.parametrize("gathers", [4, 2, 1])
def test_a_sensor_pixel_is_the_mean_of_what_it_gathers(gathers):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    first = (4 - gathers) // 2
    cells = pixels.reshape(4, 4, 6, 4, 3)[:, first : first + gathers, :, first : first + gathers]
    expected = np.rint(cells.astype(np.float64).mean((1, 3)))
    found = shot(replace(PLAIN, gathers=gathers), pixels)
    assert abs(found - expected).max() <= (0 if gathers == 1 else 1)
    assert (found == expected).mean() > 0.95  # fp32 may round a tie the other way


def test_noise_has_the_variance_that_is_stated():
    for level in (64, 192):
        flat = np.full((512, 512, 3), level, np.uint8)
        found = (shot(replace(PLAIN, shot_noise=0.0005, read_noise=0.05), flat) / 255.0).var()
        assert found == pytest.approx(0.0005 * level / 255 + 0.05**2, rel=0.05)


def test_the_named_cameras():
    named = {name: (c.blur, c.gathers, c.shot_noise, c.read_noise, c.jpeg_quality) for name, c in CAMERAS.items()}
    assert named["noise5"] == (0.8, 4, 5e-4, 0.05, None)
    assert named["point"] == (0, 1, 0, 0.006, None)
    assert named["aliasing"][:2] == (0.5, 2) and named["aliasing"][4] == 90


def test_regions_are_where_the_camera_says():
    """The noise of a flat picture, and the blur of a fine pattern, are those of the camera that takes the place."""
    camera = CAMERAS["regions"]
    flat = np.full((512, 512, 3), 128, np.uint8)
    where = camera.regions(128, 128)
    assert where.mean() == 0.5
    assert not where[: camera.square, : camera.square].any() and where[0, camera.square]
    noise = shot(camera, flat) / 255.0 - 128 / 255
    for inside, each in ((where, camera.elsewhere), (~where, camera)):
        assert noise[inside].var() == pytest.approx(each.shot_noise * 128 / 255 + each.read_noise**2, rel=0.05)
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, np.arange(512) // 4 % 2 == 0] = 255
    sharp = replace(camera, shot_noise=0, read_noise=0, elsewhere=replace(camera.elsewhere, shot_noise=0, read_noise=0))
    picture = shot(sharp, stripes).astype(float)
    assert picture[~where].std() > 2 * picture[where].std()
    assert not CAMERAS["noise5"].regions(8, 8).any()


def test_jpeg_is_a_choice():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    stored, compressed = (shot(replace(PLAIN, jpeg_quality=quality), pixels) for quality in (None, 30))
    assert 0 < abs(stored.astype(float) - compressed).mean() < 64
