"""Offsets past 2^31 elements, on views that lie far apart in a buffer of which only a few pages are ever touched."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.calls import Target
from helpers.operands import random
from torch import Tensor

import srkernels
from srkernels._parity import flat
from srkernels.ops.haar import native as haar_native
from srkernels.ops.haar import reference as haar_reference
from srkernels.ops.haar.arguments import Analysis, Image
from srkernels.ops.haar.conventions import BOTH, plan_id

FAR = 2**31 + 24
# Shape (2, 3, 4, 4): one axis at a time reaches past 2^31 elements, the others stay dense.
STRIDES = {
    "batch": (FAR, 16, 4, 1),
    "channel": (48 * FAR // 64, FAR // 2, 4, 1),
    "row": (FAR // 32, FAR // 128, FAR // 3 + 8, 1),
    "column": (FAR // 8, FAR // 32, FAR // 128, FAR // 3 + 8),
}
SHAPE = (2, 3, 4, 4)


def _reach(stride: tuple[int, ...]) -> int:
    return sum((n - 1) * s for n, s in zip(SHAPE, stride, strict=True)) + 1


@pytest.fixture(scope="module")
def buffer() -> Iterator[Callable[[str], Tensor]]:
    """As many bf16 numbers as the widest view spans; the system commits a page when it is written."""
    kept: dict[str, Tensor] = {}

    def make(device: str) -> Tensor:
        if device not in kept:
            try:
                kept[device] = torch.empty(max(map(_reach, STRIDES.values())), dtype=torch.bfloat16, device=device)
            except RuntimeError as error:
                pytest.skip(f"this machine does not promise 9 GB of untouched memory: {str(error)[:80]}")
        return kept[device]

    yield make
    kept.clear()


def _view(buffer: Tensor, axis: str, seed: int) -> Tensor:
    assert _reach(STRIDES[axis]) > 2**31
    offsets = torch.zeros(1, dtype=torch.int64)
    for n, stride in zip(SHAPE, STRIDES[axis], strict=True):
        offsets = (offsets[:, None] + stride * torch.arange(n)).flatten()
    assert offsets.unique().numel() == offsets.numel(), "elements overlap"
    x = buffer.as_strided(SHAPE, STRIDES[axis])
    return x.copy_(random(SHAPE, torch.bfloat16, seed, buffer.device.type))


def _megabytes_used() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


CALLS: dict[str, Callable[..., Any]] = {
    "haar_dwt2d": lambda x: srkernels.haar_dwt2d(x),
    "haar_highpass": lambda x: srkernels.haar_highpass(x),
    "haar_idwt2d low": lambda x: srkernels.haar_idwt2d(x, None),
    "haar_idwt2d high": lambda x: srkernels.haar_idwt2d(None, x, "dasr"),
    "weighted_l1_loss images": lambda x: srkernels.weighted_l1_loss(x, x * 0.5, x[:, :1, :2, :2]),
    "weighted_l1_loss unreduced": lambda x: srkernels.weighted_l1_loss(x * 0.5, x, reduction="none"),
    "weighted_l1_loss map": lambda x: srkernels.weighted_l1_loss(x.float() * 2, x.float(), x),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("axis", STRIDES)
def test_far_operands(buffer: Callable[[str], Tensor], axis: str, call: str, target: Target) -> None:
    far = _view(buffer(target.device), axis, 1)
    near = far.contiguous()
    before = _megabytes_used()
    with srkernels.use_backend(target.backend):
        found, found_grad = _with_gradient(CALLS[call], far)
        expected, expected_grad = _with_gradient(CALLS[call], near)
    for a, b in zip((*found, found_grad), (*expected, expected_grad), strict=True):
        # Another layout may sum in another order: one rounding of bf16.
        torch.testing.assert_close(a.float(), b.float(), rtol=2**-8, atol=0)
        assert b.any()
    assert _megabytes_used() - before < 500, "the whole span was touched"


def _with_gradient(call: Callable[..., Any], x: Tensor) -> tuple[list[Tensor], Tensor]:
    leaf = x.detach().requires_grad_()
    outputs = flat(call(leaf))
    (grad,) = torch.autograd.grad([y.float().square().sum() for y in outputs], leaf)
    return [y.detach() for y in outputs], grad


def test_far_results(buffer: Callable[[str], Tensor], target: Target) -> None:
    """The core also writes there, when given a result that lies there."""
    if target.backend != "native" or target.device != "cpu":
        pytest.skip("only the native core takes a result from outside")
    settings = Analysis(plan_id("orthonormal"), 0, BOTH)
    x = random((2, 3, 8, 8), torch.bfloat16, 3)
    for axis in STRIDES:
        low = _view(buffer("cpu"), axis, 2)
        high = torch.zeros(2, 3, 3, 4, 4, dtype=torch.bfloat16)
        haar_native.analysis_into(x, [low, high], settings)
        for found, expected in zip((low, high), haar_reference.analysis(Image(x.float()), settings), strict=True):
            torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=2**-12)


@pytest.mark.parametrize(
    "shape", [(70_000, 1, 2, 3), (1, 70_000, 2, 3), (1, 1, 1, 200_001), (1, 1, 200_001, 1)], ids=str
)
def test_more_than_a_grid_axis_holds(shape: tuple[int, ...], target: Target) -> None:
    """CUDA's second and third grid axes stop at 65,535."""
    if target.interpreted:
        pytest.skip("the interpreter takes minutes for so many programs")
    x = random(shape, torch.float32, 0, target.device)
    y, w = x.flip(0) * 0.5, random((shape[0], 1, 1, 1), torch.float32, 1, target.device)
    results = []
    for backend in (target.backend, "reference"):
        with srkernels.use_backend(backend):
            leaf = x.clone().requires_grad_()
            high = srkernels.haar_highpass(leaf)
            loss = srkernels.weighted_l1_loss(leaf, y, w, reduction="none")
            (grad,) = torch.autograd.grad([high, loss], leaf, [high.detach(), loss.detach()])
            results.append((high.detach(), loss.detach(), grad))
    rounding = 4 * torch.finfo(torch.float32).eps  # sums of four terms of order one, in another order
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)
