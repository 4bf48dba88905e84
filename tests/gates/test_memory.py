"""No output element is left unwritten, nothing more is saved than declared, every run gives the same bits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from helpers.calls import Target, why_not
from helpers.marks import thorough
from helpers.operands import LAYOUTS, cotangents, operands
from torch import Tensor

import srkernels
from srkernels._meter import saved_bytes
from srkernels._parity import gradients, present, reordered, sums_of_magnitudes, values
from srkernels._spec import Case, OpSpec
from srkernels.ops import specs


class Poison:
    """Fills what ``srkernels`` allocates uninitialised with NaN, so that an element nobody writes shows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.poisoned = 0
        for owner, name in ((torch, "empty"), (torch, "empty_strided"), (torch, "empty_like"), (Tensor, "new_empty")):
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoning(*args: Any, **kwargs: Any) -> Tensor:
            out = allocate(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.split(".")[0] == "srkernels" and out.is_floating_point():
                out.fill_(torch.nan)
                self.poisoned += 1
            return out

        return poisoning


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    return Poison(monkeypatch)


def test_every_output_element_is_written(spec: OpSpec, case: Case, target: Target, poison: Poison) -> None:
    few = target.interpreted and spec.composed  # of many launches a call
    for layout in ("contiguous", "permuted") if few else LAYOUTS:
        xs = operands(case, torch.float32, layout, device=target.device)
        outputs = values(spec.eager, case, xs)
        cots = cotangents(outputs, layout)
        expected = [*outputs, *gradients(spec.eager, case, xs, cots, present(xs))]
        with srkernels.use_backend(target.backend):
            found = [*values(spec.op, case, xs), *gradients(spec.op, case, xs, cots, present(xs))]
        for y, eager in zip(found, expected, strict=True):
            assert torch.equal(y.isnan(), eager.isnan()), f"{layout}: an element was left unwritten"
    # The reference, and convolutions with oneDNN, may leave all allocation to PyTorch's own operations.
    theirs = target.backend == "reference" or (target.backend == "native" and spec.convolves)
    assert poison.poisoned or theirs, "nothing was allocated through the patched functions"


def test_poison_shows_an_unwritten_element(poison: Poison) -> None:
    source = "import torch\ndef make(): out = torch.empty(4); out[:3] = 1; return out"
    ours: dict[str, Any] = {"__name__": "srkernels.ops.made_up"}
    theirs: dict[str, Any] = {"__name__": "somebody.else"}
    exec(source, ours)
    exec(source, theirs)
    assert ours["make"]().isnan().tolist() == [False, False, False, True]
    assert poison.poisoned == 1
    theirs["make"]()
    assert poison.poisoned == 1


def _saved_bytes(spec: OpSpec, case: Case, xs: list[Tensor | None]) -> int:
    """Bytes that the graph of one call keeps and that are not the operands' own storage."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in xs]
    return saved_bytes(lambda: values(spec.op, case, leaves), leaves)


def test_saved_bytes_are_as_declared(spec: OpSpec, case: Case, dtype: torch.dtype, target: Target) -> None:
    for layout in ("contiguous", "channels_last", "sliced", "permuted"):
        xs = operands(case, dtype, layout, device=target.device)
        with srkernels.use_backend(target.backend):
            assert _saved_bytes(spec, case, xs) == spec.saved_bytes(case, dtype.itemsize), layout


def test_saved_bytes_are_counted() -> None:
    """The eager formula of the loss saves image-sized tensors, and the count sees them."""
    (spec,) = (s for s in specs() if s.name == "weighted_l1_loss")
    case = spec.cases[0]
    xs = operands(case, torch.float32)
    assert _saved_bytes(replace(spec, op=spec.eager), case, xs) >= 2 * xs[0].nbytes


def _large_cases(spec: OpSpec) -> list[Case]:
    """Sizes that are split among threads: the largest gate case with 64 times its batch, and a benched one."""
    largest = max(spec.cases, key=lambda c: prod(c.shapes[0]))
    shapes = tuple(
        s if s is None or name in spec.parameters else (64 * s[0], *s[1:])
        for name, s in zip(spec.operands, largest.shapes, strict=True)
    )
    return [replace(largest, shapes=shapes), *(b.case for b in spec.bench[:1])]


def _bits(xs: list[Tensor]) -> list[Tensor]:
    return [x.contiguous().view(torch.uint8) if x.dim() else x.view(1).view(torch.uint8) for x in xs]


def _run(spec: OpSpec, case: Case, xs: list[Tensor | None], cots: list[Tensor]) -> list[Tensor]:
    return _bits([*values(spec.op, case, xs), *gradients(spec.op, case, xs, cots, present(xs))])


@pytest.mark.parametrize("one_in", [3, thorough(1)])
def test_repeats_give_the_same_bits(one_in: int, spec: OpSpec, target: Target) -> None:
    if target.backend == "reference":
        pytest.skip("PyTorch's own operations: theirs to promise")
    torch.set_num_threads(2)
    with srkernels.use_backend(target.backend):
        for case in (*spec.cases[::one_in], *_large_cases(spec)):
            if why_not(spec, case, target.backend, target.device) is not None:
                continue
            xs = operands(case, torch.float32, device=target.device)
            cots = cotangents(values(spec.op, case, xs))
            first, *others = (_run(spec, case, xs, cots) for _ in range(3))
            for other in others:
                assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True)), case.id


def test_threads_do_not_change_the_bits(spec: OpSpec, target: Target) -> None:
    if target.backend != "native" or target.device != "cpu":
        pytest.skip("eager PyTorch splits its sums by the thread count; the other backends have no CPU threads")
    if spec.threads_matter:
        pytest.skip(spec.threads_matter)
    with srkernels.use_backend(target.backend):
        for dtype in (torch.float32, torch.bfloat16):
            for case in _large_cases(spec):
                xs = operands(case, dtype)
                cots = cotangents(values(spec.op, case, xs))
                results = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(_run(spec, case, xs, cots))
                for other in results[1:]:
                    assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), case.id


def test_large_cases_equal_the_oracle(spec: OpSpec, target: Target) -> None:
    """What is split among threads is right too, down to the last element."""
    torch.set_num_threads(2)
    for case in _large_cases(spec)[:1]:
        xs = operands(case, torch.float64, device=target.device)
        outputs = values(spec.eager, case, xs)
        cots = cotangents(outputs)
        expected = [*outputs, *gradients(spec.eager, case, xs, cots, present(xs))]
        of_values, of_gradients, terms = sums_of_magnitudes(spec, case, xs, cots, present(xs))
        with srkernels.use_backend(target.backend):
            found = [*values(spec.op, case, xs), *gradients(spec.op, case, xs, cots, present(xs))]
        for a, b, magnitude in zip(found, expected, (*of_values, *of_gradients), strict=True):
            # Both are fp64: the same sums, in another order.
            most = 2 * reordered(torch.float64, [magnitude], terms).largest
            torch.testing.assert_close(a, b, rtol=0, atol=most)
            assert b.abs().max() > 1e6 * most
