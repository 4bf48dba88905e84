"""The bicubic resize of the super-resolution literature: MATLAB's `imresize`."""

from __future__ import annotations

import math
import operator
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = TypeVar("Floats", np.float16, np.float32, np.float64)


def imresize(image: NDArray[Floats], scale: float, antialias: bool = True) -> NDArray[Floats]:
    """Resizes (H, W) or (H, W, C) to (ceil(H * scale), ceil(W * scale)) as MATLAB's `imresize(image, scale)` does.

    The cubic kernel has a = -0.5 and, when shrinking with `antialias`, is 1 / scale times as wide; the image is
    mirrored at its border, edge pixels included. Computed in float64 and returned in the image's float dtype,
    not clamped. Raises ValueError for integers (divide them first) and for a scale that is not positive.
    """
    if not np.issubdtype(image.dtype, np.floating) or image.ndim not in (2, 3):
        raise ValueError(f"imresize: expected a float image (H, W) or (H, W, C), got {image.dtype} {image.shape}")
    resized = image.astype(np.float64)
    for axis in (0, 1):
        lines = resized.swapaxes(0, axis)
        weights, places = _taps(lines.shape[0], scale, antialias)
        weights = weights.reshape(*weights.shape, *[1] * (lines.ndim - 1))
        resized = sum(weights[:, tap] * lines[places[:, tap]] for tap in range(places.shape[1])).swapaxes(0, axis)
    return np.ascontiguousarray(resized, dtype=image.dtype)


def bicubic(image: Tensor, scale: float) -> Tensor:
    """`imresize` for (N, C, H, W), differentiable, on the image's device, not clamped.

    Two matrix products, in the image's dtype or fp32 if that is wider; autocast does not reach them, but the
    precision that is set for fp32 matrix products (TF32) does.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    rows, columns = (_matrix(operator.index(size), scale, dtype, image.device) for size in image.shape[-2:])
    with torch.autocast(image.device.type, enabled=False):
        return (rows @ image.to(dtype) @ columns.T).to(image.dtype)


# An op, so that torch.compile calls it: it would trace through the cache, and through numpy.
@torch.library.custom_op("models::resize_matrix", mutates_args=())
def _matrix(size: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(ceil(size * scale), size): the resize of one axis as a matrix."""
    return _cached_matrix(size, scale, dtype, device).clone()  # a compiled graph may write into what an op returned


@_matrix.register_fake
def _(size: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(math.ceil(size * scale), size, dtype=dtype, device=device)


@lru_cache(maxsize=64)
def _cached_matrix(size: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    weights, places = _taps(size, scale, antialias=True)
    matrix = np.zeros((len(weights), size))
    np.add.at(matrix, (np.arange(len(weights))[:, None], places), weights)
    # A tensor made in inference mode could never be used in training.
    with torch.inference_mode(False):
        return torch.from_numpy(matrix).to(device, dtype)


def _taps(size: int, scale: float, antialias: bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weights and source positions of every output position along an axis, both (ceil(size * scale), taps)."""
    if not scale > 0:
        raise ValueError(f"resize: scale must be positive, got {scale}")
    stretch = max(1.0, 1 / scale) if antialias else 1.0
    centres = (np.arange(math.ceil(size * scale)) + 0.5) / scale - 0.5
    first = np.floor(centres - 2 * stretch).astype(np.int64)
    places = first[:, None] + np.arange(math.ceil(4 * stretch) + 2)
    weights = _cubic((centres[:, None] - places) / stretch)
    mirrored = places % (2 * size)
    return weights / weights.sum(1, keepdims=True), np.minimum(mirrored, 2 * size - 1 - mirrored)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' interpolation kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))
