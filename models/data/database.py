"""LMDB databases in BasicSR's layout: `x.lmdb` with `data.mdb` and `meta_info.txt`, images under their names."""

from __future__ import annotations

import os
import shutil
import struct
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from models.data.files import read_file, read_text, readable
from models.data.images import IMAGE_SUFFIXES, InputError, decode, list_files
from models.data.sources import FolderSource

_META = "meta_info.txt"
_LONGEST_KEY = 511

# The layout of data.mdb in LMDB's mdb.c. Of a meta page: its flags, magic number, version, page size, and of the tree
# flags, depth, root and number of the last transaction. Of a page: its number, flags, and the ends of the free space.
# Of a node: low and high half of its size (in a branch, of a page's number), flags (its last part), its key's length.
_META_PAGE = struct.Struct("=10xH4xII16xI48xHH32xQ8xQ")
_PAGE = struct.Struct("=Q2xHHH")
_NODE = struct.Struct("=HHHH")
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _IS_META, _KINDS = 1, 2, 8, 0x6F
_BIG = 1  # a node's flag: its data has pages of its own
_NO_PAGE = 2**64 - 1
_PAGE_SIZES = tuple(2**n for n in range(9, 17))


class LMDBSource:
    """A database in BasicSR's layout: `x.lmdb` with `data.mdb` and `meta_info.txt`, encoded images under their names.

    Raises InputError if it is not one, or if the package lmdb is not installed.
    """

    def __init__(self, path: Path) -> None:
        _lmdb()
        self._path = Path(os.path.realpath(path))
        if not (self._path / "data.mdb").is_file():
            raise InputError(f"no database: {path} has no data.mdb")
        try:
            lines = read_text(self._path / _META).split("\n")
        except OSError as error:
            raise InputError(f"cannot read {self._path / _META}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(str(error)) from error
        # A line is "0001_s001.png (480,480,3) 1"; the extension is not part of the key.
        self._lines = [line for line in lines if line.strip()]
        self.names = [os.path.splitext(line.rsplit(" (", 1)[0])[0] for line in self._lines]
        if not self.names:
            raise InputError(f"no image in {self._path / _META}")
        _check_tree(self._path)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> NDArray[np.generic]:
        try:
            with _environment(str(self._path)).begin() as transaction:
                encoded = transaction.get(self.names[index].encode())
        except _lmdb().Error as error:  # a key that is empty or too long, for one
            raise InputError(f"cannot read the image {self.label(index)}: {error}") from error
        if encoded is None:
            raise InputError(f"cannot read the image {self.label(index)}: it is in {_META}, but not in the database")
        return decode(encoded, self.label(index))

    def label(self, index: int) -> str:
        return readable(f"{self._path}/{self.names[index]}")

    def mark(self, index: int) -> str:
        return self._lines[index]


def _check_tree(path: Path) -> None:
    """Raises InputError unless every page and image that a key leads to lies in `data.mdb`.

    LMDB maps the file and follows the numbers in it: where it is cut short or damaged the process would be killed.
    """
    try:
        with (path / "data.mdb").open("rb") as file:
            _walk(file.fileno(), os.fstat(file.fileno()).st_size)
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"cannot open the database {path}: damaged, cut short, or none of LMDB's ({error})") from error


def _walk(file: int, size: int) -> None:
    first = _read_meta(file, 0)
    second = _read_meta(file, first.page_size)
    if second.page_size != first.page_size:
        raise ValueError("its two heads differ")
    page_size, root, depth, _ = second if second.transaction > first.transaction else first
    count = size // page_size
    pages = [] if root == _NO_PAGE else [(root, depth)]
    for _ in range(count + 1):
        if not pages:
            return
        number, depth = pages.pop()
        if number >= count:
            raise ValueError(f"page {number} is missing")
        pages += _read_page(os.pread(file, page_size, number * page_size), number, depth, size)
    raise ValueError("its pages lead back to one another")


class _Meta(NamedTuple):
    page_size: int
    root: int
    depth: int
    transaction: int


def _read_meta(file: int, at: int) -> _Meta:
    kind, magic, version, page_size, flags, depth, root, transaction = _META_PAGE.unpack(
        os.pread(file, _META_PAGE.size, at)
    )
    if (magic, version, kind & _KINDS) != (_MAGIC, _VERSION, _IS_META) or page_size not in _PAGE_SIZES:
        raise ValueError("its head is unknown")
    if flags:
        raise ValueError("it holds no plain values")
    return _Meta(page_size, root, depth, transaction)


def _read_page(page: bytes, number: int, depth: int, size: int) -> list[tuple[int, int]]:
    """The pages below, each with its depth."""
    own, kind, lower, upper = _PAGE.unpack_from(page)
    damaged = ValueError(f"page {number} is damaged")
    wanted = _LEAF if depth == 1 else _BRANCH
    if (own, kind & _KINDS) != (number, wanted) or not _PAGE.size <= lower <= upper <= len(page):
        raise damaged
    offsets = struct.unpack_from(f"={(lower - _PAGE.size) // 2}H", page, _PAGE.size)
    if depth > 1 and len(offsets) < 2:
        raise damaged
    below = []
    for offset in offsets:
        low, high, flags, key = _NODE.unpack_from(page, offset)
        end, length = offset + _NODE.size + key, low | high << 16
        if depth > 1:
            below.append((length | flags << 32, depth - 1))
        elif flags & _BIG:
            (start,) = struct.unpack_from("=Q", page, end)
            if start * len(page) + _PAGE.size + length > size:
                raise ValueError(f"an image on page {start} is cut short")
            continue
        else:
            end += length
        if end > len(page):
            raise damaged
    return below


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

    The database appears whole or not at all. Raises InputError if an image is damaged, two have one name, one has a
    name that a database cannot hold, or `target` exists.
    """
    lmdb = _lmdb()
    paths = list_files(folder, IMAGE_SUFFIXES, "image")
    if target.suffix != ".lmdb":
        raise InputError(f"cannot write {target}: the name must end in .lmdb")
    if target.exists():
        raise InputError(f"cannot write {target}: it exists")
    seen = set()
    for path in paths:
        if path.stem in seen:
            raise InputError(f"two images in {folder} are named {path.stem}")
        seen.add(path.stem)
        key = path.stem.encode("utf-8", "replace")
        if key.decode() != path.stem or "\n" in path.stem or len(key) > _LONGEST_KEY:
            raise InputError(f"{path}: a database takes names of UTF-8, of one line and {_LONGEST_KEY} bytes at most")
    temporary = target.with_name(target.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    try:
        # An image takes whole pages of 4 KiB and part of the tree; the file grows only as it is written.
        environment = lmdb.open(str(temporary), map_size=2**24 + sum(2 * p.stat().st_size + 2**14 for p in paths))
        lines = []
        with environment, environment.begin(write=True) as transaction:
            for path in track(paths, description="database", transient=True):
                encoded = read_file(path)
                height, width, channels = decode(encoded, str(path)).shape
                transaction.put(path.stem.encode(), encoded)
                lines.append(f"{path.name} ({height},{width},{channels}) 1\n")
        (temporary / _META).write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, target)
    except (OSError, lmdb.Error) as error:
        raise InputError(f"cannot write {target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
