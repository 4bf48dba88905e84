"""Weighted losses against the code that they replace, and what they take for a weight."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import srkernels
from srkernels import weighted_loss
from srkernels.nn import BasicSRCharbonnierLoss, BasicSRL1Loss, BasicSRMSELoss

BACKENDS = ("reference", "native")


def _images(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    x, y = (torch.rand(shape, generator=generator, dtype=dtype) for _ in range(2))
    return x.requires_grad_(), y


def _basicsr(kind: str, x: Tensor, y: Tensor, weight: Tensor | None, reduction: str, eps: float) -> Tensor:
    """BasicSR's losses as its documentation has them: a weighted mean is over the weights, as they are passed."""
    d = x - y
    loss = {"l1": d.abs(), "mse": d * d, "charbonnier": (d * d + eps).sqrt()}[kind]
    if weight is not None:
        loss = loss * weight
    if reduction == "none":
        return loss
    if reduction == "sum" or weight is None:
        return getattr(loss, reduction)()
    return loss.sum() / (weight.sum() * (x.shape[1] if weight.shape[1] == 1 else 1))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, (2, 1, 6, 8), (2, 3, 6, 8), (1, 3, 6, 8), (2, 1, 1, 1), (1, 1, 6, 1)])
@pytest.mark.parametrize(
    ("kind", "make"), [("l1", BasicSRL1Loss), ("mse", BasicSRMSELoss), ("charbonnier", BasicSRCharbonnierLoss)]
)
def test_basicsr_is_replaced_blindly(
    kind: str, make: type[nn.Module], weight: tuple[int, ...] | None, reduction: str
) -> None:
    x, y = _images(2, 3, 6, 8)
    w = None if weight is None else torch.rand(weight, dtype=torch.float64)
    expected = 0.5 * _basicsr(kind, x, y, w, reduction, 1e-12)
    found = make(0.5, reduction)(x, y, w)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for a, b in zip(*(torch.autograd.grad(z.sum(), x) for z in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_kinds_are_pytorchs_losses() -> None:
    x, y = _images(2, 3, 5, 7)
    for found, expected in (
        (weighted_loss(x, y), F.l1_loss(x, y)),
        (weighted_loss(x, y, kind="mse"), F.mse_loss(x, y)),
        (weighted_loss(x, y, kind="huber", delta=0.2), F.huber_loss(x, y, delta=0.2)),
        (weighted_loss(x, y, kind="huber", delta=0.2) / 0.2, F.smooth_l1_loss(x, y, beta=0.2)),
        (weighted_loss(x, y, kind="charbonnier", eps=1e-6), (((x - y) ** 2 + 1e-3**2) ** 0.5).mean()),  # LapSRN's
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_charbonnier_of_equal_images_has_a_gradient(dtype: torch.dtype, backend: str) -> None:
    """In fp16 itself an eps of 1e-12 is zero, and the slope of the root infinite."""
    x, _ = _images(1, 3, 8, 8, dtype=dtype)
    with srkernels.use_backend(backend):
        (grad,) = torch.autograd.grad(weighted_loss(x, x.detach().clone(), kind="charbonnier"), x)
    assert not grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nearest_takes_pytorchs_cells(backend: str) -> None:
    """Ratios whose products with an index round to either side of a whole number included."""
    for source in (1, 2, 3, 5, 7, 10, 14, 41):
        for size in (1, 2, 3, 6, 11, 20, 82, 123):
            x, y = _images(1, 1, size, 4, dtype=torch.float32)
            w = torch.rand(1, 1, source, 2).requires_grad_()
            full = F.interpolate(w, (size, 4), mode="nearest")
            with srkernels.use_backend(backend):
                found = weighted_loss(x, y, w, interpolation="nearest", reduction="none")
                (grad,) = torch.autograd.grad(found.sum(), w)
            assert torch.equal(found, full * (x - y).abs()), (source, size)
            (expected,) = torch.autograd.grad((full * (x - y).abs()).sum(), w)
            torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)


def test_masks() -> None:
    x, y = _images(2, 3, 6, 8, dtype=torch.float32)
    mask = torch.arange(2 * 6 * 8).view(2, 1, 6, 8) % 3 == 0
    expected = (mask * (x - y).abs()).mean()
    for dtype in (torch.bool, torch.uint8, torch.int64):
        found = weighted_loss(x, y, mask.to(dtype))
        torch.testing.assert_close(found, expected)
    assert weighted_loss(x.bfloat16(), y.bfloat16(), mask).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ((), (1, 1, 1, 1)),
        ((1,), (1, 1, 1, 1)),
        ((2,), (2, 1, 1, 1)),
        ((3,), (1, 3, 1, 1)),
        ((4, 5), (1, 1, 4, 5)),
        ((1, 4, 5), (1, 1, 4, 5)),
        ((2, 4, 5), (2, 1, 4, 5)),
        ((3, 4, 5), (1, 3, 4, 5)),
    ],
    ids=str,
)
def test_fewer_dimensions(given: tuple[int, ...], meant: tuple[int, ...]) -> None:
    x, y = _images(2, 3, 6, 8)
    w = torch.rand(given, dtype=torch.float64).requires_grad_()
    losses = weighted_loss(x, y, w), weighted_loss(x, y, w.view(meant))
    assert losses[0] == losses[1]
    assert torch.equal(*(torch.autograd.grad(z, w)[0] for z in losses))


@pytest.mark.parametrize("given", [(3,), (3, 4, 5), (8,), (5,), (5, 4, 5)], ids=str)
def test_what_may_mean_two_things_is_refused(given: tuple[int, ...]) -> None:
    x, y = _images(3, 3, 6, 8) if given[0] != 8 else _images(8, 3, 6, 8)
    with pytest.raises(ValueError, match=r"weighted_loss: weight of shape .* has no plain meaning .* pass \(N or 1"):
        weighted_loss(x, y, torch.rand(given))


def test_numbers() -> None:
    x, y = _images(2, 3, 6, 8)
    assert weighted_loss(x, y, 0.25) == 0.25 * weighted_loss(x, y)
    assert weighted_loss(x, y, 3, normalize="weight_sum") == weighted_loss(x, y)
    assert weighted_loss(x, y, 0.0, normalize="weight_sum").isnan()
    assert torch.equal(weighted_loss(x, y, 2, reduction="none"), 2 * weighted_loss(x, y, reduction="none"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_number_counts_ahead_of_rounding(reduction: str, backend: str) -> None:
    x, y = torch.full((1, 1, 8, 8), 300.0, dtype=torch.float16), torch.zeros(1, 1, 8, 8, dtype=torch.float16)
    with srkernels.use_backend(backend):
        found = weighted_loss(x, y, 2.0**-8, kind="huber", delta=256.0, reduction=reduction)
        expected = weighted_loss(x.double(), y.double(), 2.0**-8, kind="huber", delta=256.0, reduction=reduction)
    assert found.dtype is torch.float16
    assert torch.equal(found.double(), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "l2"}, "weighted_loss: kind must be one of l1, charbonnier, mse, huber, got 'l2'"),
        ({"kind": "charbonnier", "eps": 0.0}, "weighted_loss: eps must be positive and finite, got 0.0"),
        ({"kind": "huber", "delta": float("nan")}, "weighted_loss: delta must be positive and finite, got nan"),
        ({"interpolation": "area"}, "weighted_loss: interpolation must be one of bilinear, nearest, got 'area'"),
        (
            {"interpolation": "nearest", "align_corners": True},
            "weighted_loss: align_corners is an option of bilinear interpolation, not of nearest",
        ),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    x, y = _images(1, 3, 4, 4)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        weighted_loss(x, y, **settings)  # type: ignore[arg-type]
