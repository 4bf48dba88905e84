"""Algebra of the ops on every backend, and the same computed by others, written down independently."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.calls import Target
from helpers.operands import random
from torch import Tensor
from torch.nn import functional as F

import srkernels
from srkernels import HAAR_CONVENTIONS, convert_haar_weight, haar_dwt2d, weighted_l1_loss
from srkernels._spec import OpSpec

EPS = torch.finfo(torch.float64).eps


def images(*shape: int, seed: int = 0) -> Tensor:
    return random(shape, torch.float64, seed)


def assert_same(actual: Tensor, expected: Tensor, terms: int = 4) -> None:
    """Equal up to the roundings of ``terms`` additions of values of order one, in another order."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=terms * EPS * max(1.0, expected.abs().max().item()))


def test_invariants(spec: OpSpec, target: Target) -> None:
    if target.device != "cpu":
        pytest.skip("invariants are stated on CPU tensors")
    with srkernels.use_backend(target.backend):
        for name, invariant in spec.invariants.items():
            try:
                invariant()
            except AssertionError as error:
                raise AssertionError(f"{spec.name}, {name}: {error}") from error


# odd sizes as other packages pad them


@pytest.mark.parametrize("pad", ["reflect", "zero", "symmetric", "periodization", "periodic"])
@pytest.mark.parametrize(
    "size", [(8, 10), (7, 10), (8, 9), (7, 5), (3, 3), (1, 4), (5, 1)], ids=lambda s: f"{s[0]}x{s[1]}"
)
def test_pywavelets_is_the_oracle_of_padding(size: tuple[int, int], pad: str, target: Target) -> None:
    pywt = pytest.importorskip("pywt", reason="PyWavelets is not installed")
    x = images(2, 3, *size)
    source = x.numpy()
    if pad == "reflect" and 1 in size:  # PyWavelets raises; numpy reflects a single sample onto itself
        source = np.pad(source, ((0, 0), (0, 0), *((0, n % 2) for n in size)), mode="reflect")
    low, bands = pywt.dwt2(source, "haar", mode=pad)
    with srkernels.use_backend(target.backend):
        our_low, our_high = haar_dwt2d(x.to(target.device), pad=pad)
    assert_same(our_low.cpu(), torch.from_numpy(low))
    assert_same(our_high.cpu(), torch.from_numpy(np.stack(bands, 2)))


@pytest.mark.parametrize("pad", ["reflect", "zero", "symmetric", "periodic"])
@pytest.mark.parametrize("size", [(8, 10), (7, 5)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_ptwt(size: tuple[int, int], pad: str) -> None:
    ptwt = pytest.importorskip("ptwt", reason="ptwt is not installed")
    low, details = ptwt.wavedec2(images(2, 3, *size), "haar", mode=pad, level=1)
    our_low, our_high = haar_dwt2d(images(2, 3, *size), pad=pad)
    assert_same(our_low, low)
    assert_same(our_high, torch.stack(tuple(details), 2))


@pytest.mark.parametrize("pad", ["reflect", "zero", "symmetric", "periodization", "periodic"])
@pytest.mark.parametrize("size", [(8, 10), (7, 5)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_pytorch_wavelets(size: tuple[int, int], pad: str) -> None:
    package = pytest.importorskip(
        "pytorch_wavelets",
        reason="pytorch_wavelets is not installed, or does not import with this setuptools",
        exc_type=ImportError,
    )
    x = random((2, 3, *size), torch.float32, 0)
    low, (high,) = package.DWTForward(J=1, wave="haar", mode=pad)(x)
    our_low, our_high = haar_dwt2d(x, pad=pad)
    # Its filters are fp32: four products and three additions, each off by half an eps of values of order one.
    for ours, theirs in ((our_low, low), (our_high, high)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=4 * torch.finfo(torch.float32).eps * x.abs().max().item())


# first convolutions converted between conventions


def _stacked(x: Tensor, convention: str, bands: str) -> Tensor:
    """Bands as each package stacks them for a convolution: (N, I, h, w)."""
    low, high = haar_dwt2d(x, convention, bands=bands)
    parts = [] if low is None else [low]
    if isinstance(high, tuple):
        parts += high
    elif high is not None and high.dim() == 5:
        return torch.cat(([] if low is None else [low[:, :, None]]) + [high], 2).flatten(1, 2)
    elif high is not None:
        parts.append(high)
    return torch.cat(parts, 1)


def _carried(source: str, target: str, bands: str, bias: bool) -> None:
    x = images(2, 3, 9, 12)
    before, after = _stacked(x, source, bands), _stacked(x, target, bands)
    weight = images(5, before.shape[1], 3, 3, seed=1) - 0.4
    constant = images(5, seed=2) if bias else None
    expected = F.conv2d(before, weight, constant)
    if bias:
        converted, shifted = convert_haar_weight(weight, source, target, bias=constant, bands=bands)
    else:
        converted, shifted = convert_haar_weight(weight, source, target, bands=bands), None
    assert converted.shape == (5, after.shape[1], 3, 3)
    # A sum of I x 9 products: in any order, off by at most as many roundings of the sum of magnitudes.
    terms = 9 * after.shape[1] + 2
    size = F.conv2d(after.abs(), converted.abs()).max().item() + (shifted.abs().max().item() if bias else 0)
    torch.testing.assert_close(F.conv2d(after, converted, shifted), expected, rtol=0, atol=terms * EPS * size)


PAIRS = [(s, t) for s in HAAR_CONVENTIONS for t in HAAR_CONVENTIONS if t != "dasr_sum" or s == t]


@pytest.mark.parametrize("bands", ["high", "both", "low"])
@pytest.mark.parametrize(("source", "target_convention"), PAIRS)
def test_convert_haar_weight(source: str, target_convention: str, bands: str) -> None:
    _carried(source, target_convention, bands, bias=True)
    if bands == "low" or source == target_convention:
        _carried(source, target_convention, bands, bias=False)


@pytest.mark.parametrize(("source", "target_convention"), [p for p in PAIRS if p[0] != p[1]])
def test_convert_haar_weight_without_bias(source: str, target_convention: str) -> None:
    """Without a bias it is either exact or raises: a constant shift needs somewhere to go."""
    shifts = [HAAR_CONVENTIONS[c].shift for c in (source, target_convention)]
    if shifts == [0, 0]:
        _carried(source, target_convention, "high", bias=False)
    elif shifts[0] != shifts[1]:
        with pytest.raises(ValueError, match="pass bias="):
            _carried(source, target_convention, "high", bias=False)
    else:
        weight = images(5, 3 if source == "dasr_sum" else 9, 3, 3) - 0.4
        _, moved = convert_haar_weight(weight, source, target_convention, bias=torch.zeros(5, dtype=weight.dtype))
        if moved.abs().max() > 1e-12:  # both shift, but by different sums: it must say so
            with pytest.raises(ValueError, match="pass bias="):
                convert_haar_weight(weight, source, target_convention)
        else:
            _carried(source, target_convention, "high", bias=False)


@pytest.mark.parametrize("source", [c for c in HAAR_CONVENTIONS if c != "dasr_sum"])
def test_convert_haar_weight_refuses_the_sum_as_a_target(source: str) -> None:
    with pytest.raises(ValueError, match="cannot carry weights"):
        convert_haar_weight(torch.zeros(5, 9, 3, 3), source, "dasr_sum", bias=torch.zeros(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_convert_haar_weight_keeps_the_dtype_and_comes_back(dtype: torch.dtype) -> None:
    weight = random((4, 9, 3, 3), dtype, 0)
    there = convert_haar_weight(weight, "mwcnn", "wtconv")
    assert there.dtype == dtype
    assert torch.equal(convert_haar_weight(there, "wtconv", "mwcnn"), weight)  # signs and powers of two: exact


# weighted L1 as others write it


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("weight_size", [(1, 1), (3, 5), (9, 12), (18, 24), (20, 7)], ids=str)
def test_weighted_loss_is_interpolate_times_l1(
    weight_size: tuple[int, int], align_corners: bool, target: Target
) -> None:
    x, y, w = images(2, 3, 9, 12), images(2, 3, 9, 12, seed=1), images(2, 1, *weight_size, seed=2)
    full = F.interpolate(w, (9, 12), mode="bilinear", align_corners=align_corners)
    with srkernels.use_backend(target.backend):
        arguments = [t.to(target.device) for t in (x, y, w)]
        every = weighted_l1_loss(*arguments, reduction="none", align_corners=align_corners).cpu()
        mean = weighted_l1_loss(*arguments, align_corners=align_corners).cpu()
    assert_same(every, full * (x - y).abs(), terms=16)
    assert_same(mean, (full * (x - y).abs()).mean(), terms=x.numel())


def _basicsr_weight_reduce_loss(loss: Tensor, weight: Tensor) -> Tensor:
    """BasicSR's mean over a weight: one channel of weight counts for every channel of the image."""
    total = weight.sum() if weight.size(1) > 1 else weight.sum() * loss.size(1)
    return (loss * weight).sum() / total


@pytest.mark.parametrize("channels", [1, 3])
def test_weight_sum_is_basicsr(channels: int, target: Target) -> None:
    x, y, w = images(2, 3, 9, 12), images(2, 3, 9, 12, seed=1), images(2, channels, 9, 12, seed=2)
    with srkernels.use_backend(target.backend):
        module = srkernels.nn.WeightedL1Loss(loss_weight=0.25, normalize="weight_sum")
        found = module(*(t.to(target.device) for t in (x, y, w))).cpu()
    assert_same(found, 0.25 * _basicsr_weight_reduce_loss((x - y).abs(), w), terms=x.numel())


def test_numel_is_dasr_and_ldl(target: Target) -> None:
    """DASR and LDL multiply both images by the map and divide by the number of pixels, weighted or not."""
    x, y, w = images(2, 3, 9, 12), images(2, 3, 9, 12, seed=1), images(2, 1, 9, 12, seed=2).abs()
    with srkernels.use_backend(target.backend):
        found = weighted_l1_loss(*(t.to(target.device) for t in (x, y, w))).cpu()
    assert_same(found, F.l1_loss(w * x, w * y), terms=x.numel())


def test_usr_da_swaps_prediction_and_target(target: Target) -> None:
    """USR-DA calls ``loss(target, prediction)``: the gradient flows to whichever operand is the network's."""
    x, y, w = images(2, 3, 9, 12), images(2, 3, 9, 12, seed=1), images(2, 1, 3, 4, seed=2)
    x, y, w = (t.to(target.device) for t in (x, y, w))
    with srkernels.use_backend(target.backend):
        first = x.clone().requires_grad_()
        (as_input,) = torch.autograd.grad(weighted_l1_loss(first, y, w), first)
        second = x.clone().requires_grad_()
        (as_target,) = torch.autograd.grad(weighted_l1_loss(y, second, w), second)
    assert torch.equal(as_input, as_target)
    assert as_input.any()
