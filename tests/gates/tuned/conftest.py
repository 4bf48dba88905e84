"""A cache of choices and a clock for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.operands import random
from helpers.tuning import anew
from torch import Tensor

from srkernels.tuned import clock


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, and a process that has measured nothing."""
    monkeypatch.setenv("SRKERNELS_CACHE", str(tmp_path / "cache"))
    anew(monkeypatch)
    return tmp_path / "cache"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a clock says of each backend, in seconds; 1 unless it is told."""
    times: dict[str, float] = {}

    def medians(calls: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
        for call in calls.values():
            call()
        return {name: times.get(name, 1.0) for name in calls}

    monkeypatch.setattr(clock, "medians", medians)
    return times


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    return random((2, 3, 12, 16), torch.float32, 0), random((2, 3, 12, 16), torch.float32, 1)
