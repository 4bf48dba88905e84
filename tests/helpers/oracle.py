"""The oracle's answers for a gate's case, over draws."""

from __future__ import annotations

import torch

from srkernels import _parity
from srkernels._parity import Answers, Draw, present, values
from srkernels._spec import Case, OpSpec

from .operands import cotangents, operands

# An op is run on TESTED draws. Eager's error over a scalar, over sums that share one rounded scalar, or over the few
# elements of a bias's gradient, varies by an order of magnitude from draw to draw: measuring it takes more draws.
TESTED = 3
SCALAR_DRAWS = 8
FEW = 16


def _draw(spec: OpSpec, case: Case, dtype: torch.dtype, layout: str, seed: int, device: str) -> Draw:
    xs = operands(case, dtype, layout, seed, device)
    return _parity.draw(spec, case, xs, cotangents(values(spec.eager, case, xs), layout, seed), present(xs))


def _draws(spec: OpSpec, case: Case, dtype: torch.dtype, layout: str, device: str) -> list[Draw]:
    draws = [_draw(spec, case, dtype, layout, seed, device) for seed in range(TESTED)]
    few = any(g.numel() < FEW for g in draws[0].eager_gradients)
    if few or any(y.dim() == 0 for y in draws[0].eager_values):
        draws += [_draw(spec, case, dtype, layout, seed, device) for seed in range(TESTED, SCALAR_DRAWS)]
    return draws


_last: dict[tuple[object, ...], Answers] = {}


def answers(spec: OpSpec, case: Case, dtype: torch.dtype, layout: str, device: str = "cpu") -> Answers:
    """The oracle's answers; the last are kept for the next backend, which needs the same."""
    key = (spec.name, case.id, case.shapes, dtype, layout, device)
    if key not in _last:
        _last.clear()
        draws = _draws(spec, case, dtype, layout, device)
        _last[key] = _parity.answers(spec, case, draws, present(draws[0].operands), TESTED)
    return _last[key]
