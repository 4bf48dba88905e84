"""The folder that a run leaves behind, and its messages on the way."""

from __future__ import annotations

import csv
import io
import itertools
import os
import resource
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.data import InputError
from models.data.files import FULL, write_whole
from models.data.lock import locked
from models.train import distributed


def make_console(quiet: bool = False) -> Console:
    """A console of the terminal's width or, without a terminal, of a width that tables fit in.

    It shows text as it is: what looks like markup or an emoji's code may be a file's name.
    """
    return Console(width=None if Console().is_terminal else 110, quiet=quiet, markup=False, emoji=False)


class RunError(Exception):
    """Training cannot go on (a loss that is not finite, a disk that is full); the message is for the user."""


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM, SIGINT) and has saved its state."""


class Run:
    """A run's folder and its messages, which are shown and written to `train_<name>_<time>.log`.

    Only the main rank shows and writes, and it keeps other processes out of the folder until `close`. A folder `anew`,
    which is the run's or one in it, is first set aside. Raises InputError if the folder cannot be made, has no name in
    UTF-8, or is in use.
    """

    def __init__(self, folder: Path, anew: Path | None = None) -> None:
        self.folder = folder
        self.console = make_console(quiet=not distributed.is_main())
        self._log_file: io.TextIOBase = io.StringIO()
        try:
            str(folder).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the run's folder {folder} must have a name in UTF-8, for TensorBoard's sake") from error
        self._locked = ExitStack()
        distributed.on_main(lambda: self._open(anew))
        self._log = Console(file=self._log_file, width=110, markup=False, emoji=False)
        if distributed.is_main() and not self._exclusive:
            self.say(f"the file system of {folder} has no locks: nothing keeps a second run out of it", style="yellow")

    def _open(self, anew: Path | None) -> None:
        folder = self.folder
        try:
            earlier = anew is not None and anew.exists()
            self._exclusive = self._locked.enter_context(locked(folder))
            if anew is not None and earlier:
                whole = anew.samefile(folder)
                set_aside(anew)
                if whole:  # with its lock
                    self._locked.close()
                    self._exclusive = self._locked.enter_context(locked(folder))
            now = datetime.now().strftime("%Y%m%d_%H%M%S")
            self._log_file = (folder / f"train_{folder.name}_{now}.log").open(
                "a", encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            if error.errno in FULL:
                raise
            raise InputError(f"cannot write to the folder {folder}: {error.strerror}") from error

    def say(self, *renderables: RenderableType, style: str | None = None) -> None:
        """Prints lines, taken as they are, and tables."""
        for renderable in renderables:
            lines = isinstance(renderable, str)  # a line of figures is easier to read, and to search, unbroken
            for console in (self.console, self._log):
                console.print(renderable, style=style, highlight=False, soft_wrap=lines)
        self._log_file.flush()

    def say_anywhere(self, line: str) -> None:
        """Prints a line, on any rank."""
        if distributed.is_main():
            self.say(line)
        else:
            print(f"rank {distributed.rank()}: {line}", flush=True)

    def progress(self, *columns: str) -> Progress:
        """A progress bar; `columns` are the names of task fields to show after the times."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            *(TextColumn(f"{{task.fields[{name}]}}") for name in columns),
            console=self.console,
        )

    def close(self) -> None:
        self._log_file.close()
        self._locked.close()


def set_aside(folder: Path) -> None:
    """Renames the folder of an earlier run. Raises InputError if that fails."""
    folder = Path(os.path.realpath(folder))
    if not folder.exists():
        return
    now = datetime.now().strftime("%Y%m%d_%H%M%S")
    first = folder.with_name(f"{folder.name}_archived_{now}")
    numbered = (first.with_name(f"{first.name}_{number}") for number in itertools.count(2))
    try:
        folder.rename(first if not first.exists() else next(path for path in numbered if not path.exists()))
    except OSError as error:
        raise InputError(f"cannot set the earlier run {folder} aside: {error.strerror}") from error


class StepTable:
    """A CSV file of numbers by step, `step` first. Rows beyond `upto` are dropped: a resumed run writes them again."""

    def __init__(self, path: Path, columns: Sequence[str], upto: int) -> None:
        kept = [row for row in read_table(path) if row["step"] <= upto] if path.exists() else []
        earlier = (name for row in kept for name in row)  # what an earlier run alone measured stays
        self._path, self._columns = path, list(dict.fromkeys(("step", *columns, *earlier)))
        if distributed.is_main():
            write_whole(path, lambda temporary: self._write(temporary, "w", kept))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._write(self._path, "a", [{"step": step, **values}])

    def _write(self, path: Path, mode: str, rows: Sequence[Mapping[str, float]]) -> None:
        with path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, float]]:
    """The rows that a `StepTable` wrote; an empty cell is left out of its row, and a row that is damaged too."""
    text = path.read_bytes().decode("utf-8", errors="replace").replace("\0", "\ufffd")
    whole, _, torn = text.rpartition("\n")  # a row that was not written to its end may look like one
    rows = (_numbers(row) for row in csv.DictReader(io.StringIO(whole if torn else text, newline="")))
    return [row for row in rows if row is not None]


def _numbers(row: Mapping[str | None, str | list[str] | None]) -> dict[str, float] | None:
    try:
        # More cells than columns have no key, fewer no value: neither is a string.
        cells = {key: cell for key, cell in row.items() if cell != ""}
        return {"step": int(cells.pop("step")), **{key: float(cell) for key, cell in cells.items()}}  # type: ignore[arg-type, dict-item]
    except (KeyError, TypeError, ValueError):
        return None


def peak_memory(device: torch.device) -> float:
    """The most memory this process has held so far, in GB: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024) / 1e9
