"""The methods' training steps, each form against the others: losses of the first update, times, memory."""

from __future__ import annotations

import pytest
import torch

from .conftest import Results

# Reading pictures is of no matter here, but the package `models` needs its extra.
steps = pytest.importorskip("bench.steps", reason="models needs the extra train")


@pytest.mark.parametrize("name", steps.configurations())
def test_step(name: str, timed: bool, seconds: float, results: Results) -> None:
    """The losses of the first update agree in all forms, then times. Without --benchmark: one form after the other."""
    bench = steps.configurations()[name]
    if not timed:
        steps.first_losses(name, bench, bench.make(torch.device("cpu"), 1))
    elif results.device.type in bench.batch:
        results.steps.append(steps.measure(name, results.device, seconds=4 * seconds))
    else:
        pytest.skip(f"measured on {' and '.join(bench.batch)} alone")
