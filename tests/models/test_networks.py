"""Published keys, parameter counts and shapes of the networks; what one update touches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import srkernels
from models.checkpoint import load_weights, save_weights
from models.dasr.config import DSNOptions, SRNOptions
from models.dasr.demo import make_dsn_step, make_srn_step
from models.dasr.steps import generate_lr_and_map
from models.networks import VGG19, DeResNet, FSDiscriminator, NLayerDiscriminator, RRDBNet
from models.resize import bicubic

CPU = torch.device("cpu")


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def conv_keys(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (DeResNet, 668_238),
        (FSDiscriminator, 1_039_105),
        (NLayerDiscriminator, 668_737),
        (RRDBNet, 16_697_987),
        (VGG19, 20_024_384),
    ],
)
def test_published_sizes(network, parameters):
    with torch.device("meta"):
        assert count(network()) == parameters


def test_rrdbnet_has_the_keys_of_basicsr():
    dense = [f"body.{n}.rdb{r}.conv{c}" for n in range(2) for r in (1, 2, 3) for c in range(1, 6)]
    ends = ["conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    assert set(RRDBNet(8, 2, 4).state_dict()) == conv_keys(*ends, *dense)


def test_de_resnet_has_the_published_keys():
    prelus = {"block_input.1.weight", "res_blocks.0.prelu.weight", "down_sample.1.weight", "down_sample.3.weight"}
    convs = ["block_input.0", "res_blocks.0.conv1", "res_blocks.0.conv2", "down_sample.0", "down_sample.2"]
    assert set(DeResNet(8, 1).state_dict()) == conv_keys(*convs, "block_output") | prelus


def test_discriminators_have_the_published_keys():
    assert set(FSDiscriminator().state_dict()) == conv_keys("net.0", "net.2", "net.5", "net.8")
    without_bias = {"model.2.weight", "model.5.weight"}
    assert set(NLayerDiscriminator().state_dict()) == conv_keys("model.0", "model.8") | without_bias


def test_shapes():
    image = torch.rand(2, 3, 24, 40)
    for scale in (1, 2, 4):
        for skip in (False, True):
            network = RRDBNet(8, 1, 4, scale=scale, bicubic_skip=skip)
            assert network(image).shape == (2, 3, 24 * scale, 40 * scale)
            assert network.conv_first.in_channels == {1: 48, 2: 12, 4: 3}[scale]  # as Real-ESRGAN's checkpoints
    assert DeResNet(8, 1)(image).shape == (2, 3, 6, 10)
    assert FSDiscriminator(9, 8)(torch.rand(2, 9, 12, 20)).shape == (2, 1, 12, 20)
    assert NLayerDiscriminator(9, 8)(torch.rand(2, 9, 64, 64)).shape == (2, 1, 14, 14)


def torchvision_features() -> nn.Sequential:
    """torchvision's `vgg19().features`, written down from the paper's configuration E."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(stage[1]):
            layers += [nn.Conv2d(channels, stage[0], 3, padding=1), nn.ReLU(inplace=True)]
            channels = stage[0]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def test_vgg_features_before_and_after_the_activation():
    torch.manual_seed(0)
    theirs = torchvision_features()
    state = {f"features.{key}": value for key, value in theirs.state_dict().items()}
    ours = VGG19(("relu5_4", "conv5_4", "conv1_1", "relu3_2"), input_norm=False)
    ours.load_torchvision({**state, "classifier.0.weight": torch.zeros(2, 2)})
    image = torch.rand(1, 3, 32, 40)
    found = ours(image)
    assert list(found) == ["relu5_4", "conv5_4", "conv1_1", "relu3_2"]
    for name, upto in (("conv1_1", 1), ("relu3_2", 14), ("conv5_4", 35), ("relu5_4", 36)):
        torch.testing.assert_close(found[name], theirs[:upto](image), rtol=1e-4, atol=1e-5)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    ours.input_norm = True
    normalised = (image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    torch.testing.assert_close(ours(image)["conv5_4"], theirs[:35](normalised), rtol=1e-4, atol=1e-5)


def _kept_bytes(network: nn.Module, image: torch.Tensor) -> int:
    """Bytes that the graph of one call keeps, the image and the parameters apart."""
    own = {t.untyped_storage().data_ptr() for t in (image, *network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        found = network(image)
    del found
    return sum(kept.values())


def test_frozen_vgg_keeps_what_its_data_gradient_reads():
    """Of each ReLU what comes out of it, of each pooling its indices; no convolution's input besides."""
    side = 32
    image = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    network = VGG19().to(memory_format=torch.channels_last)
    by_stage = [64 * side**2 * 2, 128 * side**2 // 4 * 2, 256 * side**2 // 16 * 4, 512 * side**2 // 64 * 4]
    activations = 4 * (sum(by_stage) + 512 * side**2 // 256 * 3)  # conv5_4 is linear
    indices = 8 * sum(c * side**2 // 4**s for s, c in enumerate((64, 128, 256, 512), 1))
    with srkernels.use_backend("native"):
        assert _kept_bytes(network, image) == activations + indices
        assert _kept_bytes(network, image.detach()) == 0


def test_vgg_is_frozen_and_says_what_it_does_not_know():
    with torch.device("meta"):
        network = VGG19()
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.train().training
    assert set(network.state_dict()) == conv_keys(
        *(f"features.{k}" for k in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34))
    )
    with pytest.raises(RuntimeError, match=r"features\.36\.weight"):
        network.load_torchvision({**network.state_dict(), "features.36.weight": torch.zeros(1)})
    for layers in ((), ("conv6_1",), ("pool1",)):
        with pytest.raises(ValueError, match=r"layers must be some of conv1_1, relu1_1 \.\.\. relu5_4"):
            VGG19(layers)


def test_with_a_skip_the_untrained_networks_are_bicubic():
    image = torch.rand(1, 3, 32, 48)
    torch.testing.assert_close(RRDBNet(8, 1, 4, bicubic_skip=True)(image), bicubic(image, 4))
    torch.testing.assert_close(DeResNet(8, 1, bicubic_skip=True)(image), bicubic(image, 0.25))


def test_weights_survive_a_round_trip_in_channels_last(tmp_path):
    network = RRDBNet(8, 1, 4).to(memory_format=torch.channels_last)
    save_weights(network, tmp_path / "a.safetensors")
    other = RRDBNet(8, 1, 4)
    load_weights(other, tmp_path / "a.safetensors")
    for key, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def dsn_case():
    return make_dsn_step(DSNOptions(num_feat=8, num_feat_discriminator=8), CPU), (
        torch.rand(2, 3, 64, 64),
        torch.rand(2, 3, 16, 16),
    )


def srn_case():
    lr, hr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 64, 64)
    step = make_srn_step(SRNOptions(num_feat=8, num_block=1, num_grow_ch=8, num_feat_discriminator=8), CPU)
    return step, (lr, hr, torch.rand(2, 1, 8, 8), lr.flip(0), hr.flip(0))


@pytest.mark.parametrize("case", [dsn_case, srn_case])
def test_each_player_gets_the_gradient_of_its_own_loss(case):
    """The shared forward and pruned backward give the gradients of two separate, textbook backward passes."""
    torch.manual_seed(0)
    step, batch = case()
    # In double precision, so that sums which cancel (a bias in front of instance norm) need no tolerance of their own.
    step.generator.double()
    step.discriminator.double()
    batch = tuple(tensor.double() for tensor in batch)
    for _ in range(2):
        step(*batch)
    before = {
        name: {key: value.clone() for key, value in getattr(step, name).state_dict().items()}
        for name in ("generator", "discriminator")
    }
    step(*batch)
    shared = {
        name: [parameter.grad.clone() for parameter in getattr(step, name).parameters()]
        for name in ("generator", "discriminator")
    }
    for name, weights in before.items():
        getattr(step, name).load_state_dict(weights)

    losses = textbook_losses(step, batch)
    for name, loss in losses.items():
        expected = torch.autograd.grad(loss, list(getattr(step, name).parameters()), retain_graph=True)
        for got, want in zip(shared[name], expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        assert any(bool(want.abs().sum() > 0) for want in expected)


def textbook_losses(step, batch):
    """Both losses written with plain PyTorch, Haar and resize included."""

    def bands(x):
        a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
        return torch.cat((a + b - c - d, a - b + c - d, a - b - c + d), 1) / 4 + 0.5

    def bce(logits, label):
        return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    g, d = step.generator, step.discriminator
    if len(batch) == 2:
        hr, real = batch
        fake = g(hr)
        low_fake, low_hr = (nn.functional.avg_pool2d(x, 5, 1) for x in (fake, bicubic(hr, 0.25)))
        main = step.content * (low_fake - low_hr).abs().mean()
    else:
        lr, hr, distance, real_lr, real = batch
        weight = nn.functional.interpolate(distance, size=hr.shape[-2:], mode="bilinear", align_corners=False)
        main = step.pixel * (weight * (g(lr) - hr).abs()).mean()
        fake = g(real_lr)
    return {
        "generator": main + step.adversarial * bce(d(bands(fake)), 1.0),
        "discriminator": (bce(d(bands(real)), 1.0) + bce(d(bands(fake.detach())), 0.0)) / 2,
    }


def test_generated_lr_is_eight_bit_and_the_map_a_probability():
    step, _ = dsn_case()
    lr, distance = generate_lr_and_map(step.generator, step.discriminator, torch.rand(1, 3, 96, 128))
    assert lr.shape == (1, 3, 24, 32)
    assert distance.shape == (1, 1, 12, 16)
    torch.testing.assert_close(lr * 255, (lr * 255).round())
    assert 0 < float(distance.min()) <= float(distance.max()) < 1
