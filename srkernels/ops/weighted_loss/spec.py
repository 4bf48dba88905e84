"""Specs of the weighted losses: shapes to test, figures to bench, algebra that must hold."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..._spec import BenchCase, Case, OpSpec
from . import aot, oracle, reference
from .api import weighted_l1_loss, weighted_loss
from .arguments import MEAN, REDUCTIONS, Operands, Settings
from .checks import form_of


def eager(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    normalize: str = "numel",
    **form: Any,
) -> Tensor:
    """``weighted_loss`` by ``F.interpolate`` and eager arithmetic; ``form``: its other settings."""
    code = REDUCTIONS[reduction]
    by_weight = normalize == "weight_sum" and code == MEAN
    resize, number, parameter = form_of("weighted_loss", **form)
    return reference.loss(Operands(input, target, weight), Settings(code, by_weight, resize, False, number, parameter))


def _case(id: str, image: tuple[int, ...], weight: tuple[int, ...] | None, **kwargs: object) -> Case:
    return Case(id, (image, image, weight), kwargs)


_CASES = (
    _case("map-1/4", (2, 3, 16, 24), (2, 1, 4, 6)),
    _case("map-1/4-corners", (2, 3, 16, 24), (2, 1, 4, 6), align_corners=True),
    _case("map-shared", (3, 2, 10, 14), (1, 1, 5, 7)),
    _case("map-shared-per-channel", (2, 3, 10, 14), (1, 3, 5, 7)),
    _case("map-per-channel", (2, 3, 9, 11), (2, 3, 4, 5)),
    _case("map-full-size", (2, 3, 12, 20), (2, 1, 12, 20)),
    _case("map-same-size", (1, 2, 5, 6), (1, 1, 5, 6)),
    _case("map-larger", (1, 2, 6, 5), (1, 1, 13, 11)),
    _case("map-1x1", (2, 3, 7, 9), (2, 1, 1, 1)),
    _case("map-1x1-corners", (2, 3, 7, 9), (2, 1, 1, 1), align_corners=True),
    _case("no-map", (2, 3, 7, 9), None),
    _case("sum", (2, 3, 16, 24), (2, 1, 4, 6), reduction="sum"),
    _case("none", (2, 3, 16, 24), (2, 1, 4, 6), reduction="none"),
    _case("none-no-map", (2, 3, 5, 4), None, reduction="none"),
    _case("weight-sum", (2, 3, 16, 24), (2, 1, 4, 6), normalize="weight_sum"),
    _case("weight-sum-shared", (2, 3, 16, 24), (1, 1, 16, 24), normalize="weight_sum"),
    _case("weight-sum-per-channel", (2, 3, 9, 11), (2, 3, 4, 5), normalize="weight_sum"),
    _case("prime-63x127", (1, 2, 63, 127), (1, 1, 7, 31)),
    _case("1-wide", (2, 2, 9, 1), (2, 1, 3, 1)),
    _case("1-high", (1, 3, 1, 6), (1, 1, 1, 2)),
    _case("1x1", (1, 1, 1, 1), (1, 1, 1, 1)),
    _case("features", (1, 67, 6, 5), (1, 1, 3, 2)),
    _case("no-batch", (0, 3, 4, 4), (0, 1, 2, 2)),
    _case("no-batch-shared-map", (0, 3, 4, 4), (1, 1, 2, 2)),
    _case("no-batch-sum", (0, 3, 4, 4), (0, 1, 2, 2), reduction="sum"),
    _case("no-channel", (2, 0, 5, 4), (2, 1, 2, 2), reduction="sum"),
)
_CHARBONNIER: dict[str, Any] = {"kind": "charbonnier", "eps": 1e-3}
_MSE: dict[str, Any] = {"kind": "mse"}
_HUBER: dict[str, Any] = {"kind": "huber", "delta": 0.3}
_NEAREST: dict[str, Any] = {"interpolation": "nearest"}
_KINDS: dict[str, dict[str, Any]] = {"charbonnier": _CHARBONNIER, "mse": _MSE, "huber": _HUBER}
_OTHER_CASES = (
    *(_case(name, (2, 3, 16, 24), (2, 1, 4, 6), **kind) for name, kind in _KINDS.items()),
    *(_case(f"{name}-no-map", (2, 3, 7, 9), None, **kind) for name, kind in _KINDS.items()),
    _case("charbonnier-none", (2, 3, 9, 11), (1, 3, 4, 5), reduction="none", **_CHARBONNIER),
    _case("mse-weight-sum", (2, 3, 9, 11), (2, 3, 4, 5), normalize="weight_sum", align_corners=True, **_MSE),
    _case("huber-sum", (1, 2, 63, 127), (1, 1, 7, 31), reduction="sum", **_HUBER),
    _case("nearest", (2, 3, 16, 24), (2, 1, 4, 6), **_NEAREST),
    _case("nearest-prime", (1, 2, 63, 127), (1, 2, 7, 31), **_NEAREST),
    _case("nearest-larger", (2, 1, 6, 5), (1, 1, 13, 11), **_NEAREST, **_CHARBONNIER),
    _case("nearest-same-size", (2, 3, 5, 6), (2, 1, 5, 6), normalize="weight_sum", **_NEAREST, **_MSE),
    _case("huber-features", (1, 67, 6, 5), (1, 1, 3, 2), **_HUBER),
    _case("mse-1x1", (1, 1, 1, 1), (1, 1, 1, 1), **_MSE),
    _case("charbonnier-no-batch", (0, 3, 4, 4), (0, 1, 2, 2), reduction="sum", **_CHARBONNIER),
)
_OTHER_SMALL = (
    _case("charbonnier", (2, 2, 4, 5), (2, 1, 2, 3), **_CHARBONNIER),
    _case("mse-weight-sum", (2, 2, 3, 3), (2, 1, 2, 2), normalize="weight_sum", **_MSE),
    _case("huber-none", (1, 2, 3, 3), (1, 1, 2, 2), reduction="none", **_HUBER),
    _case("nearest", (1, 2, 3, 5), (1, 2, 2, 2), **_NEAREST, **_MSE),
)
_SMALL = (
    _case("map", (2, 2, 4, 5), (2, 1, 2, 3)),
    _case("shared-corners", (2, 2, 4, 5), (1, 2, 3, 2), align_corners=True),
    _case("sum", (1, 2, 3, 3), (1, 1, 2, 2), reduction="sum"),
    _case("none", (1, 2, 3, 3), (1, 1, 2, 2), reduction="none"),
    _case("weight-sum", (2, 2, 3, 3), (2, 1, 2, 2), normalize="weight_sum"),
    _case("no-map", (1, 2, 3, 3), None),
)


def _bytes(case: Case, itemsize: int, passes: str) -> int:
    image, _, weight = case.shapes
    assert image is not None
    size = prod(image)
    small = prod(weight) if weight is not None else 0
    full = size if case.kwargs.get("reduction") == "none" else 0
    forward = 2 * size + small + full
    if passes == "forward":
        return itemsize * forward
    # Between the passes L1 needs two bits an element (the sign), others both images again; backward writes the gradient
    # of one image.
    again = itemsize * 2 * size if case.kwargs.get("kind", "l1") != "l1" else 2 * size // 4
    return itemsize * (forward + size + small + full) + again


def _saved(case: Case, itemsize: int) -> int:
    """The two sums that a mean over the weights divides by and subtracts, in the compute dtype.

    With gradients of all operands. Where the weight needs none, dense CPU images also keep two bits an element.
    """
    by_weight = case.kwargs.get("normalize") == "weight_sum" and case.kwargs.get("reduction", "mean") == "mean"
    return 2 * max(itemsize, 4) if by_weight and case.shapes[2] is not None else 0


def _flops(case: Case, passes: str) -> int:
    assert case.shapes[0] is not None
    return 4 * prod(case.shapes[0]) * (2 if passes == "forward+backward" else 1)


def _bench() -> tuple[BenchCase, ...]:
    def case(image: tuple[int, ...], factor: int) -> Case:
        n, _, h, w = image
        return _case("x".join(map(str, image)), image, (n, 1, h // factor, w // factor))

    both, grad = "forward+backward", ("input",)
    images = [case((16, 3, 192, 192), 8), case((8, 3, 512, 512), 8)]
    features = [case((16, 512, 12, 12), 4), case((8, 64, 128, 128), 4)]
    return (
        *(BenchCase(c, both, differentiable=grad, targets={"eager": 7.0, "compile": 2.5}) for c in images),
        BenchCase(features[0], both, differentiable=grad, targets={"eager": 3.0, "compile": 1.5}),
        BenchCase(features[1], both, "float32", True, grad, {"eager": 3.0, "compile": 1.5}),
        *(BenchCase(c, "forward") for c in images),
        BenchCase(images[1], both, "bfloat16", False, grad),
    )


def _bench_others() -> tuple[BenchCase, ...]:
    both, grad, image, weight = "forward+backward", ("input",), (16, 3, 192, 192), (16, 1, 24, 24)
    return (
        *(
            BenchCase(_case(f"{name}-16x3x192x192", image, weight, **kind), both, differentiable=grad)
            for name, kind in _KINDS.items()
        ),
        BenchCase(_case("nearest-16x3x192x192", image, weight, **_NEAREST), both, differentiable=grad),
    )


def _operands() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(20201)
    shapes = ((2, 3, 9, 12), (2, 3, 9, 12), (2, 1, 3, 4))
    x, y, w = (torch.rand(s, generator=generator, dtype=torch.float64) for s in shapes)
    return x, y, w


def _zero_map() -> None:
    x, y, w = _operands()
    x.requires_grad_()
    loss = weighted_l1_loss(x, y, torch.zeros_like(w))
    (grad,) = torch.autograd.grad(loss, x)
    assert loss == 0 and not grad.any(), "a zero map must give zero loss and gradient"


def _homogeneous() -> None:
    x, y, w = _operands()
    assert weighted_l1_loss(x, y, 4 * w) == 4 * weighted_l1_loss(x, y, w)
    torch.testing.assert_close(
        weighted_l1_loss(x, y, 4 * w, normalize="weight_sum"),
        weighted_l1_loss(x, y, w, normalize="weight_sum"),
        rtol=1e-14,
        atol=0,
    )


def _symmetric() -> None:
    x, y, w = _operands()
    assert weighted_l1_loss(x, y, w) == weighted_l1_loss(y, x, w)


def _constant_map() -> None:
    x, y, w = _operands()
    flat = torch.full_like(w, 0.5)
    torch.testing.assert_close(weighted_l1_loss(x, y, flat), 0.5 * weighted_l1_loss(x, y), rtol=1e-14, atol=0)


def _sign_of_zero() -> None:
    x, _, w = _operands()
    x.requires_grad_()
    (grad,) = torch.autograd.grad(weighted_l1_loss(x, x.detach().clone(), w), x)
    assert not grad.any(), "sign(0) must be 0"


def _limits() -> None:
    x, y, w = _operands()

    def loss(kind: str, **parameter: float) -> Tensor:
        return weighted_loss(x, y, w, kind=kind, **parameter)  # type: ignore[arg-type]

    close = partial(torch.testing.assert_close, rtol=1e-12, atol=0)
    close(loss("huber", delta=2.0), loss("mse") / 2)  # no difference is as large
    close(loss("charbonnier", eps=1e-30), loss("l1"))
    close(loss("huber", delta=1e-13) / 1e-13, loss("l1"))


def _nearest_neighbours() -> None:
    x, y, w = _operands()
    full = w.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert weighted_loss(x, y, w, interpolation="nearest") == weighted_loss(x, y, full)


WEIGHTED_L1 = OpSpec(
    name="weighted_l1_loss",
    package=__package__,
    op=weighted_l1_loss,
    oracle=oracle.weighted_loss,
    eager=eager,
    operands=("input", "target", "weight"),
    cases=_CASES,
    small=_SMALL,
    bench=_bench(),
    bytes_moved=_bytes,
    flops=_flops,
    published=eager,
    saved_bytes=_saved,
    invariants={
        "zero map": _zero_map,
        "homogeneity": _homogeneous,
        "symmetry": _symmetric,
        "constant map": _constant_map,
        "sign(0) = 0": _sign_of_zero,
    },
    aot=aot.cases,
    launches=(1, 2),
)

WEIGHTED_LOSS = replace(
    WEIGHTED_L1,
    name="weighted_loss",
    op=weighted_loss,
    cases=_OTHER_CASES,
    small=_OTHER_SMALL,
    bench=_bench_others(),
    invariants={"limits of the kinds": _limits, "nearest neighbours": _nearest_neighbours},
    aot=aot.other_cases,
)

SPECS = (WEIGHTED_L1, WEIGHTED_LOSS)
