"""A simulated camera. It makes the demo's "real" LR images and test pairs; training never imports it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from models.data.images import Photo, Picture


@dataclass(frozen=True)
class Camera:
    """Lens blur, sensor sampling, noise and JPEG, in the order of a real camera.

    Attributes:
        blur: standard deviation of the lens blur, in HR pixels.
        shot_noise: variance of the photon noise at full brightness, image range [0, 1]; proportional to brightness.
        read_noise: standard deviation of the electronic noise, image range [0, 1].
        jpeg_quality: 1 to 100, OpenCV's scale.
    """

    blur: float = 1.6
    shot_noise: float = 0.0008
    read_noise: float = 0.016
    jpeg_quality: int = 75

    def shoot(self, photo: Photo, rng: np.random.Generator) -> Photo:
        """The LR picture of `photo`, x1/4; its sides must be multiples of 4. A sensor pixel is the mean of 4 x 4."""
        scene = cv2.GaussianBlur(photo.pixels.astype(np.float32) / 255, (0, 0), self.blur)
        height, width = photo.pixels.shape[:2]
        exposure = cv2.resize(scene, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
        sigma = np.sqrt(self.shot_noise * exposure + self.read_noise**2)
        noisy = exposure + sigma * rng.standard_normal(exposure.shape, dtype=np.float32)
        return Photo(photo.name, _jpeg(np.clip(np.rint(noisy * 255), 0, 255).astype(np.uint8), self.jpeg_quality))


def _jpeg(pixels: Picture, quality: int) -> Picture:
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
