"""Photographs and patches: image files, sources of images, random aligned patches for training."""

from __future__ import annotations

from models.data.database import LMDBSource, open_source, write_lmdb
from models.data.images import (
    IMAGE_SUFFIXES,
    InputError,
    Photo,
    Picture,
    Pixels,
    as_rgb,
    bundled_photos,
    check_writable,
    crop_to_multiple,
    decode,
    eight_bit_rgb,
    list_files,
    read_image,
    read_photo,
    read_profiled,
    to_pixels,
    to_tensor,
    write_picture,
)
from models.data.inputs import HeldOut, Inputs, Pairs
from models.data.lock import locked
from models.data.patches import BadImage, BadImages, PatchDataset, Stream, Unusable, make_loader, read_usable
from models.data.resize import imresize
from models.data.sources import (
    ArraySource,
    Cached,
    FolderSource,
    MapSource,
    Selected,
    Source,
    check_names,
    fingerprint,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "ArraySource",
    "BadImage",
    "BadImages",
    "Cached",
    "FolderSource",
    "HeldOut",
    "InputError",
    "Inputs",
    "LMDBSource",
    "MapSource",
    "Pairs",
    "PatchDataset",
    "Photo",
    "Picture",
    "Pixels",
    "Selected",
    "Source",
    "Stream",
    "Unusable",
    "as_rgb",
    "bundled_photos",
    "check_names",
    "check_writable",
    "crop_to_multiple",
    "decode",
    "eight_bit_rgb",
    "fingerprint",
    "imresize",
    "list_files",
    "locked",
    "make_loader",
    "open_source",
    "read_image",
    "read_photo",
    "read_profiled",
    "read_usable",
    "to_pixels",
    "to_tensor",
    "write_lmdb",
    "write_picture",
]
