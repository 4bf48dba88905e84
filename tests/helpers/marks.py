"""Marks of single rows of a table of tests."""

from __future__ import annotations

from typing import Any

import pytest


def thorough(*values: Any, id: str | None = None) -> Any:
    """A row that a whole run leaves out without ``--thorough``."""
    return pytest.param(*values, id=id, marks=pytest.mark.thorough)
