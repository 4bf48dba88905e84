"""Dtypes under autocast: Haar keeps what it is given, the loss is an fp32 island, a gradient has its leaf's dtype."""

from __future__ import annotations

import pytest
import torch
from helpers.calls import Target, recorded
from helpers.operands import random
from torch.nn import functional as F

import srkernels

HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_haar_keeps_the_dtype(target: Target, given: torch.dtype) -> None:
    x = random((2, 3, 7, 8), given, 0, target.device).requires_grad_()
    with srkernels.use_backend(target.backend):
        expected = srkernels.haar_highpass(x)
        with torch.autocast(target.device, torch.bfloat16):
            y = srkernels.haar_highpass(x)
            low, high = srkernels.haar_dwt2d(x)
            image = srkernels.haar_idwt2d(low, high, output_size=(7, 8))
            of_three = srkernels.haar_idwt2d(*srkernels.haar_dwt2d(x, "wct2"), "wct2", output_size=(7, 8))
        y.sum().backward()
    assert {t.dtype for t in (y, low, high, image, of_three, x.grad)} == {given}
    assert torch.equal(y, expected)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("fp32_operand", ["input", "target", "weight", "none"])
def test_loss_is_an_fp32_island(target: Target, half: torch.dtype, fp32_operand: str) -> None:
    """Any mix of half and fp32 operands gives what fp32 copies of them would, without the copies."""
    names = ("input", "target", "weight")
    shapes = ((2, 3, 8, 12), (2, 3, 8, 12), (2, 1, 2, 3))
    xs = [
        random(s, torch.float32 if n == fp32_operand else half, i, target.device).requires_grad_()
        for i, (n, s) in enumerate(zip(names, shapes, strict=True))
    ]
    with srkernels.use_backend(target.backend):
        with torch.autocast(target.device, torch.bfloat16), recorded() as calls:
            loss = srkernels.weighted_l1_loss(*xs)
        (call,) = calls
        grads = torch.autograd.grad(loss, xs)
    assert [a.dtype for a in call.args[:3]] == [x.dtype for x in xs], "operands were cast on the way in"
    assert loss.dtype == torch.float32
    assert [g.dtype for g in grads] == [x.dtype for x in xs]

    wide = [x.detach().double().requires_grad_() for x in xs]
    exact = (F.interpolate(wide[2], (8, 12), mode="bilinear") * (wide[0] - wide[1]).abs()).mean()
    exact_grads = torch.autograd.grad(exact, wide)
    # An fp32 computation of some 600 terms of order one, each off by half an eps.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(loss.double(), exact, rtol=0, atol=16 * eps)
    for g, e in zip(grads, exact_grads, strict=True):
        # Round to nearest is half an eps; the interpreter truncates bf16 instead.
        rounding = torch.finfo(g.dtype).eps / (1 if target.interpreted else 2) + 16 * eps
        smallest = torch.finfo(g.dtype).smallest_normal * torch.finfo(g.dtype).eps
        torch.testing.assert_close(g.double(), e, rtol=rounding, atol=smallest + 16 * eps * e.abs().max().item())
        assert g.any()


def test_loss_outside_autocast_promotes_as_pytorch_does(target: Target) -> None:
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    with srkernels.use_backend(target.backend):
        for a in dtypes:
            for b in dtypes:
                x, y = random((1, 2, 4, 4), a, 0, target.device), random((1, 2, 4, 4), b, 1, target.device)
                assert srkernels.weighted_l1_loss(x, y).dtype == F.l1_loss(x, y).dtype, (a, b)


def test_unreduced_loss_is_fp32_under_autocast(target: Target) -> None:
    x = random((1, 2, 4, 4), torch.bfloat16, 0, target.device)
    with srkernels.use_backend(target.backend), torch.autocast(target.device, torch.bfloat16):
        assert srkernels.weighted_l1_loss(x, 2 * x, reduction="none").dtype == torch.float32


def test_a_network_trains_under_autocast(target: Target) -> None:
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 3, 3, padding=1).to(target.device)
    x, y = (random((2, 3, 8, 8), torch.float32, i, target.device) for i in range(2))
    with srkernels.use_backend(target.backend):
        with torch.autocast(target.device, torch.bfloat16):
            out = net(x)
            assert out.dtype == torch.bfloat16
            loss = srkernels.weighted_l1_loss(out, y) + srkernels.haar_highpass(out).square().mean()
        loss.backward()
    assert net.weight.grad.dtype == torch.float32
    assert net.weight.grad.any()
