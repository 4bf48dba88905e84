"""DASR's training steps at published sizes, against the published form and the best that plain PyTorch gives."""

from __future__ import annotations

import pytest
import torch

from .conftest import Results

# Reading pictures is of no matter here, but the package `models` needs its extra.
steps = pytest.importorskip("bench.steps", reason="models needs the extra train")


@pytest.mark.parametrize("name", steps.configurations())
def test_step(name: str, timed: bool, seconds: float, results: Results) -> None:
    """The losses of the first update agree in all forms, then times. Without --benchmark: one form after the other."""
    if timed:
        results.steps.append(steps.measure(name, results.device, seconds=4 * seconds))
        return
    device = torch.device("cpu")
    made = steps.calls(name, device, 1)
    first = {}
    for form, call in made.items():
        with steps.around(form):
            first[form] = {key: float(value) for key, value in call().items()}
        steps.check_losses(name, form, first[form], first["published"])
