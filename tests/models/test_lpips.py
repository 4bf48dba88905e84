"""LPIPS: a value by hand, the written-out definition, weights files, precision."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks import LPIPS

CHANNELS = (64, 192, 384, 256, 256)


def alexnet_state() -> dict[str, Tensor]:
    """Random weights under the keys of torchvision's `alexnet`, a layer of its classifier included."""
    layers = nn.ModuleDict(
        {
            "0": nn.Conv2d(3, 64, 11, 4, 2),
            "3": nn.Conv2d(64, 192, 5, padding=2),
            "6": nn.Conv2d(192, 384, 3, padding=1),
            "8": nn.Conv2d(384, 256, 3, padding=1),
            "10": nn.Conv2d(256, 256, 3, padding=1),
        }
    )
    state = {f"features.{key}": value for key, value in layers.state_dict().items()}
    return {**state, "classifier.1.weight": torch.zeros(2, 2)}


def lin_state() -> dict[str, Tensor]:
    return {f"lin{k}.model.1.weight": torch.rand(1, channels, 1, 1) for k, channels in enumerate(CHANNELS)}


def by_definition(a: Tensor, b: Tensor, alexnet: dict[str, Tensor], lin: dict[str, Tensor]) -> Tensor:
    def taps(x: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = ((x * 2 - 1) - shift.to(x).view(1, 3, 1, 1)) / scale.to(x).view(1, 3, 1, 1)
        found = []
        for n, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if n in (3, 6):
                x = F.max_pool2d(x, kernel_size=3, stride=2)
            weight, bias = (alexnet[f"features.{n}.{kind}"].to(x) for kind in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, stride, padding).relu()
            found.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    total = torch.zeros(len(a), dtype=a.dtype)
    for k, (f, g) in enumerate(zip(taps(a), taps(b), strict=True)):
        weighted = F.conv2d((f - g) ** 2, lin[f"lin{k}.model.1.weight"].to(a))
        total = total + weighted.mean(dim=(1, 2, 3))
    return total


def by_definition_on_vgg16(a: Tensor, b: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Of a whole state dict; the last ReLU of each stage, in the order of torchvision's `vgg16().features`."""

    def taps(x: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = ((x * 2 - 1) - shift.to(x).view(1, 3, 1, 1)) / scale.to(x).view(1, 3, 1, 1)
        found = []
        for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            x = x if stage[0] == 0 else F.max_pool2d(x, kernel_size=2, stride=2)
            for n in stage:
                x = F.conv2d(x, state[f"features.{n}.weight"], state[f"features.{n}.bias"], padding=1).relu()
            found.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    pairs = enumerate(zip(taps(a), taps(b), strict=True))
    return sum(F.conv2d((f - g) ** 2, state[f"lin{k}.model.1.weight"]).mean(dim=(1, 2, 3)) for k, (f, g) in pairs)


def test_on_vgg16_by_its_definition():
    torch.manual_seed(0)
    network = LPIPS("vgg16").double()
    assert (network.name, network.convention, network.least_side) == ("LPIPS", "v0.1 VGG-16", 16)
    for parameter in network.parameters():
        nn.init.kaiming_normal_(parameter) if parameter.dim() == 4 else nn.init.normal_(parameter, std=0.1)
    a, b = torch.rand(2, 2, 3, 17, 36, dtype=torch.float64)
    wanted = by_definition_on_vgg16(a, b, network.state_dict())
    torch.testing.assert_close(network(a, b), wanted, rtol=1e-6, atol=0.0)  # the shift and the scale are fp32
    assert network(a[..., :16, :16], b[..., :16, :16]).isfinite().all()


def test_the_package_lpips_has_vgg16_under_other_keys():
    network = LPIPS("vgg16")
    slices = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    of = {str(n): number for number, each in enumerate(slices, 1) for n in each}
    theirs = {
        re.sub(r"^features\.(\d+)", lambda key: f"net.slice{of[key[1]]}.{key[1]}", key): value
        for key, value in network.state_dict().items()
    }
    other = LPIPS("vgg16")
    other.load(theirs)
    a, b = torch.rand(2, 1, 3, 16, 16)
    assert torch.equal(other(a, b), network(a, b))


@pytest.fixture(scope="module")
def states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    return alexnet_state(), lin_state()


@pytest.fixture(scope="module")
def lpips(states) -> LPIPS:
    network = LPIPS()
    network.load(*states)
    return network


def test_by_its_definition(lpips, states):
    a, b = torch.rand(2, 3, 3, 47, 64, dtype=torch.float64)
    a.requires_grad_()
    b.requires_grad_()
    double = LPIPS().double()
    double.load_state_dict(lpips.state_dict())
    ours, theirs = double(a, b), by_definition(a, b, *states)
    assert ours.shape == (3,)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0.0)  # the shift and the scale are fp32
    cotangent = torch.rand_like(ours)
    for got, want in zip(
        torch.autograd.grad(ours, (a, b), cotangent), torch.autograd.grad(theirs, (a, b), cotangent), strict=True
    ):
        assert want.any()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6 * float(want.abs().max()))
    torch.testing.assert_close(lpips(a.float(), b.float()), ours.float(), rtol=1e-4, atol=0.0)


def test_by_hand():
    """Two channels of the first tap: the red of a pixel and the constant 1; (0, 1) against (3/4, 1), to unit length."""
    state = {key: torch.zeros_like(value) for key, value in LPIPS().state_dict().items()}
    state["features.0.weight"][0, 0, 5, 5] = 1.0
    state["features.0.bias"][1] = 1.0
    state["lin0.model.1.weight"][0, :2, 0, 0] = torch.tensor([1.0, 2.0])
    lpips = LPIPS()
    lpips.load_state_dict(state)
    a, b = torch.rand(2, 1, 3, 40, 40)
    a[:, 0] = (1 - 0.030) / 2
    b[:, 0] = (1 - 0.030 + 0.458 * 0.75) / 2
    # (0, 1) against (0.6, 0.8): 1 * 0.36 + 2 * 0.04
    torch.testing.assert_close(lpips(a, b), torch.tensor([0.44]))


def test_the_same_image_is_at_no_distance(lpips):
    a, b = torch.rand(2, 2, 3, 48, 48)
    assert lpips(a, a).tolist() == [0.0, 0.0]
    torch.testing.assert_close(lpips(a, b), lpips(b, a))
    assert bool((lpips(a, b) > 0).all())


def test_features_that_are_all_zero_have_a_gradient():
    lpips = LPIPS()
    state = lpips.state_dict()
    state["features.0.bias"].fill_(-1e3)
    a, b = torch.rand(2, 1, 3, 40, 40)
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(lpips(a, b).sum(), a)
    assert gradient.isfinite().all()


def test_under_autocast_only_the_convolutions_are_rounded(lpips):
    a, b = torch.rand(2, 2, 3, 48, 48)
    exact = lpips(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = lpips(a, b)
        assert lpips(a, a).tolist() == [0.0, 0.0]
        assert lpips(a.bfloat16(), b).dtype is torch.float32
    assert rounded.dtype is torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.0)


def test_frozen_and_in_evaluation_mode(lpips):
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    assert not any(module.training for module in lpips.train().modules())
    assert sum(parameter.numel() for parameter in lpips.parameters()) == 2_470_848


def test_state_dict_of_the_package_lpips(lpips, states):
    alexnet, lin = states
    slices = {"0": 1, "3": 2, "6": 3, "8": 4, "10": 5}
    combined = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1), **lin}
    for key, value in alexnet.items():
        if key.startswith("features."):
            _, n, kind = key.split(".")
            combined[f"net.slice{slices[n]}.{n}.{kind}"] = value
    combined |= {f"lins.{key[3]}.{key[5:]}": value for key, value in lin.items()}
    other = LPIPS()
    other.load(combined)
    a, b = torch.rand(2, 1, 3, 40, 40)
    assert torch.equal(other(a, b), lpips(a, b))


def test_a_file_that_does_not_fit_is_named(states):
    alexnet, lin = states
    with pytest.raises(RuntimeError, match=r"lin4\.model\.1\.weight"):
        LPIPS().load(alexnet, {key: value for key, value in lin.items() if not key.startswith("lin4")})
    with pytest.raises(RuntimeError, match=r"features\.12\.weight"):
        LPIPS().load({**alexnet, "features.12.weight": torch.zeros(1)}, lin)
