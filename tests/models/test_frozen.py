"""Layers that keep bits and bytes for the backward pass: PyTorch's own values and gradients to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import srkernels
from models.networks import VGG19Features, frozen
from models.networks.vgg import keep_signs
from srkernels._meter import saved_bytes

Layer = Callable[[Tensor], Tensor]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def bits(x: Tensor) -> Tensor:
    """In which one NaN equals another, and 0 is not -0."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.masked_fill(x.isnan(), math.nan).contiguous().view(integers)


def assert_same(ours: Layer, theirs: Layer, x: Tensor) -> None:
    """Values, gradients and layouts, for gradients that are not finite and that are expanded too."""
    a, b = (x.clone().requires_grad_() for _ in range(2))
    found, wanted = ours(a), theirs(b)
    assert torch.equal(bits(found), bits(wanted)) and found.stride() == wanted.stride()
    grad = torch.randn_like(found)
    grad[..., 0, 0] = math.inf
    grad[..., -1, -1] = math.nan
    for each in (grad, torch.ones((), dtype=x.dtype).expand_as(found)):
        (to_a,) = torch.autograd.grad(found, a, each, retain_graph=True)
        (to_b,) = torch.autograd.grad(wanted, b, each, retain_graph=True)
        assert torch.equal(bits(to_a), bits(to_b)) and to_a.stride() == to_b.stride()


def picture(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """Small integers, so that many are equal, zeros of both signs, infinities, and windows with NaN in them."""
    x = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[..., 0, 0], x[..., 1, 1], x[..., 2, 2], x[..., 3, 2] = math.nan, math.nan, math.inf, -0.0
    return x.contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations_and_pools_are_pytorchs_to_the_bit(dtype, layout):
    for shape in ((2, 3, 7, 9), (1, 1, 4, 6), (1, 8, 4, 4), (1, 2, 5, 300)):  # 63 elements, one channel, a wide plane
        x = picture(shape, dtype, layout)
        assert_same(frozen.relu, F.relu, x)
        assert_same(lambda x: frozen.relu(x + 0, inplace=True), lambda x: F.relu(x + 0), x)
        for kernel, stride in ((2, 2), (3, 2), (3, 1)):
            pool = partial(F.max_pool2d, kernel_size=kernel, stride=stride)
            assert_same(partial(frozen.max_pool2d, kernel=kernel, stride=stride), pool, x)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frozen_convolution_is_pytorchs_to_the_bit(dtype, layout):
    torch.manual_seed(0)
    for channels, out in ((3, 8), (8, 8), (5, 1)):
        weight = torch.randn(out, channels, 3, 3, dtype=dtype).contiguous(memory_format=layout)
        for bias in (torch.randn(out, dtype=dtype), None):
            x = torch.randn(2, channels, 7, 9, dtype=dtype).contiguous(memory_format=layout)
            theirs = partial(F.conv2d, weight=weight, bias=bias, padding=1)
            with srkernels.use_backend("reference"):
                assert_same(partial(frozen.convolution, weight=weight, bias=bias), theirs, x)


def test_second_derivatives():
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 2, 3, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64, requires_grad=True)

    def network(x: Tensor) -> Tensor:
        z = frozen.convolution(frozen.max_pool2d(x, 3, 2), weight, bias)
        return frozen.relu(z, inplace=True)

    assert torch.autograd.gradcheck(network, x)
    assert torch.autograd.gradgradcheck(network, x)


@pytest.fixture(scope="module")
def vgg() -> VGG19Features:
    """With weights large enough for every layer to show in the gradient."""
    torch.manual_seed(0)
    network = VGG19Features(("conv1_2", "relu2_1", "conv3_2")).to(memory_format=torch.channels_last)
    for conv in network.features.values():
        torch.nn.init.kaiming_normal_(conv.weight)
    return network


def features_and_gradient(
    network: VGG19Features, save: str, call: Layer, backend: str | None = "reference"
) -> list[Tensor]:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 20, 18).contiguous(memory_format=torch.channels_last).requires_grad_()
    network.save = save
    with srkernels.use_backend(backend):
        found = call(image)
        (grad,) = torch.autograd.grad([found[name].float().square().mean() for name in network.layers], image)
    return [*(x.detach() for x in found.values()), grad]


CALLS = {
    "plain": lambda network: network,
    "bf16": lambda network: torch.autocast("cpu", torch.bfloat16)(network.__call__),
    "checkpointed": lambda network: lambda image: checkpoint(network, image, use_reentrant=False),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_vgg_is_the_same_to_the_bit(vgg, call):
    kept, signs = (features_and_gradient(vgg, save, call(vgg)) for save in ("activations", "signs"))
    for a, b in zip(kept, signs, strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride() and float(a.abs().max()) > 0


def test_compiled_vgg_keeps_activations():
    """A compiler decides by itself what is kept."""
    torch.manual_seed(0)
    network = VGG19Features(("relu1_1", "conv2_1"))
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    eager = features_and_gradient(network, "activations", network, None)
    for a, b in zip(eager, features_and_gradient(network, "signs", compiled, None), strict=True):
        torch.testing.assert_close(a, b)


def test_filters_that_are_trained_have_gradients():
    torch.manual_seed(0)
    network, image = VGG19Features(("relu2_1",)), torch.rand(1, 3, 16, 16, requires_grad=True)
    network.requires_grad_(True)
    weights = [p for key, p in network.named_parameters() if int(key.split(".")[1]) <= 5]
    found = []
    for save in ("activations", "signs"):
        network.save = save
        found.append(torch.autograd.grad(network(image)["relu2_1"].sum(), weights))
    assert len(found[0]) == 6
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_is_kept_where_no_gradient_is_wanted(vgg):
    image = torch.rand(1, 3, 32, 32)
    vgg.save = "signs"
    known = (*vgg.parameters(), *vgg.buffers())
    assert saved_bytes(lambda: vgg(image), (image, *known)) == 0
    with torch.no_grad():
        assert not any(x.requires_grad for x in vgg(image.requires_grad_()).values())


def test_signs_reach_every_vgg():
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.ReLU(), VGG19Features())
    keep_signs(network)
    assert network[1].save == "signs"
