"""Curves of an op: value and gradients of the first case that its spec benches, at other sizes, eager and ours."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from srkernels._spec import BenchCase, Case, OpSpec, Shape

from .. import timing
from ..ops import harness
from ..ops.providers import Gate, Provider, problem
from ..record import OURS
from .plan import Plan, Size, Times, Variant, climb_axes, curve, spread, threads


def resized(spec: OpSpec, size: Size, device: torch.device) -> BenchCase:
    """That case on so many square pictures; maps and bands keep their proportion to them.

    On a CPU in fp32, which all of them are fast at, and convolutions with a quarter of the features: with all, a
    large picture would take minutes.
    """
    both = [bench for bench in spec.bench if bench.passes == "forward+backward"]
    given = both[0] if both else BenchCase(spec.cases[0], "forward+backward", differentiable=spec.operands)
    on_cpu = device.type == "cpu"
    fewer = 4 if on_cpu and spec.convolves else 1
    kwargs, first = dict(given.case.kwargs), given.case.shapes[0]
    assert first is not None
    height, width = kwargs.get("output_size", first[-2:])
    if "output_size" in kwargs:
        kwargs["output_size"] = (size.side, size.side)

    def shape(name: str, old: Shape | None) -> Shape | None:
        if old is None:
            return None
        if name in spec.parameters:
            return (*(n // fewer for n in old[:2]), *old[2:])
        n, *channels, h, w = old
        return (
            size.batch if n == first[0] else n,
            *(c // fewer for c in channels),
            h * size.side // height,
            w * size.side // width,
        )

    shapes = tuple(shape(*pair) for pair in zip(spec.operands, given.case.shapes, strict=True))
    case = Case(str(size), shapes, kwargs, given.case.centred)
    return replace(given, case=case, dtype="float32" if on_cpu else given.dtype)


def measure(spec: OpSpec, device: torch.device, plan: Plan) -> list[dict[str, Any]]:
    """The op's curves.

    Raises:
        ParityError: a size's values or gradients are outside the budget.
    """
    climbed = climb_axes(partial(_times, spec, device, plan), partial(_moved, spec, device), 1, plan)
    about = {"subject": spec.name, "dtype": resized(spec, Size(1, plan.side), device).dtype, "device": device.type}
    return [
        curve({**about, "axis": axis}, (count, 1), of_sizes, left_out)
        for axis, (of_sizes, left_out) in climbed.items()
        for count in plan.threads
    ]


def _moved(spec: OpSpec, device: torch.device, size: Size) -> int:
    bench = resized(spec, size, device)
    return spec.bytes_moved(bench.case, harness.itemsize(bench), bench.passes)


def _times(spec: OpSpec, device: torch.device, plan: Plan, size: Size) -> dict[Variant, Times]:
    bench = resized(spec, size, device)
    providers = {p.name: p for p in (Provider("eager", spec.eager), Provider(OURS, spec.op, None))}
    first = problem(spec, bench, device)
    gate = Gate(spec, bench, first)
    for count in plan.threads:
        with threads(count):
            for provider in providers.values():
                gate.check(provider)
    del gate  # and the memory of its oracle
    # Few: what so many leave in a GPU's cache is bound by launches, and hundreds would take the time of larger sizes.
    calls = harness.rotated_calls(spec, bench, first, providers, most=16)
    found = {}
    for count in plan.threads:
        with threads(count):
            found[count, 1] = spread(
                timing.time_calls(
                    calls,
                    device,
                    seconds=plan.seconds,
                    rounds=plan.rounds,
                    around=lambda name: providers[name].around(),
                )
            )
    return found
