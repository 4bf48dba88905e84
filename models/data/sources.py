"""Where images come from: folders, LMDB databases, memory. Every source pickles into a worker process."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.data.files import check_regular, readable
from models.data.images import IMAGE_SUFFIXES, InputError, list_files, read_image


class Source(Protocol):
    """Images by index, `names[index]` being the name without extension by which pairs find each other."""

    names: Sequence[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> NDArray[np.generic]:
        """(H, W, C), uint8 or uint16 for images, float32 for maps; read-only.

        Raises InputError naming what cannot be read.
        """
        ...

    def label(self, index: int) -> str:
        """Where the image is, for messages."""
        ...

    def mark(self, index: int) -> str:
        """The image's name and size, which tell other images from these wherever they are, and without reading them."""
        ...


class FolderSource:
    """The images directly in a folder, sorted by file name. Raises InputError if there are none.

    If it is `nested` those in folders of it, too, under names such as 000/00000000.
    """

    def __init__(self, path: Path, *, nested: bool = False) -> None:
        self._paths = list_files(Path(path), IMAGE_SUFFIXES, "image", nested=nested)
        self.names = _names(self._paths, Path(path))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.generic]:
        return read_image(self._paths[index])

    def label(self, index: int) -> str:
        return readable(str(self._paths[index]))

    def mark(self, index: int) -> str:
        return _mark_of_file(self._paths[index])


class MapSource:
    """Float maps as `.npy` files of shape (h, w), (1, h, w) or (1, 1, h, w), read as (h, w, 1) float32.

    A float32 map is memory-mapped: only the crop is read from it. Raises InputError if there are none. If it is
    `nested`, names are as in `FolderSource`.
    """

    def __init__(self, path: Path, *, nested: bool = False) -> None:
        self._paths = list_files(Path(path), (".npy",), "map", nested=nested)
        self.names = _names(self._paths, Path(path))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.float32]:
        path = self._paths[index]
        try:
            check_regular(path)
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a header can be damaged in more ways than NumPy has errors for
            raise InputError(f"cannot read the map {path}: not a .npy file, or damaged") from error
        if not np.issubdtype(values.dtype, np.floating) or values.ndim < 2 or any(n != 1 for n in values.shape[:-2]):
            raise InputError(f"cannot use the map {path}: {values.dtype} {values.shape}, expected floats (1, 1, h, w)")
        return values.reshape(*values.shape[-2:], 1).astype(np.float32, copy=False)

    def label(self, index: int) -> str:
        return readable(str(self._paths[index]))

    def mark(self, index: int) -> str:
        return _mark_of_file(self._paths[index])


def _names(paths: Sequence[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).with_suffix("").as_posix() for path in paths]


class ArraySource:
    """Arrays in memory, (H, W, C) each: uint8 or uint16 for images, float32 for maps."""

    def __init__(self, names: Sequence[str], arrays: Sequence[NDArray[np.generic]]) -> None:
        if len(names) != len(arrays):
            raise ValueError(f"ArraySource: {len(names)} names for {len(arrays)} arrays")
        for name, array in zip(names, arrays, strict=True):
            if array.ndim != 3:
                raise ValueError(f"ArraySource: expected (H, W, C), {name} is {array.shape}")
        self.names, self._arrays = list(names), list(arrays)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.generic]:
        return self._arrays[index]

    def label(self, index: int) -> str:
        return self.names[index]

    def mark(self, index: int) -> str:
        return f"{self.names[index]} {self._arrays[index].shape}"


class Selected:
    """The images of `source` with these names, in its order."""

    def __init__(self, source: Source, names: Collection[str]) -> None:
        wanted = set(names)
        self._source = source
        self._indices = [index for index, name in enumerate(source.names) if name in wanted]
        self.names = [source.names[index] for index in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> NDArray[np.generic]:
        return self._source.read(self._indices[index])

    def label(self, index: int) -> str:
        return self._source.label(self._indices[index])

    def mark(self, index: int) -> str:
        return self._source.mark(self._indices[index])


class Cached:
    """Keeps the most recently read images of `source`, up to `limit_bytes` of pixels in each process."""

    def __init__(self, source: Source, limit_bytes: int) -> None:
        self.names = source.names
        self._source, self._limit = source, limit_bytes
        self._kept: OrderedDict[int, NDArray[np.generic]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> NDArray[np.generic]:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        image = self._source.read(index)
        if image.nbytes > self._limit:
            return image
        if isinstance(image.base, np.memmap) or isinstance(image, np.memmap):
            image = np.array(image)  # kept as it is, it would keep its file open
        self._kept[index] = image
        self._bytes += image.nbytes
        while self._bytes > self._limit:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return image

    def label(self, index: int) -> str:
        return self._source.label(index)

    def mark(self, index: int) -> str:
        return self._source.mark(index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_bytes": 0}


def check_names(source: Source) -> None:
    """Raises InputError unless every name is that of a file in a folder, and of one file.

    What is made of one picture would replace what is made of another, or, by a database's key, any file there is.
    """
    seen: dict[str, int] = {}
    for index, name in enumerate(source.names):
        if "\0" in name or not all(part.strip(".") for part in name.split("/")):
            raise InputError(f"{source.label(index)}: no file in a folder can have this name")
        if name in seen:
            raise InputError(f"two pictures are named {name}: {source.label(seen[name])} and {source.label(index)}")
        seen[name] = index


def fingerprint(source: Source) -> str:
    """The number of images and a digest of their names and sizes, the same wherever they are moved to."""
    marks = "\n".join(source.mark(index) for index in range(len(source)))
    return f"{len(source)} images {hashlib.sha256(marks.encode(errors='surrogateescape')).hexdigest()[:16]}"


def _mark_of_file(path: Path) -> str:
    try:
        return f"{path.name} {path.stat().st_size}"
    except OSError:  # reading it will say why
        return path.name
