"""The methods' training steps, each form against the others: losses of the first update, times, memory."""

from __future__ import annotations

import pytest
import torch

from ..conftest import Results
from . import configurations
from .form import first_losses, measure


@pytest.mark.parametrize("name", configurations())
def test_step(name: str, timed: bool, seconds: float, results: Results) -> None:
    """The losses of the first update agree in all forms, then times. Without --benchmark: one form after the other."""
    bench = configurations()[name]
    if not timed:
        first_losses(name, bench, bench.make(torch.device("cpu"), 1))
    elif results.device.type in bench.batch:
        results.steps.append(measure(name, bench, results.device, seconds=4 * seconds))
    else:
        pytest.skip(f"measured on {' and '.join(bench.batch)} alone")
