"""Where images come from: folders, LMDB databases, memory. Every source pickles into a worker process."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from models.data.images import IMAGE_SUFFIXES, InputError, decode, list_files, read_image

_META = "meta_info.txt"


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
    """The images directly in a folder, sorted by file name. Raises InputError if there are none."""

    def __init__(self, path: Path) -> None:
        self._paths = list_files(Path(path), IMAGE_SUFFIXES, "image")
        self.names = [path.stem for path in self._paths]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.generic]:
        return read_image(self._paths[index])

    def label(self, index: int) -> str:
        return str(self._paths[index])

    def mark(self, index: int) -> str:
        return _mark_of_file(self._paths[index])


class MapSource:
    """Float maps as `.npy` files of shape (h, w), (1, h, w) or (1, 1, h, w), read as (h, w, 1) float32.

    A float32 map is memory-mapped: only the crop is read from it. Raises InputError if there are none.
    """

    def __init__(self, path: Path) -> None:
        self._paths = list_files(Path(path), (".npy",), "map")
        self.names = [path.stem for path in self._paths]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.float32]:
        path = self._paths[index]
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"cannot read the map {path}: not a .npy file, or damaged") from error
        if not np.issubdtype(values.dtype, np.floating) or values.ndim < 2 or any(n != 1 for n in values.shape[:-2]):
            raise InputError(f"cannot use the map {path}: {values.dtype} {values.shape}, expected floats (1, 1, h, w)")
        return values.reshape(*values.shape[-2:], 1).astype(np.float32, copy=False)

    def label(self, index: int) -> str:
        return str(self._paths[index])

    def mark(self, index: int) -> str:
        return _mark_of_file(self._paths[index])


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


class LMDBSource:
    """A database in BasicSR's layout: `x.lmdb` with `data.mdb` and `meta_info.txt`, encoded images under their names.

    Raises InputError if it is not one, or if the package lmdb is not installed.
    """

    def __init__(self, path: Path) -> None:
        _lmdb()
        self._path = Path(path).resolve()
        if not (self._path / "data.mdb").is_file():
            raise InputError(f"no database: {path} has no data.mdb")
        try:
            lines = (self._path / _META).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InputError(f"cannot read {self._path / _META}: {error.strerror}") from error
        # A line is "0001_s001.png (480,480,3) 1"; the extension is not part of the key.
        self._lines = [line for line in lines if line.strip()]
        self.names = [os.path.splitext(line.rsplit(" (", 1)[0])[0] for line in self._lines]
        if not self.names:
            raise InputError(f"no image in {self._path / _META}")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.generic]:
        with _environment(str(self._path)).begin() as transaction:
            encoded = transaction.get(self.names[index].encode())
        if encoded is None:
            raise InputError(f"cannot read the image {self.label(index)}: it is in {_META}, but not in the database")
        return decode(encoded, self.label(index))

    def label(self, index: int) -> str:
        return f"{self._path}/{self.names[index]}"

    def mark(self, index: int) -> str:
        return self._lines[index]


@cache
def _environment(path: str) -> Any:
    """The open database; LMDB must not open one twice in a process, nor use one across a fork."""
    lmdb = _lmdb()
    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise InputError(f"cannot open the database {path}: {error}") from error


os.register_at_fork(after_in_child=_environment.cache_clear)


def _lmdb() -> Any:
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise InputError("databases (.lmdb) need the package lmdb: pip install lmdb") from error
    return lmdb


def open_source(path: Path) -> FolderSource | LMDBSource:
    """The database `*.lmdb`, or a folder of images. Raises InputError if `path` is neither."""
    return LMDBSource(path) if Path(path).suffix == ".lmdb" else FolderSource(path)


def write_lmdb(folder: Path, target: Path) -> None:
    """Writes the images of a folder, as they are, to the database `target` (`*.lmdb`) in BasicSR's layout.

    The database appears whole or not at all. Raises InputError if an image is damaged, two have one name, or `target`
    exists.
    """
    lmdb = _lmdb()
    source = FolderSource(folder)
    if target.suffix != ".lmdb":
        raise InputError(f"cannot write {target}: the name must end in .lmdb")
    if target.exists():
        raise InputError(f"cannot write {target}: it exists")
    if len(set(source.names)) < len(source):
        twice = next(name for index, name in enumerate(source.names) if name in source.names[:index])
        raise InputError(f"two images in {folder} are named {twice}")
    paths = [Path(source.label(index)) for index in range(len(source))]
    temporary = target.with_name(target.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    try:
        # An image takes whole pages of 4 KiB and part of the tree; the file grows only as it is written.
        environment = lmdb.open(str(temporary), map_size=2**24 + sum(2 * p.stat().st_size + 2**14 for p in paths))
        lines = []
        with environment, environment.begin(write=True) as transaction:
            for path in track(paths, description=target.name, transient=True):
                encoded = path.read_bytes()
                height, width, channels = decode(encoded, str(path)).shape
                transaction.put(path.stem.encode(), encoded)
                lines.append(f"{path.name} ({height},{width},{channels}) 1\n")
        (temporary / _META).write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    """Raises InputError if two pictures have one name: what is made of one would replace what is made of the other."""
    seen: dict[str, int] = {}
    for index, name in enumerate(source.names):
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
