"""The oracle's answers to a case: exact values and gradients, eager PyTorch's, and eager's error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srkernels._spec import Case, OpSpec

from .budget import Error, measured
from .calls import gradients, present, values
from .operands import cotangents, operands

# An op is run on TESTED draws. Eager's error over a scalar, over sums that share one rounded scalar, or over the few
# elements of a bias's gradient, varies by an order of magnitude from draw to draw: it takes more draws to know.
TESTED = 3
SCALAR_DRAWS = 8
FEW = 16


@dataclass(frozen=True)
class Draw:
    """One draw of operands and what they should give."""

    operands: list[Tensor | None]
    cotangents: list[Tensor]
    exact_values: list[Tensor]
    eager_values: list[Tensor]
    exact_gradients: list[Tensor]
    eager_gradients: list[Tensor]


@dataclass(frozen=True)
class Answers:
    """Draws of a case with eager's error of every output and of every operand's gradient."""

    draws: list[Draw]
    values: list[Error]
    gradients: list[Error]
    wanted: tuple[int, ...]


def _draw(spec: OpSpec, case: Case, dtype: torch.dtype, layout: str, seed: int, device: str) -> Draw:
    xs = operands(case, dtype, layout, seed, device)
    wanted = present(xs)
    eager_values = values(spec.oracle, case, xs)
    cots = cotangents(eager_values, layout, seed)
    wide = [None if x is None else x.double().contiguous() for x in xs]
    wide_cots = [c.double().contiguous() for c in cots]
    return Draw(
        xs,
        cots,
        values(spec.oracle, case, wide),
        eager_values,
        gradients(spec.oracle, case, wide, wide_cots, wanted),
        gradients(spec.oracle, case, xs, cots, wanted),
    )


def _draws(spec: OpSpec, case: Case, dtype: torch.dtype, layout: str, device: str) -> list[Draw]:
    draws = [_draw(spec, case, dtype, layout, seed, device) for seed in range(TESTED)]
    few = any(g.numel() < FEW for g in draws[0].eager_gradients)
    if few or any(y.dim() == 0 for y in draws[0].eager_values):
        draws += [_draw(spec, case, dtype, layout, seed, device) for seed in range(TESTED, SCALAR_DRAWS)]
    return draws


def _errors(draws: list[Draw]) -> tuple[list[Error], list[Error]]:
    def over_draws(approximate: str, exact: str) -> list[Error]:
        by_output = zip(*(getattr(d, approximate) for d in draws), strict=True)
        exact_by_output = zip(*(getattr(d, exact) for d in draws), strict=True)
        return [measured(a, e) for a, e in zip(by_output, exact_by_output, strict=True)]

    return over_draws("eager_values", "exact_values"), over_draws("eager_gradients", "exact_gradients")


def _scaled(errors: list[Error], by: float) -> list[Error]:
    return [Error(e.largest * by, e.norm * by) for e in errors]


def _answers(spec: OpSpec, case: Case, dtype: torch.dtype, layout: str, device: str) -> Answers:
    draws = _draws(spec, case, dtype, layout, device)
    if dtype == torch.float64:
        # There is no wider oracle. Counted in roundings, eager's error does not depend on the dtype, so it is
        # measured in fp32 on the same values.
        narrow = _draws(spec, case, torch.float32, layout, device)
        ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        of_values, of_gradients = (_scaled(errors, ratio) for errors in _errors(narrow))
    else:
        of_values, of_gradients = _errors(draws)
    return Answers(draws[:TESTED], of_values, of_gradients, present(draws[0].operands))


_last: dict[tuple[object, ...], Answers] = {}


def answers(spec: OpSpec, case: Case, dtype: torch.dtype, layout: str, device: str = "cpu") -> Answers:
    """The oracle's answers; the last are kept for the next backend, which asks for the same."""
    key = (spec.name, case.id, case.shapes, dtype, layout, device)
    if key not in _last:
        _last.clear()
        _last[key] = _answers(spec, case, dtype, layout, device)
    return _last[key]
