"""Encoder, decoders and discriminators of USR-DA: published keys and sizes, values written out in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from test_networks import conv_keys, count, strong
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks import Decoder, Encoder, PatchDiscriminator, VGGDiscriminator
from models.networks.blocks import recompute_blocks

NORMS = ("batch", "instance", "none", "spectral")
DISCRIMINATOR_CONVS = ("features.0", *(f"features.{n}" for n in range(2, 27, 3)))


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (Encoder, 149_504),
        (Decoder, 16_733_123),
        (partial(Decoder, num_block=10, scale=1), 7_306_755),
        (partial(VGGDiscriminator, 64, 128), 10_262_409),
        (partial(VGGDiscriminator, 3, 128), 10_227_273),
        (partial(VGGDiscriminator, 3, 512), 22_515_273),
        (partial(VGGDiscriminator, 64, 64), 9_648_009),
        (partial(VGGDiscriminator, 3, 64), 9_612_873),
        (partial(VGGDiscriminator, 3, 256), 12_684_873),
    ],
)
def test_unofficial_sizes(network, parameters):
    with torch.device("meta"):
        assert count(network()) == parameters


def test_encoder_and_decoders_have_the_unofficial_keys():
    assert set(Encoder(8).state_dict()) == conv_keys(*(f"conv_featmap.{n}" for n in (0, 2, 4, 6, 8)))
    dense = [f"body.{n}.rdb{r}.conv{c}" for n in range(2) for r in (1, 2, 3) for c in range(1, 6)]
    for scale, ups in ((1, []), (2, ["conv_up1"]), (4, ["conv_up1", "conv_up2"])):
        ends = ["conv_first", "conv_body", *ups, "conv_hr", "conv_last"]
        assert set(Decoder(8, 2, 4, scale=scale).state_dict()) == conv_keys(*ends, *dense)


def test_discriminator_has_the_unofficial_keys():
    """With batch norm; what else can stand there leaves every other key where it is, and gives the others a bias."""
    first, *others = DISCRIMINATOR_CONVS
    keys = conv_keys(first, "classifier.0", "classifier.2") | {f"{conv}.weight" for conv in others}
    assert set(VGGDiscriminator(3, 32, 4, norm="instance").state_dict()) == keys
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norms = {f"features.{n}.{kind}" for n in range(3, 28, 3) for kind in kinds}
    assert set(VGGDiscriminator(3, 32, 4).state_dict()) == keys | norms
    biased = keys | conv_keys(*others)
    assert set(VGGDiscriminator(3, 32, 4, norm="none").state_dict()) == biased
    spectral = {key.replace(".parametrizations.weight.original", ".weight") for key in spectral_state(3, 32)}
    assert {key for key in spectral if not key.endswith(("_u", "_v"))} == biased


def spectral_state(in_channels: int, image_size: int) -> dict[str, Tensor]:
    return VGGDiscriminator(in_channels, image_size, 4, norm="spectral").state_dict()


def test_dense_blocks_start_small_and_all_else_as_pytorch_has_it():
    torch.manual_seed(0)
    for network in (Encoder(32), Decoder(32, 1, 16), VGGDiscriminator(3, 32, 8)):
        for name, conv in network.named_modules():
            if not isinstance(conv, nn.Conv2d):
                continue
            fan_in = conv.weight[0].numel()
            if "rdb" in name:
                assert float(conv.weight.detach().std()) == pytest.approx(0.1 * (2 / fan_in) ** 0.5, rel=0.2)
                assert not conv.bias.any()
            else:
                assert 0.9 < float(conv.weight.detach().abs().max()) * fan_in**0.5 <= 1
                assert conv.bias is None or conv.bias.any()


def test_shapes():
    features = Encoder(8, 3)(torch.rand(2, 3, 11, 20))
    assert features.shape == (2, 8, 11, 20)
    for scale in (1, 2, 4):
        assert Decoder(8, 1, 4, scale=scale)(features).shape == (2, 3, 11 * scale, 20 * scale)
    for norm in NORMS:
        assert VGGDiscriminator(8, 64, 4, norm=norm)(torch.rand(2, 8, 64, 64)).shape == (2, 1)
        assert PatchDiscriminator(8, 4, norm=norm)(features).shape == (2, 1, 3, 5)


def test_arguments_that_no_network_has():
    with pytest.raises(ValueError, match="Decoder: scale must be 1, 2 or 4, got 3"):
        Decoder(8, 1, scale=3)
    for size in (0, 16, 48):
        with pytest.raises(ValueError, match=f"image_size must be a positive multiple of 32, got {size}"):
            VGGDiscriminator(3, size)
    with pytest.raises(ValueError, match=r"VGGDiscriminator: norm must be one of .*, got 'other'"):
        VGGDiscriminator(3, 32, norm="other")
    # As many values as 64 x 64, which the first linear layer would take.
    with pytest.raises(ValueError, match=r"x must be \(N, C, H, W\) of 64 x 64, got \(1, 3, 32, 128\)"):
        VGGDiscriminator(3, 64, 4)(torch.rand(1, 3, 32, 128))


def assert_same_values_and_gradients(network: nn.Module, found: Tensor, plain: Tensor, x: Tensor) -> None:
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-10)
    assert float(found.detach().abs().max()) > 0.1
    cotangent = torch.randn_like(found)
    inputs = [x, *network.parameters()]
    ours, theirs = (torch.autograd.grad(out, inputs, cotangent) for out in (found, plain))
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def leaky(x: Tensor) -> Tensor:
    return torch.maximum(x, 0.2 * x)


def conv_of(network: nn.Module, name: str, x: Tensor, stride: int = 1) -> Tensor:
    conv = network.get_submodule(name)
    return F.conv2d(x, conv.weight, conv.bias, stride=stride, padding=1)


def test_encoder_written_out():
    network = strong(Encoder(6))
    image = torch.rand(2, 3, 9, 12, dtype=torch.float64, requires_grad=True)
    x = image
    for n in (0, 2, 4, 6):
        x = leaky(conv_of(network, f"conv_featmap.{n}", x))
    assert_same_values_and_gradients(network, network(image), conv_of(network, "conv_featmap.8", x), image)


@pytest.mark.parametrize(("scale", "ups"), [(1, ()), (2, ("conv_up1",)), (4, ("conv_up1", "conv_up2"))])
@pytest.mark.parametrize("recompute", [False, True])
def test_decoder_written_out(scale, ups, recompute):
    network = strong(Decoder(6, 2, 3, scale=scale))
    if recompute:
        recompute_blocks(network)
    conv = partial(conv_of, network)

    def plain(x: Tensor) -> Tensor:
        x = shallow = conv("conv_first", x)
        for n in range(2):
            entered = x
            for rdb in (1, 2, 3):
                parts: Sequence[Tensor] = [x]
                for k in range(1, 5):
                    parts = [*parts, leaky(conv(f"body.{n}.rdb{rdb}.conv{k}", torch.cat(parts, 1)))]
                x = x + 0.2 * conv(f"body.{n}.rdb{rdb}.conv5", torch.cat(parts, 1))
            x = entered + 0.2 * x
        x = shallow + conv("conv_body", x)
        for up in ups:
            x = leaky(conv(up, x.repeat_interleave(2, 2).repeat_interleave(2, 3)))
        return conv("conv_last", leaky(conv("conv_hr", x)))

    features = torch.randn(2, 6, 5, 6, dtype=torch.float64, requires_grad=True)
    assert_same_values_and_gradients(network, network(features), plain(features), features)


@pytest.mark.parametrize("norm", NORMS)
def test_discriminator_written_out(norm):
    """In training mode: batch and instance norm by their definitions, spectral norm by what the power method found."""
    network = strong(VGGDiscriminator(5, 64, 2, norm=norm))
    features = torch.randn(3, 5, 64, 64, dtype=torch.float64, requires_grad=True)
    before = features.detach().clone()
    found = network(features)
    assert torch.equal(features, before)

    def weight(name: str) -> Tensor:
        if norm != "spectral":
            return network.get_parameter(f"{name}.weight")
        parametrized = network.get_submodule(f"{name}.parametrizations.weight")
        u, v, original = parametrized[0]._u.clone(), parametrized[0]._v.clone(), parametrized.original
        return original / (u @ original.flatten(1) @ v)

    x = features
    for n, name in enumerate(DISCRIMINATOR_CONVS):
        x = F.conv2d(x, weight(name), network.get_submodule(name).bias, stride=(1, 2)[n % 2], padding=1)
        if n > 0 and norm in ("batch", "instance"):
            variance, mean = torch.var_mean(x, (0, 2, 3) if norm == "batch" else (2, 3), correction=0, keepdim=True)
            x = (x - mean) / (variance + 1e-5).sqrt()
        if n > 0 and norm == "batch":
            layer = network.features[3 * n]
            x = x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
        x = leaky(x)
    first, last = network.classifier[0], network.classifier[2]
    hidden = leaky(x.flatten(1) @ weight("classifier.0").T + first.bias)
    assert_same_values_and_gradients(network, found, hidden @ weight("classifier.2").T + last.bias, features)


@pytest.mark.parametrize(
    "network", [VGGDiscriminator(3, 32, 4, norm="spectral"), PatchDiscriminator(3, 4, norm="spectral")]
)
def test_spectral_norm_bounds_every_layer(network):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32)
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) == (12 if isinstance(network, VGGDiscriminator) else 4)
    for layer in layers:
        nn.init.normal_(layer.parametrizations.weight.original, std=3.0)
    for _ in range(100):
        network(images)
    network.eval()
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, rel=0.02)
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize("norm", NORMS)
def test_one_graph_of_several_calls_gives_both_players_their_gradients(norm):
    """As a step does it: scores of real and made images in one graph, read twice; under autocast besides."""
    network = VGGDiscriminator(3, 64, 4, norm=norm)
    real, made = torch.rand(2, 2, 3, 64, 64).requires_grad_().unbind()
    with torch.autocast("cpu", torch.bfloat16):
        of_real, of_made = network(real).float(), network(made).float()
    loss = (of_real - 1).square().mean() + of_made.square().mean()
    loss.backward(inputs=[*network.parameters()], retain_graph=True)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    (gradient,) = torch.autograd.grad((of_made - 1).square().mean(), made)
    assert gradient.isfinite().all() and gradient.any()
