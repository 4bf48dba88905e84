"""What the tests of measured choices share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

import srkernels
from srkernels.tuned import choose
from srkernels.tuned.records import Records

from .calls import recorded


def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_records", Records())
    monkeypatch.setattr(choose, "_loaded", set())
    monkeypatch.setattr(choose, "_quiet", set())
    monkeypatch.setattr(choose, "_choices", {})


def loss(x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    return srkernels.weighted_l1_loss(x, y, **settings)


def backends(call: Callable[[], Any]) -> list[str]:
    """Of the ops that a call runs, the backend that each carries: "" for an automatic choice that is not measured."""
    with recorded() as calls:
        call()
    return [call.backend for call in calls]
