"""What a section of the acceptance works with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import tables


class Skip(Exception):
    """This section has nothing to run here; the text is the reason."""


@dataclass
class Context:
    """What a section works with; tables added are saved at once.

    Attributes:
        quick: only exercise the code: no build, tiny sizes.
        deadline: shortly before the section will be killed; on ``time.monotonic``, one clock for all processes.
    """

    device: torch.device
    out: Path
    quick: bool
    deadline: float
    save: Callable[[Mapping[str, Any]], None]
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def small(self) -> bool:
        """Tiny sizes: requested, or because a CPU stands in for the GPU."""
        return self.quick or not self.cuda

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def table(self, title: str, headers: list[str]) -> Callable[..., None]:
        """Start a table; the function returned appends a row to it."""
        rows: list[list[str]] = []
        self.data.setdefault("tables", []).append({"title": title, "headers": headers, "rows": rows})

        def add(*cells: object) -> None:
            rows.append([c if isinstance(c, str) else tables.number(c) for c in cells])  # type: ignore[arg-type]
            self.save(self.data)

        return add

    def note(self, text: str) -> None:
        self.data.setdefault("notes", []).append(text)
        self.save(self.data)
