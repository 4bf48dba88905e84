"""Image files and arrays: reading with errors that name the file, writing atomically, bundled photographs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from models.data.files import write_whole

# A loader's forked worker would wait forever for the threads of a pool that its parent had started.
cv2.setNumThreads(0)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

# Depths and channels that each kind of file can hold; OpenCV silently drops the rest.
_KEEPS: dict[str, tuple[tuple[type, ...], tuple[int, ...]]] = {
    **dict.fromkeys((".png", ".tif", ".tiff"), ((np.uint8, np.uint16), (1, 3, 4))),
    ".bmp": ((np.uint8,), (1, 3, 4)),
    ".webp": ((np.uint8,), (3, 4)),
    **dict.fromkeys((".jpg", ".jpeg"), ((np.uint8,), (1, 3))),
}
# In coded pixels 0xff stands before 0 or a restart marker, 0xd0 to 0xd7.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_JPEG_END, _JPEG_ALONE = 0xD9, (0x01, 0xD8)
_TO_RGB = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}

Picture = NDArray[np.uint8]  # (H, W, 3), RGB
Pixels = Picture | NDArray[np.uint16]  # (H, W, C), grey, RGB or RGBA


class InputError(Exception):
    """Something the user gave (a folder, an image, an option) cannot be used; the message is one line naming it."""


@dataclass(frozen=True)
class Photo:
    """An image in memory: `pixels` is uint8 RGB, (H, W, 3)."""

    name: str
    pixels: Picture


def read_photo(path: Path) -> Photo:
    """Reads an image file as 8-bit RGB, a grey one as three equal channels. Raises InputError as `read_image` does."""
    return Photo(path.stem, eight_bit_rgb(read_image(path)))


def read_image(path: Path) -> Pixels:
    """Reads an image file as it is; see `decode`.

    Raises InputError, naming the file, if it is missing, not an image, or cut short.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}") from error
    return decode(encoded, str(path))


def decode(encoded: bytes, name: str) -> Pixels:
    """The image in a PNG, JPEG, WebP, BMP or TIFF file, (H, W, C) in its own depth, uint8 or uint16.

    C is 1 for grey, 3 for RGB, 4 for RGBA. A JPEG is turned upright as its EXIF orientation says.
    Raises InputError, calling the image `name`, if it is damaged, cut short, or of another depth.
    """
    if _is_cut_short(encoded):
        raise InputError(f"cannot read the image {name}: the file is cut short ({len(encoded)} bytes)")
    # Only IMREAD_UNCHANGED keeps alpha, and only it ignores the orientation; a JPEG has no alpha.
    jpeg = encoded.startswith(b"\xff\xd8")
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR if jpeg else cv2.IMREAD_UNCHANGED
    pixels = None
    if encoded:
        try:
            pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
        except cv2.error:
            pixels = None
    if pixels is None:
        raise InputError(f"cannot read the image {name}: not an image, or damaged ({len(encoded)} bytes)")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"cannot use the image {name}: {pixels.dtype} values, expected 8 or 16 bits")
    return _swap_red_and_blue(pixels if pixels.ndim == 3 else pixels[..., None])


def _is_cut_short(encoded: bytes) -> bool:
    """Whether a PNG, JPEG or WebP ends before its picture does; what stands behind the picture does not count.

    Some versions of OpenCV decode a truncated file into a picture with a grey rest, and only print a warning.
    """
    if encoded.startswith(b"\x89PNG"):
        return _png_is_cut(encoded)
    if encoded.startswith(b"\xff\xd8"):
        return _jpeg_is_cut(encoded)
    if encoded.startswith(b"RIFF"):
        return len(encoded) < 8 + int.from_bytes(encoded[4:8], "little")
    return False


def _png_is_cut(encoded: bytes) -> bool:
    at = 8
    while at + 8 <= len(encoded):
        ends = encoded[at + 4 : at + 8] == b"IEND"
        at += 12 + int.from_bytes(encoded[at : at + 4], "big")  # length, name, content, checksum
        if ends:
            return at > len(encoded)
    return True


def _jpeg_is_cut(encoded: bytes) -> bool:
    at = 2
    while found := _JPEG_MARKER.search(encoded, at):
        marker, at = encoded[found.end() - 1], found.end()
        if marker == _JPEG_END:
            return False
        if marker not in _JPEG_ALONE:  # a segment, a thumbnail's own end in it; behind a scan's head come coded pixels
            at += int.from_bytes(encoded[at : at + 2], "big")
    return True


def _swap_red_and_blue(pixels: Pixels) -> Pixels:
    code = _TO_RGB.get(pixels.shape[2])
    return pixels if code is None else cv2.cvtColor(pixels, code)


def check_writable(path: Path, dtype: DTypeLike, channels: int) -> None:
    """Raises InputError if a file with the suffix of `path` cannot hold this depth or number of channels."""
    if path.suffix.lower() not in _KEEPS:
        raise InputError(f"cannot write {path}: the name must end in one of {', '.join(_KEEPS)}")
    dtypes, counts = _KEEPS[path.suffix.lower()]
    if dtype not in dtypes or channels not in counts:
        raise InputError(f"cannot write {path}: {path.suffix} keeps no {channels} channels of {dtype}, .png does")


def write_picture(path: Path, pixels: Pixels) -> None:
    """Writes (H, W) or (H, W, C) uint8 or uint16 grey, RGB or RGBA, making the folder.

    The file appears whole or not at all. Raises InputError if its kind cannot keep the pixels, or if writing fails.
    """
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    check_writable(path, pixels.dtype, pixels.shape[2])
    _, encoded = cv2.imencode(path.suffix.lower(), _swap_red_and_blue(pixels))
    try:
        write_whole(path, lambda temporary: temporary.write_bytes(encoded))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def list_files(folder: Path, suffixes: Sequence[str], what: str) -> list[Path]:
    """Files directly in `folder` with one of the suffixes, sorted; hidden ones are left out.

    Raises InputError if there is no folder, or no such file in it; `what` names them in the message.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
    if not paths:
        raise InputError(f"no {what} ({', '.join(suffixes)}) in the folder {folder}")
    return paths


def bundled_photos(names: Sequence[str]) -> list[Photo]:
    """Photographs that come with scikit-image's wheel (`skimage/data`); nothing is downloaded.

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


def as_rgb(pixels: Pixels) -> Pixels:
    """(H, W, C) as RGB in its own depth: grey gets three equal channels, alpha is dropped."""
    return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]


def eight_bit_rgb(pixels: Pixels) -> Picture:
    """(H, W, C) of either depth as uint8 RGB; 16 bits are rounded to 8."""
    pixels = as_rgb(pixels)
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257).astype(np.uint8)


def to_tensor(pixels: NDArray[np.generic], device: torch.device | str = "cpu") -> Tensor:
    """(H, W, C) to (C, H, W) float32: uint8 and uint16 are scaled to [0, 1], floats stay as they are."""
    tensor = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")).to(device).float()
    return tensor / np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else tensor


def to_pixels(image: Tensor, dtype: DTypeLike = np.uint8) -> Pixels:
    """(C, H, W) in [0, 1] to (H, W, C) of `dtype`, uint8 or uint16: clamped, times 255 or 65535, rounded."""
    levels = (image.detach().float().clamp(0, 1) * np.iinfo(dtype).max).round()
    integers = levels.to(torch.uint8 if dtype == np.uint8 else torch.int32)
    return integers.cpu().numpy().transpose(1, 2, 0).astype(dtype, copy=False)
