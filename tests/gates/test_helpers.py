"""The helpers of the gates themselves: a wrong result must fail the budget, a right one must not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.calls import Target, subsets
from helpers.operands import LAYOUTS, arranged, operands
from test_parity import test_values_and_gradients as parity
from torch import Tensor

from srkernels._parity import Error, check, check_magnitude, measured, reordered, sums_of_magnitudes
from srkernels._spec import Case, OpSpec
from srkernels.ops import specs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NARROWER = {
    torch.float64: torch.float32,
    torch.float32: torch.bfloat16,
    torch.float16: torch.float8_e4m3fn,
    torch.bfloat16: torch.float8_e4m3fn,
}


def _pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    exact = torch.linspace(0.1, 1, 64, dtype=torch.float64)
    return exact.to(dtype), exact


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_budget_takes_a_rounded_value(dtype: torch.dtype) -> None:
    rounded, exact = _pair(dtype)
    check("value", rounded, exact, rounded, Error(0, 0))
    check_magnitude("value", rounded, exact, Error(0, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_budget_refuses_what_is_one_step_further(dtype: torch.dtype) -> None:
    rounded, exact = _pair(dtype)
    away = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    wrong = torch.where((away.double() - exact).abs() > (rounded.double() - exact).abs(), away, rounded)
    with pytest.raises(AssertionError, match="off by"):
        check("value", wrong, exact, rounded, Error(0, 0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x.half(), "dtype"),
        (lambda x: x[1:], "shape"),
        (lambda x: torch.where(x == x[3], torch.nan, x), "NaN"),
        (lambda x: torch.where(x == x[3], torch.inf, x), "inf"),
        (lambda x: x * 1.0001, "off by"),
        (lambda x: torch.zeros_like(x), "off by"),
        (lambda x: x.flip(0), "off by"),
    ],
)
def test_budget_refuses(wrong: Callable[[Tensor], Tensor], message: str) -> None:
    value, exact = _pair(torch.float32)
    with pytest.raises(AssertionError, match=message):
        check("value", wrong(value), exact, value, measured([value], [exact]))


def test_a_small_error_everywhere_fails_by_its_norm() -> None:
    # Eager is off at one element only: the same error at every element is within its largest error, not its norm.
    exact = torch.ones(10_000, dtype=torch.float64)
    eager = exact.float()
    eager[0] += 1e-4
    with pytest.raises(AssertionError, match="norm"):
        check("value", exact.float() + 1e-4, exact, eager, measured([eager], [exact]))


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_magnitude_refuses_a_wrong_length(factor: float) -> None:
    value, exact = _pair(torch.float32)
    with pytest.raises(AssertionError, match="length"):
        check_magnitude("gradient", factor * value, exact, Error(1e-3, 1e-3))


def test_magnitude_refuses_a_silent_zero_whatever_the_error() -> None:
    value, exact = _pair(torch.float32)
    with pytest.raises(AssertionError, match="zero"):
        check_magnitude("gradient", 0 * value, exact, Error(1, 10))


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


def _first(change: Callable[[Tensor], Tensor]) -> Callable[[OpSpec], Callable[..., Any]]:
    """The op with its first operand changed on the way in."""
    return lambda spec: lambda x, *rest, **kwargs: spec.eager(change(x), *rest, **kwargs)


@pytest.mark.parametrize("dtype", NARROWER, ids=str)
@pytest.mark.parametrize("spec", specs(), ids=lambda s: s.name)
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(_first(_NoGradient.apply), id="silent zero gradient"),
        pytest.param(_first(lambda x: x.to(NARROWER[x.dtype]).to(x.dtype)), id="narrower inside"),
        pytest.param(_first(lambda x: x.flip(-1)), id="mirrored"),
        pytest.param(_first(lambda x: torch.cat((x[..., :-1, :], x[..., :1, :]), -2)), id="last row lost"),
    ],
)
def test_parity_gate_catches(spec: OpSpec, broken: Callable[[OpSpec], Callable[..., Any]], dtype: torch.dtype) -> None:
    target = Target("reference", "cpu")
    case = spec.cases[0]
    parity(replace(spec, op=spec.eager), case, dtype, target, ["contiguous"])
    with pytest.raises(AssertionError):
        parity(replace(spec, op=broken(spec)), case, dtype, target, ["contiguous"])


def test_magnitudes_are_sums_of_absolute_products() -> None:
    """Of a convolution followed by an activation: no mask, no sign, and the longest sum is the filters'."""
    (spec,) = (s for s in specs() if s.name == "conv2d_act")
    case = Case("one", ((2, 3, 4, 5), (6, 3, 3, 3), (6,)), {"activation": "relu"}, centred=(1,))
    x, weight, bias = operands(case, torch.float32)
    grad = torch.ones(2, 6, 4, 5)
    (of_y,), (of_x, of_weight, of_bias), terms = sums_of_magnitudes(spec, case, (x, weight, bias), [-grad], (0, 1, 2))
    x, weight, bias, grad = (t.double().abs() for t in (x, weight, bias, grad))
    torch.testing.assert_close(of_y, torch.nn.functional.conv2d(x, weight, bias, padding=1))
    torch.testing.assert_close(of_x, torch.nn.functional.conv_transpose2d(grad, weight, padding=1))
    torch.testing.assert_close(of_bias, torch.full_like(bias, 40))
    assert of_weight[0, 0, 1, 1] == x[:, 0].sum()
    assert terms == 54  # a pixel's gradient: six filters of nine


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_order_of_a_sum_is_allowed(dtype: torch.dtype) -> None:
    """Forwards, backwards and in pairs; with terms of one sign and of both."""
    for low in (0, -1):
        terms = torch.empty(64, 4096).uniform_(low, 1, generator=torch.Generator().manual_seed(1)).to(dtype)
        # For fp64 the sum of fp32 values is exact enough to be the oracle of fp64's own.
        exact = torch.tensor([math.fsum(row) for row in terms.tolist()], dtype=torch.float64)
        most = reordered(dtype, [terms.double().abs().sum(1)], terms.shape[1])
        one_by_one = terms.cumsum(1)[:, -1]
        in_pairs = terms
        while in_pairs.shape[1] > 1:
            in_pairs = in_pairs[:, ::2] + in_pairs[:, 1::2]
        for found in (one_by_one, terms.flip(1).cumsum(1)[:, -1], in_pairs[:, 0]):
            assert measured([found], [exact]).largest <= most.largest


def test_layouts_are_what_they_say() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    strides = {
        "contiguous": (60, 20, 5, 1),
        "channels_last": (60, 1, 15, 3),
        "sliced": (144, 48, 8, 1),
        "strided": (264, 88, 11, 2),
        "expanded": (0, 20, 5, 1),
        "permuted": (1, 2, 6, 24),
    }
    assert set(strides) == set(LAYOUTS)
    for layout, expected in strides.items():
        assert arranged(x, layout).stride() == expected, layout
        assert torch.equal(arranged(x, layout), x[:1].expand(x.shape) if layout == "expanded" else x), layout


def test_operands_are_reproducible_and_independent() -> None:
    case = Case("two", ((2, 3, 4, 5), (2, 3, 4, 5), None))
    first, again, other = (operands(case, torch.float32, seed=s) for s in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert first[2] is None


def test_subsets_are_all_of_them() -> None:
    assert list(subsets((0, 2))) == [(0, 2), (0,), (2,)]
    assert len(list(subsets((0, 1, 2)))) == 7
