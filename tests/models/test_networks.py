"""Published keys, parameter counts, shapes and values of the networks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import srkernels
from bench.steps.plain import PLAIN
from models.data.resize import bicubic
from models.networks import DSN, DeResNet, PatchDiscriminator, RRDBNet, VGG16Features, VGG19Features, VGGFeatures
from srkernels._meter import saved_bytes


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def conv_keys(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (DSN, 1_776_067),
        (partial(DSN, num_block=22), 1_702_211),
        (DeResNet, 668_238),
        (partial(DeResNet, num_block=23), 1_776_093),
        (partial(DeResNet, scale=1), 594_380),
        (partial(PatchDiscriminator, kind="fsd"), 1_039_105),
        (partial(PatchDiscriminator, 3, kind="fsd"), 1_029_505),
        (partial(PatchDiscriminator, kind="fsd", norm="batch"), 1_039_105 + 768),
        (partial(PatchDiscriminator, kind="nlayer_s1"), 669_121),
        (partial(PatchDiscriminator, kind="nlayer_s2"), 669_121),
        (partial(PatchDiscriminator, kind="nlayer_s2", bias=False), 668_737),
        (partial(PatchDiscriminator, 3, kind="nlayer_s2", bias=False), 662_593),
        (RRDBNet, 16_697_987),
        (VGG16Features, 14_714_688),
        (VGG19Features, 20_024_384),
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
    prelus = {"block_input.1.weight", "res_blocks.0.prelu.weight"}
    keys = prelus | conv_keys("block_input.0", "res_blocks.0.conv1", "res_blocks.0.conv2", "block_output")
    assert set(DeResNet(8, 1, scale=1).state_dict()) == keys
    keys |= {"down_sample.1.weight"} | conv_keys("down_sample.0")
    assert set(DeResNet(8, 1, scale=2).state_dict()) == keys
    keys |= {"down_sample.3.weight"} | conv_keys("down_sample.2")
    assert set(DeResNet(8, 1).state_dict()) == keys


def test_dsn_has_the_published_keys():
    blocks = [f"model.1.sub.{n}.res.{k}" for n in range(2) for k in (0, 2)]
    ends = ["model.0", "model.1.sub.2", "Afterconv.0", "Afterconv.1"]
    assert set(DSN(8, 2).state_dict()) == conv_keys(*ends, *blocks)


def test_discriminators_have_the_published_keys():
    convs = ("model.0", "model.2", "model.5", "model.8")
    for norm in ("instance", "none"):
        assert set(PatchDiscriminator(9, 8, kind="fsd", norm=norm).state_dict()) == conv_keys(*convs)
    without_bias = {"model.2.weight", "model.5.weight"}
    of_srn = PatchDiscriminator(9, 8, kind="nlayer_s2", bias=False).state_dict()
    assert set(of_srn) == conv_keys("model.0", "model.8") | without_bias
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norms = {f"model.{n}.{kind}" for n in (3, 6) for kind in kinds}
    assert set(PatchDiscriminator(9, 8, kind="fsd", norm="batch").state_dict()) == conv_keys(*convs) | norms


def test_initial_weights():
    """He's fan-in deviation, a tenth of it in the DSN; biases 0. Other discriminators start as PyTorch has it."""
    torch.manual_seed(0)
    for network, scale in ((DSN(32, 2), 0.1), (PatchDiscriminator(9, 32, init="kaiming"), 1.0)):
        for conv in network.modules():
            if isinstance(conv, nn.Conv2d):
                expected = scale * (2 / conv.weight[0].numel()) ** 0.5
                assert float(conv.weight.detach().std()) == pytest.approx(expected, rel=0.2)
                assert not conv.bias.any()
    conv = PatchDiscriminator(9, 32).model[0]
    assert float(conv.weight.detach().abs().max()) <= (1 / conv.weight[0].numel()) ** 0.5
    assert conv.bias.any()


def test_shapes():
    image = torch.rand(2, 3, 24, 40)
    for scale in (1, 2, 4):
        for skip in (False, True):
            network = RRDBNet(8, 1, 4, scale=scale, bicubic_skip=skip)
            assert network(image).shape == (2, 3, 24 * scale, 40 * scale)
            assert network.conv_first.in_channels == {1: 48, 2: 12, 4: 3}[scale]  # as Real-ESRGAN's checkpoints
            for down in (DSN, DeResNet):
                assert down(8, 1, scale=scale, bicubic_skip=skip)(image).shape == (2, 3, 24 // scale, 40 // scale)
    odd = torch.rand(2, 3, 25, 43)
    for skip in (False, True):
        assert DeResNet(8, 1, bicubic_skip=skip)(odd).shape == (2, 3, 7, 11)
    assert DSN(8, 1)(odd).shape == (2, 3, 6, 10)
    for kind, shape in (("paper", (16, 16)), ("fsd", (64, 64)), ("nlayer_s1", (60, 60)), ("nlayer_s2", (14, 14))):
        assert PatchDiscriminator(9, 8, kind=kind)(torch.rand(2, 9, 64, 64)).shape == (2, 1, *shape)


def test_arguments_that_no_network_has():
    for network in (DSN, DeResNet, RRDBNet):
        with pytest.raises(ValueError, match=f"{network.__name__}: scale must be 1, 2 or 4, got 3"):
            network(8, 1, scale=3)
    for name in ("kind", "norm", "init"):
        with pytest.raises(ValueError, match=f"PatchDiscriminator: {name} must be one of .*, got 'other'"):
            PatchDiscriminator(**{name: "other"})


def plain_dsn(network: DSN, x: Tensor) -> Tensor:
    """The network with its convolution behind the trunk and its resize one after the other, in PyTorch."""
    state = dict(network.named_parameters())

    def conv(key: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=1)

    features = shallow = conv("model.0", x)
    for n in range(2):
        features = features + conv(f"model.1.sub.{n}.res.2", conv(f"model.1.sub.{n}.res.0", features).relu())
    features = shallow + conv("model.1.sub.2", features)
    features = F.interpolate(features, scale_factor=1 / network.scale, mode="bilinear", align_corners=False)
    return conv("Afterconv.1", conv("Afterconv.0", features))


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("size", [(12, 20), (13, 18), (7, 4)])
def test_dsn_is_what_its_layers_are_one_by_one(scale, size):
    torch.manual_seed(0)
    network = DSN(4, 2, scale=scale).double()
    with torch.no_grad():  # the initial weights are so small that the output would show nothing
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    image = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    ours, theirs = network(image), plain_dsn(network, image)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(ours)
    inputs = [image, *network.parameters()]
    for got, want in zip(
        torch.autograd.grad(ours, inputs, cotangent), torch.autograd.grad(theirs, inputs, cotangent), strict=True
    ):
        assert want.any()
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "receptive_field", "jump"), [("paper", 23, 4), ("fsd", 13, 1), ("nlayer_s1", 13, 1), ("nlayer_s2", 34, 4)]
)
def test_receptive_field_is_what_a_gradient_sees(kind, receptive_field, jump):
    torch.manual_seed(0)
    network = PatchDiscriminator(1, 4, kind=kind, norm="none").double()
    assert (network.receptive_field, network.jump) == (receptive_field, jump)
    x = torch.randn(1, 1, 80, 88, dtype=torch.float64, requires_grad=True)
    logits = network(x)
    row, column = (n // 2 for n in logits.shape[2:])
    starts = []
    for step in (0, 1):
        (gradient,) = torch.autograd.grad(logits[0, 0, row + step, column + step], x, retain_graph=True)
        for axis in (0, 1):
            seen = gradient[0, 0].abs().sum(1 - axis).nonzero()[:, 0]
            assert int(seen[-1] - seen[0]) + 1 == receptive_field
            starts.append(int(seen[0]))
    assert [starts[2] - starts[0], starts[3] - starts[1]] == [jump, jump]


def test_norms_of_a_discriminator():
    """Instance norm looks at one image alone, in evaluation too; batch norm at the batch, and then at what it kept."""
    torch.manual_seed(0)
    x = torch.rand(3, 9, 16, 16)
    for norm, alone_in_training, alone_in_evaluation in (
        ("instance", True, True),
        ("batch", False, True),
        ("none", True, True),
    ):
        network = PatchDiscriminator(9, 4, norm=norm)
        for mode, alone in ((True, alone_in_training), (False, alone_in_evaluation)):
            network.train(mode)
            assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-6) == alone
    scaled = PatchDiscriminator(9, 4, norm="instance").eval()
    torch.testing.assert_close(scaled.model[:4](3 * x).std(), torch.tensor(1.0), rtol=0.05, atol=0.0)


def torchvision_features(deep: int) -> nn.Sequential:
    """torchvision's `features` of vgg19 and vgg16, of 4 and 3 convolutions in the deep stages: configurations E, D."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in ((64, 2), (128, 2), (256, deep), (512, deep), (512, deep)):
        for _ in range(stage[1]):
            layers += [nn.Conv2d(channels, stage[0], 3, padding=1), nn.ReLU(inplace=True)]
            channels = stage[0]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("kind", "deep", "last"), [(VGG19Features, 4, 35), (VGG16Features, 3, 29)])
def test_vgg_features_before_and_after_the_activation(kind, deep, last):
    torch.manual_seed(0)
    theirs = torchvision_features(deep)
    state = {f"features.{key}": value for key, value in theirs.state_dict().items()}
    conv, relu = f"conv5_{deep}", f"relu5_{deep}"
    ours = kind((relu, conv, "conv1_1", "relu3_2"), input_norm=False)
    ours.load_state_dict(state)
    image = torch.rand(1, 3, 32, 40)
    found = ours(image)
    assert list(found) == [relu, conv, "conv1_1", "relu3_2"]
    for name, upto in (("conv1_1", 1), ("relu3_2", 14), (conv, last), (relu, last + 1)):
        torch.testing.assert_close(found[name], theirs[:upto](image), rtol=1e-4, atol=1e-5)
    assert kind().layers == (conv,)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    ours.input_norm = True
    normalised = (image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    torch.testing.assert_close(ours(image)[conv], theirs[:last](normalised), rtol=1e-4, atol=1e-5)


def _kept_bytes(network: nn.Module, image: torch.Tensor) -> int:
    """Bytes that the graph of one call keeps, the image and the parameters apart."""
    return saved_bytes(lambda: network(image), (image, *network.parameters(), *network.buffers()))


@pytest.mark.parametrize(("kind", "deep"), [(VGG19Features, 4), (VGG16Features, 3)])
def test_frozen_vgg_keeps_what_its_data_gradient_reads(kind, deep):
    """Of each ReLU what comes out of it, of each pooling its indices; no convolution's input besides."""
    side = 32
    image = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    network = kind().to(memory_format=torch.channels_last)
    by_stage = [64 * side**2 * 2, 128 * side**2 // 4 * 2, 256 * side**2 // 16 * deep, 512 * side**2 // 64 * deep]
    activations = 4 * (sum(by_stage) + 512 * side**2 // 256 * (deep - 1))  # the last convolution is linear
    indices = 8 * sum(c * side**2 // 4**s for s, c in enumerate((64, 128, 256, 512), 1))
    with srkernels.use_backend("native"):
        assert _kept_bytes(network, image) == activations + indices
        network.save = "signs"  # a bit and a byte in place of a float and an int64
        assert _kept_bytes(network, image) == activations // 32 + indices // 8
        assert _kept_bytes(network, image.detach()) == 0


def test_vgg_is_frozen_and_says_what_it_does_not_know():
    with torch.device("meta"):
        network = VGG19Features()
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.train().training
    assert set(network.state_dict()) == conv_keys(
        *(f"features.{k}" for k in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34))
    )
    with pytest.raises(RuntimeError, match=r"features\.36\.weight"):
        network.load_state_dict({**network.state_dict(), "features.36.weight": torch.zeros(1)})
    for layers in ((), ("conv6_1",), ("pool1",)):
        with pytest.raises(ValueError, match=r"layers must be some of conv1_1, relu1_1 \.\.\. relu5_4"):
            VGG19Features(layers)


def test_with_a_skip_the_untrained_networks_are_bicubic():
    image = torch.rand(1, 3, 32, 48)
    torch.testing.assert_close(RRDBNet(8, 1, 4, bicubic_skip=True)(image), bicubic(image, 4))
    for scale in (1, 2, 4):
        for network in (DSN, DeResNet):
            down = network(8, 1, scale=scale, bicubic_skip=True)
            torch.testing.assert_close(down(image), bicubic(image, 1 / scale))


def strong(network: nn.Module) -> nn.Module:
    """The network in fp64 with weights large enough for every layer to show in the output."""
    torch.manual_seed(0)
    for parameter in network.double().parameters():
        nn.init.normal_(parameter, std=0.15)
    return network


@pytest.mark.parametrize(
    "network", [RRDBNet(6, 2, 4), DSN(6, 2), VGG16Features(("conv2_2",)), VGG19Features(("conv2_2",))]
)
def test_generators_and_features_are_what_plain_pytorch_makes_of_their_weights(network):
    image = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    strong(network)
    found, plain = network(image), PLAIN[type(network)](network, image)
    if isinstance(network, VGGFeatures):
        found, plain = found["conv2_2"], plain["conv2_2"]
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-10)
    assert float(found.detach().abs().max()) > 0.1


def test_de_resnet_written_out():
    network = strong(DeResNet(6, 2))
    weights = network.state_dict()

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride, padding=1)

    def prelu(name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, weights[f"{name}.weight"] * x)

    image = torch.rand(1, 3, 17, 24, dtype=torch.float64)
    x = prelu("block_input.1", conv("block_input.0", image))
    for n in range(2):
        block = f"res_blocks.{n}"
        x = x + conv(f"{block}.conv2", prelu(f"{block}.prelu", conv(f"{block}.conv1", x)))
    for at in (0, 2):
        x = prelu(f"down_sample.{at + 1}", conv(f"down_sample.{at}", x, stride=2))
    torch.testing.assert_close(network(image), 1 / (1 + torch.exp(-conv("block_output", x))), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("paper", [(2, 1), (2, 1), (1, 1), (1, 1)]),
        ("fsd", [(1, 2), (1, 2), (1, 2), (1, 0)]),
        ("nlayer_s2", [(2, 1), (2, 1), (1, 1), (1, 1)]),
    ],
)
def test_discriminators_written_out(kind, layers):
    """Stride and padding by layer; instance norm by its definition, behind the second and third convolution."""
    network = strong(PatchDiscriminator(9, 4, kind=kind))
    x = image = torch.rand(2, 9, 32, 40, dtype=torch.float64)
    for at, (stride, padding) in zip((0, 2, 5, 8), layers, strict=True):
        x = F.conv2d(x, network.model[at].weight, network.model[at].bias, stride=stride, padding=padding)
        if at in (2, 5):
            variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
            x = (x - mean) / (variance + 1e-5).sqrt()
        if at < 8:
            x = torch.maximum(x, 0.2 * x)
    torch.testing.assert_close(network(image), x, rtol=1e-10, atol=1e-10)
