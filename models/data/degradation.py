"""Simulated cameras. They make the miniature's "real" LR images and test pairs; training never imports them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.images import Photo, Picture

SCALE = 4  # HR over LR


@dataclass(frozen=True)
class Camera:
    """Lens blur, sensor sampling, noise and JPEG, in the order of a real camera.

    Attributes:
        blur: standard deviation of the lens blur, in HR pixels; 0 for none.
        gathers: side of the square of HR pixels of which a sensor pixel takes the mean, in the middle of its 4 x 4:
            all of them, 2, or 1, which leaves aliasing.
        shot_noise: variance of the photon noise at full brightness, image range [0, 1]; proportional to brightness.
        read_noise: standard deviation of the electronic noise, image range [0, 1].
        jpeg_quality: 1 to 100, OpenCV's scale; None stores what the sensor gives.
        elsewhere: the camera that takes every second square of `square` x `square` LR pixels, where it is another; only
            its blur, sampling and noise count.
    """

    blur: float = 1.6
    gathers: int = SCALE
    shot_noise: float = 0.0008
    read_noise: float = 0.016
    jpeg_quality: int | None = 75
    elsewhere: Camera | None = None
    square: int = 16

    def shoot(self, photo: Photo, rng: np.random.Generator) -> Photo:
        """The LR picture of `photo`, x1/4; its sides must be multiples of 4."""
        scene = photo.pixels.astype(np.float32) / 255
        noisy = self._sense(scene, rng)
        if self.elsewhere is not None:
            noisy = np.where(self.regions(*noisy.shape[:2])[..., None], self.elsewhere._sense(scene, rng), noisy)
        pixels = np.clip(np.rint(noisy * 255), 0, 255).astype(np.uint8)
        return Photo(photo.name, pixels if self.jpeg_quality is None else _jpeg(pixels, self.jpeg_quality))

    def regions(self, height: int, width: int) -> NDArray[np.bool_]:
        """Which pixels of an LR picture `elsewhere` takes: a chessboard, whatever the picture shows."""
        if self.elsewhere is None:
            return np.zeros((height, width), bool)
        rows, columns = (np.arange(side) // self.square % 2 for side in (height, width))
        return rows[:, None] != columns

    def _sense(self, scene: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        if self.blur:
            scene = cv2.GaussianBlur(scene, (0, 0), self.blur)
        height, width = (side // SCALE for side in scene.shape[:2])
        first = (SCALE - self.gathers) // 2
        gathered = slice(first, first + self.gathers)
        exposure = scene.reshape(height, SCALE, width, SCALE, 3)[:, gathered, :, gathered].mean((1, 3))
        sigma = np.sqrt(self.shot_noise * exposure + self.read_noise**2)
        return exposure + sigma * rng.standard_normal(exposure.shape, dtype=np.float32)


# What the real LR of a miniature differs in from bicubic LR: by blur alone, nearly (`soft`), by noise, by aliasing, or
# by an amount of blur and noise that depends on the place.
CAMERAS = {
    "soft": Camera(blur=2.6, shot_noise=0.0003, read_noise=0.008, jpeg_quality=90),
    "noise5": Camera(blur=0.8, shot_noise=0.0005, read_noise=0.05, jpeg_quality=None),
    "point": Camera(blur=0, gathers=1, shot_noise=0, read_noise=0.006, jpeg_quality=None),
    "aliasing": Camera(blur=0.5, gathers=2, shot_noise=0, read_noise=0.006, jpeg_quality=90),
    "regions": Camera(
        blur=0.8,
        shot_noise=0.0005,
        read_noise=0.01,
        jpeg_quality=None,
        elsewhere=Camera(blur=2.4, shot_noise=0.0005, read_noise=0.06),
    ),
}


def _jpeg(pixels: Picture, quality: int) -> Picture:
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
