"""Photographs and patches: reading with errors that name the file, the bundled photographs, random patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class InputError(Exception):
    """Something the user gave (a folder, an image, an option) cannot be used; the message is one line naming it."""


@dataclass(frozen=True)
class Photo:
    """An image in memory: `pixels` is uint8 RGB, (H, W, 3)."""

    name: str
    pixels: NDArray[np.uint8]


def read_photo(path: Path) -> Photo:
    """Reads an image file as 8-bit RGB; a grey one gets three equal channels.

    Raises InputError, naming the file, if it is missing, not an image, or cut short.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}") from error
    if _is_cut_short(encoded):
        raise InputError(f"cannot read the image {path}: the file is cut short ({len(encoded)} bytes)")
    pixels = None
    if encoded:
        try:
            pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            pixels = None
    if pixels is None:
        raise InputError(f"cannot read the image {path}: not an image, or damaged ({len(encoded)} bytes)")
    return Photo(path.stem, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def _is_cut_short(encoded: bytes) -> bool:
    # OpenCV decodes a truncated PNG or JPEG into a picture with a grey rest, and only prints a warning.
    if encoded.startswith(b"\x89PNG"):
        return b"IEND" not in encoded[-64:]
    if encoded.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in encoded[-4096:]
    return False


def read_folder(folder: Path) -> list[Photo]:
    """All images directly in `folder`, sorted by name. Raises InputError if there is no folder or no image in it."""
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in the folder {folder}")
    return [read_photo(path) for path in paths]


def bundled_photos(names: Sequence[str]) -> list[Photo]:
    """Photographs that lie in scikit-image's wheel (`skimage/data`); nothing is downloaded.

    Raises InputError if scikit-image is not installed or its wheel lacks a file.
    """
    try:
        folder = Path(str(resources.files("skimage"))) / "data"
    except ModuleNotFoundError as error:
        raise InputError("the bundled photographs need scikit-image: pip install scikit-image") from error
    return [read_photo(folder / name) for name in names]


def crop_to_multiple(photo: Photo, multiple: int) -> Photo:
    """Cuts the right and bottom border so that both sides are multiples of `multiple` pixels ("mod crop")."""
    height, width = (side - side % multiple for side in photo.pixels.shape[:2])
    return Photo(photo.name, photo.pixels[:height, :width])


def to_tensor(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(device).float() / 255


def to_pixels(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in [0, 1] to (H, W, 3) uint8: clamped, times 255, rounded."""
    return (image.detach().clamp(0, 1) * 255).round().byte().cpu().numpy().transpose(1, 2, 0)


class PatchSampler:
    """Random aligned patches from a set of images, each given at one or several resolutions.

    Args:
        images: per image a tuple of (C, H, W) tensors. Within a tuple, tensor k is `scales[k]` times the size of the
            smallest, so (LR, HR) has scales (1, 4).
        scales: the integer scale of each tensor in a tuple.
        size: side of the patch taken from a tensor of scale 1, in pixels.
        rng: source of every random choice.

    A draw returns one (batch, C, size * scale, size * scale) tensor per scale. Every patch position of every image is
    equally likely. Flips and a transpose are drawn once per sample and shared by all its tensors. Nothing here waits
    for the device.
    """

    def __init__(
        self,
        images: Sequence[tuple[Tensor, ...]],
        scales: tuple[int, ...],
        size: int,
        rng: np.random.Generator,
    ) -> None:
        self._images, self._scales, self._size, self._rng = images, scales, size, rng
        extents = [(image[0].shape[-2] // scales[0], image[0].shape[-1] // scales[0]) for image in images]
        self._places = [(height - size + 1, width - size + 1) for height, width in extents]
        if min(min(place) for place in self._places) < 1:
            raise ValueError(f"PatchSampler: an image is smaller than the patch of {size} pixels, extents {extents}")
        counts = np.array([height * width for height, width in self._places], dtype=np.float64)
        self._probabilities = counts / counts.sum()

    def draw(self, batch: int) -> tuple[Tensor, ...]:
        samples: list[list[Tensor]] = [[] for _ in self._scales]
        for index in self._rng.choice(len(self._images), size=batch, p=self._probabilities):
            top, left = (int(self._rng.integers(places)) for places in self._places[index])
            flip_rows, flip_columns, transpose = self._rng.integers(2, size=3)
            flips = [axis for axis, on in ((-2, flip_rows), (-1, flip_columns)) if on]
            for patches, image, scale in zip(samples, self._images[index], self._scales, strict=True):
                side = self._size * scale
                patch = image[:, top * scale : top * scale + side, left * scale : left * scale + side]
                patch = patch.flip(flips) if flips else patch
                patches.append(patch.transpose(-2, -1) if transpose else patch)
        return tuple(torch.stack(patches) for patches in samples)
