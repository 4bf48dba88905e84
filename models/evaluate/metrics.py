"""PSNR and SSIM as the super-resolution literature reports them (BasicSR's definition), numpy float64; LPIPS.

All take uint8 RGB pictures. The first two cut `crop_border` pixels from each side (by convention the scale) and compare
either the Y channel of BT.601 in studio range or the three RGB channels. Numbers of different conventions differ by up
to 2 dB for the same picture, so every number is shown together with its `convention`.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.data import to_tensor
from models.networks import LPIPS


def convention(crop_border: int = 4, y_channel: bool = True) -> str:
    """What a number was measured on, such as "RGB, crop 4, uint8"."""
    return f"{'Y of BT.601 studio range' if y_channel else 'RGB'}, crop {crop_border}, uint8"


def rgb_to_y(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(H, W, 3) uint8 RGB to (H, W) luma in [16, 235], float64, not rounded."""
    return pixels.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def psnr(sr: NDArray[np.uint8], hr: NDArray[np.uint8], *, crop_border: int = 4, y_channel: bool = True) -> float:
    """Peak signal-to-noise ratio in dB against a peak of 255; infinite for equal pictures.

    Raises ValueError if the pictures differ in shape, are not uint8 RGB, or nothing is left after the crop.
    """
    a, b = _prepare(sr, hr, crop_border, y_channel)
    mse = np.mean((a - b) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255.0**2 / mse))


def ssim(sr: NDArray[np.uint8], hr: NDArray[np.uint8], *, crop_border: int = 4, y_channel: bool = True) -> float:
    """Structural similarity: 11 x 11 Gaussian window of sigma 1.5, valid region, mean over pixels and channels.

    Raises ValueError as `psnr` does, and if less than 11 pixels are left on a side.
    """
    a, b = _prepare(sr, hr, crop_border, y_channel)
    if min(a.shape[:2]) < 11:
        raise ValueError(f"ssim: 11 x 11 pixels must be left after the crop, got {a.shape[:2]}")
    # One channel at a time: a large picture in float64 is large.
    return float(np.mean([_ssim(*channels) for channels in zip(cv2.split(a), cv2.split(b), strict=True)]))


@torch.inference_mode()
def lpips(network: LPIPS, sr: NDArray[np.uint8], hr: NDArray[np.uint8]) -> float:
    """The distance by `network`, to be shown under its `name`, of whole pictures: they are not cut, and it sees RGB.

    NaN for pictures too small for it. Raises ValueError as `psnr` does.
    """
    _prepare(sr, hr, 0, False)
    if min(hr.shape[:2]) < network.least_side:
        return math.nan
    device = network.shift.device
    return float(network(to_tensor(sr, device)[None], to_tensor(hr, device)[None]))


def _ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _window(a), _window(b)
    var_a, var_b = _window(a * a) - mean_a**2, _window(b * b) - mean_b**2
    covariance = _window(a * b) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def _prepare(
    sr: NDArray[np.uint8], hr: NDArray[np.uint8], crop_border: int, y_channel: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    for picture in (sr, hr):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"expected a uint8 RGB picture (H, W, 3), got {picture.dtype} {picture.shape}")
    if sr.shape != hr.shape:
        raise ValueError(f"pictures differ in shape: {sr.shape} and {hr.shape}")
    height, width = hr.shape[:2]
    if min(height, width) <= 2 * crop_border:
        raise ValueError(f"nothing left of {height} x {width} after a border crop of {crop_border}")
    inner = np.s_[crop_border : height - crop_border, crop_border : width - crop_border]
    convert = rgb_to_y if y_channel else lambda pixels: pixels.astype(np.float64)
    return convert(sr)[inner], convert(hr)[inner]


def _window(image: NDArray[np.float64]) -> NDArray[np.float64]:
    taps = cv2.getGaussianKernel(11, 1.5)
    return cv2.sepFilter2D(image, cv2.CV_64F, taps, taps)[5:-5, 5:-5]
