"""Files that are read to their end, files that appear whole or not at all, and names that fit on a line."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

# What a disk says that has no room, or that fails.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# Of `write_whole`, with the number of the process that writes.
_TEMPORARY = re.compile(r"\..+\.(\d+)\.(csv|jpe?g|md|npy|png|pth|safetensors|state|tiff?|webp|bmp|yaml)")
# Of safetensors' own save_file, which an earlier version left among a run's weights.
_SAFETENSORS = re.compile(r"\.tmp\w{6}")


def check_regular(path: Path) -> None:
    """Raises OSError, naming the path, unless it is a file that can be read to its end; a pipe could wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError."""
    check_regular(path)
    try:
        return path.read_bytes()
    except MemoryError as error:  # a file of holes can be of any size
        raise OSError(errno.ENOMEM, "too large for the memory", str(path)) from error


def read_text(path: Path) -> str:
    """Text in UTF-8, or in UTF-16 behind its mark. Raises OSError, and ValueError, naming the file, for other bytes."""
    encoded = read_file(path)
    wide = encoded.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = encoded.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from error
    if "\0" in text:
        raise ValueError(f"{path} is not UTF-8 text: it holds zeros")
    return text


def readable(text: str) -> str:
    """A name or a message as it can be shown on one line: what does not print, such as a line's end, is escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary path beside `path` and moves the result into place once it is on disk.

    A crash at any moment leaves either the old file or the new one. If writing fails (a full disk), the old file stays,
    the temporary one is deleted, and the error is raised; an OSError names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        check_regular(path)  # a device would be replaced
    # As long as any name can be, and with the suffix last: some writers choose their format by it.
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    temporary = path.with_name(f".{digest}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # some writers create files that only their owner may read
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 as `write_whole` does."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def remove_leftovers(folder: Path) -> None:
    """Deletes, at any depth, the temporary files of `write_whole` whose processes are dead.

    Nothing may be in the making there. A file of this process's number is of an earlier one: containers count anew.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            ours = _TEMPORARY.fullmatch(name)
            dead = ours and (int(ours[1]) == os.getpid() or not _lives(int(ours[1])))
            if dead or (Path(parent).name == "models" and _SAFETENSORS.fullmatch(name)):
                Path(parent, name).unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
