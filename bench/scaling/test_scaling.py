"""How cost grows, as curves: every op and every training step over sides and batches."""

from __future__ import annotations

import time

import pytest

from srkernels._spec import OpSpec
from srkernels.ops import specs

from ..conftest import Results
from . import ops, steps
from .plan import Plan, quick, share, whole

_MINUTES = 6


@pytest.fixture(scope="module")
def ends() -> float:
    return time.monotonic() + 60 * _MINUTES


@pytest.fixture
def plan(request: pytest.FixtureRequest, timed: bool, results: Results, ends: float) -> Plan:
    """What the others leave of the time is shared out among the remaining tests."""
    if not timed:
        return quick()
    mine = [item for item in request.session.items if item.path == request.path]
    return whole(results.device, deadline=share(ends, len(mine) - mine.index(request.node)))


@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in specs()])
def test_op(spec: OpSpec, timed: bool, plan: Plan, results: Results) -> None:
    """Parity at every size, then times. Without --benchmark: at a few small sizes."""
    curves = ops.measure(spec, results.device, plan)
    if timed:
        results.scaling.extend(curves)


@pytest.mark.parametrize("name", steps.STEPS)
def test_step(name: str, timed: bool, plan: Plan, results: Results) -> None:
    """The losses of the first update agree at every size, then times."""
    curves = steps.measure(name, results.device, plan)
    if timed:
        results.scaling.extend(curves)
