"""Image files and arrays: reading with errors that name the file, writing atomically, bundled photographs."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from models.data.files import read_file, readable, write_whole

# A loader's forked worker would wait forever for the threads of a pool that its parent had started.
cv2.setNumThreads(0)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class _Format(NamedTuple):
    """What a kind of file can hold; OpenCV silently drops other depths and channels."""

    dtypes: tuple[type, ...]
    channels: tuple[int, ...]
    side: int  # the longest that can be written, and read again
    profile: bool = True


_TIFF = _Format((np.uint8, np.uint16), (1, 3, 4), 2**20, profile=False)
_JPEG = _Format((np.uint8,), (1, 3), 65_500)
_FORMATS = {
    ".png": _Format((np.uint8, np.uint16), (1, 3, 4), 1_000_000),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": _Format((np.uint8,), (1, 3, 4), 2**20, profile=False),
    ".webp": _Format((np.uint8,), (3, 4), 16_383),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
}
_ORIENTATION = 0x0112  # EXIF's tag
_PART = 65_519  # bytes of a colour profile that fit in one segment of a JPEG
# In coded pixels 0xff stands before 0 or a restart marker, 0xd0 to 0xd7.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_JPEG_END, _JPEG_ALONE = 0xD9, (0x01, 0xD8)
_TO_RGB = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}

Picture = NDArray[np.uint8]  # (H, W, 3), RGB
Pixels = Picture | NDArray[np.uint16]  # (H, W, C), grey, RGB or RGBA


class InputError(Exception):
    """Something the user gave (a folder, an image, an option) cannot be used; the message is one line naming it."""

    def __init__(self, message: str) -> None:
        super().__init__(readable(message))


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
    return read_profiled(path)[0]


def read_profiled(path: Path) -> tuple[Pixels, bytes]:
    """As `read_image`, with the file's ICC colour profile, b"" if it has none."""
    try:
        encoded = read_file(path)
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}") from error
    return _decode(encoded, str(path))


def decode(encoded: bytes, name: str) -> Pixels:
    """The image in a PNG, JPEG, WebP, BMP or TIFF file, (H, W, C) in its own depth, uint8 or uint16.

    C is 1 for grey, 3 for RGB, 4 for RGBA. It is turned upright as its EXIF orientation says.
    Raises InputError, calling the image `name`, if it is damaged, cut short, or of another depth.
    """
    return _decode(encoded, name)[0]


def _decode(encoded: bytes, name: str) -> tuple[Pixels, bytes]:
    if _is_cut_short(encoded):
        raise InputError(f"cannot read the image {name}: the file is cut short ({len(encoded)} bytes)")
    pixels, kinds, contents = None, (), ()
    if encoded:
        try:
            # Only IMREAD_UNCHANGED keeps alpha. It leaves a picture as it lies, but for TIFF.
            pixels, kinds, contents = cv2.imdecodeWithMetadata(
                np.frombuffer(encoded, np.uint8), flags=cv2.IMREAD_UNCHANGED
            )
        except cv2.error:
            pixels = None
    if pixels is None:
        raise InputError(f"cannot read the image {name}: not an image, or damaged ({len(encoded)} bytes)")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"cannot use the image {name}: {pixels.dtype} values, expected 8 or 16 bits")
    found = {int(kind): bytes(content) for kind, content in zip(kinds, contents, strict=True)}
    upright = _upright(pixels, _orientation(found.get(cv2.IMAGE_METADATA_EXIF, b"")))
    swapped = _swap_red_and_blue(upright if upright.ndim == 3 else upright[..., None])
    return swapped, found.get(cv2.IMAGE_METADATA_ICCP, b"")


def _orientation(exif: bytes) -> int:
    """EXIF's number from 1 to 8; 1, upright, where it says nothing."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, at)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # none, or damaged
        pass
    return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = (-1 if orientation in those else 1 for those in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(pixels[::rows, ::columns])


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


def check_writable(path: Path, dtype: DTypeLike, shape: tuple[int, int, int]) -> None:
    """Raises InputError if a file with the suffix of `path` cannot hold (H, W, C) pixels of this depth."""
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise InputError(f"cannot write {path}: the name must end in one of {', '.join(_FORMATS)}")
    height, width, channels = shape
    if dtype not in _FORMATS[suffix].dtypes or channels not in _FORMATS[suffix].channels:
        raise InputError(f"cannot write {path}: {path.suffix} keeps no {channels} channels of {dtype}, .png does")
    if max(height, width) > _FORMATS[suffix].side:
        raise InputError(
            f"cannot write {path}: {width} x {height} pixels, {path.suffix} has at most {_FORMATS[suffix].side} a side"
        )


def write_picture(path: Path, pixels: Pixels, profile: bytes = b"") -> bool:
    """Writes (H, W) or (H, W, C) uint8 or uint16 grey, RGB or RGBA, making the folder.

    The file appears whole or not at all. Returns whether it has the ICC profile, if one was given: TIFF and BMP are
    written without, and a profile must be of the pixels' colour space. Raises InputError if its kind cannot keep the
    pixels, or if writing fails.
    """
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    check_writable(path, pixels.dtype, pixels.shape)
    suits = profile[16:20] == (b"GRAY" if pixels.shape[2] == 1 else b"RGB ")
    suffix, swapped = path.suffix.lower(), _swap_red_and_blue(pixels)
    wanted = profile if suits and _FORMATS[suffix].profile else b""
    encoded = _encode(suffix, swapped, wanted)
    if encoded is None and wanted:  # libpng looks into a profile, and refuses a damaged one
        wanted, encoded = b"", _encode(suffix, swapped, b"")
    if encoded is None:
        raise InputError(f"cannot write {path}: OpenCV cannot encode {pixels.shape} {pixels.dtype} pixels")
    try:
        write_whole(path, lambda temporary: temporary.write_bytes(encoded))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    return wanted == profile


def encode_png(pixels: Pixels) -> bytes:
    """The content of a PNG file that holds (H, W, C) uint8 or uint16 pixels, for what is no file of its own."""
    encoded = _encode(".png", _swap_red_and_blue(pixels), b"")
    assert encoded is not None  # PNG takes all that can be read
    return encoded


def _encode(suffix: str, pixels: Pixels, profile: bytes) -> bytes | None:
    """A file's content, None if it cannot be made."""
    jpeg = _FORMATS[suffix] is _JPEG  # OpenCV writes no profile of several segments
    by_opencv = [np.frombuffer(profile, np.uint8)] if profile and not jpeg else []
    try:
        done, encoded = cv2.imencodeWithMetadata(suffix, pixels, [cv2.IMAGE_METADATA_ICCP] * len(by_opencv), by_opencv)
    except cv2.error:
        return None
    if not done:
        return None
    return _profiled_jpeg(encoded.tobytes(), profile) if jpeg else encoded.tobytes()


def _profiled_jpeg(encoded: bytes, profile: bytes) -> bytes | None:
    """A JPEG with the profile in segments behind the first one, JFIF's (annex B of the ICC's specification)."""
    parts = [profile[at : at + _PART] for at in range(0, len(profile), _PART)]
    if len(parts) > 255:
        return None
    head = 4 + int.from_bytes(encoded[4:6], "big")
    segments = (
        b"\xff\xe2" + struct.pack(">H", 16 + len(part)) + b"ICC_PROFILE\0" + bytes((number, len(parts))) + part
        for number, part in enumerate(parts, 1)
    )
    return b"".join((encoded[:head], *segments, encoded[head:]))


def list_files(folder: Path, suffixes: Sequence[str], what: str, *, nested: bool = False) -> list[Path]:
    """Files in `folder`, and if `nested` in folders of it, with one of the suffixes, sorted; hidden ones are left out.

    Raises InputError if there is no folder, or no such file in it; `what` names them in the message.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    found = folder.rglob("*") if nested else folder.iterdir()
    paths = sorted(p for p in found if p.suffix.lower() in suffixes and not p.name.startswith("."))
    if not paths:
        raise InputError(f"no {what} ({', '.join(suffixes)}) in the folder {folder}")
    return paths


class Wheel(NamedTuple):
    """A package that brings photographs: what it is imported and installed as, and where in it they are."""

    package: str
    distribution: str
    folder: str


SCIKIT_IMAGE = Wheel("skimage", "scikit-image", "data")


def bundled_photos(names: Sequence[str], wheel: Wheel = SCIKIT_IMAGE) -> list[Photo]:
    """Photographs that come with an installed package; nothing is downloaded.

    Raises InputError if it is not installed or lacks a file.
    """
    package = find_spec(wheel.package)  # found, not imported
    if package is None or not package.submodule_search_locations:
        raise InputError(f"the bundled photographs need {wheel.distribution}: pip install {wheel.distribution}")
    folder = Path(package.submodule_search_locations[0]) / wheel.folder
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
