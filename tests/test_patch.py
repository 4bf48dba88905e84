"""``patch`` on networks as the published code bases write them: same keys, same values, everything still works."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from helpers.operands import random
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

import srkernels
from srkernels import patch, unpatch
from srkernels._dispatch import why_not


class ResidualBlockNoBN(nn.Module):
    """As BasicSR has it."""

    def __init__(self, num_feat: int = 8, res_scale: float = 1) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x))) * self.res_scale


class ResBlock(nn.Module):
    """As EDSR has it: ``body.0``, ``body.2``."""

    def __init__(self, channels: int = 8, res_scale: float = 0.1) -> None:
        super().__init__()
        act = nn.ReLU(True)
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), act, nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        res = self.body(x).mul(self.res_scale)
        res += x
        return res


class ResBlockCRC(nn.Module):
    """As KAIR has it: ``res.0``, ``res.2``, no scale."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, channels, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(channels, channels, 3, 1, 1)]
        self.res = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res(x)


class PReLUBlock(nn.Module):
    """As DASR's down-sampling network has it."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(x)
        residual = self.prelu(residual)
        return x + self.conv2(residual)


class ResidualDenseBlock(nn.Module):
    """As BasicSR has it: ``conv1`` ... ``conv5`` and one activation."""

    def __init__(self, num_feat: int = 8, num_grow_ch: int = 4) -> None:
        super().__init__()
        for k in range(4):
            self.add_module(f"conv{k + 1}", nn.Conv2d(num_feat + k * num_grow_ch, num_grow_ch, 3, 1, 1))
        self.conv5 = nn.Conv2d(num_feat + 4 * num_grow_ch, num_feat, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        x5 = self.conv5(torch.cat((x, x1, x2, x3, x4), 1))
        return x5 * 0.2 + x


class OldDenseBlock(nn.Module):
    """As the first ESRGAN has it: ``conv1.0`` ... ``conv5.0``."""

    def __init__(self, nc: int = 8, gc: int = 4) -> None:
        super().__init__()
        for k in range(4):
            layers = nn.Conv2d(nc + k * gc, gc, 3, 1, 1), nn.LeakyReLU(0.2, inplace=True)
            self.add_module(f"conv{k + 1}", nn.Sequential(*layers))
        self.conv5 = nn.Sequential(nn.Conv2d(nc + 4 * gc, nc, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.conv1(x)
        x2 = self.conv2(torch.cat((x, x1), 1))
        x3 = self.conv3(torch.cat((x, x1, x2), 1))
        x4 = self.conv4(torch.cat((x, x1, x2, x3), 1))
        x5 = self.conv5(torch.cat((x, x1, x2, x3, x4), 1))
        return x5.mul(0.2) + x


class RRDB(nn.Module):
    def __init__(self, block: Callable[[], nn.Module], name: str) -> None:
        super().__init__()
        for k in (1, 2, 3):
            self.add_module(f"{name}{k}", block())

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for block in self.children():
            out = block(out)
        return out * 0.2 + x


class SRVGGNetCompact(nn.Module):
    """As BasicSR has it: one list of convolutions and activations, iterated by hand."""

    def __init__(self, act_type: str = "prelu", num_feat: int = 8, num_conv: int = 2, upscale: int = 2) -> None:
        super().__init__()
        self.upscale = upscale
        self.body = nn.ModuleList()
        self.body.append(nn.Conv2d(3, num_feat, 3, 1, 1))
        self.body.append(self._activation(act_type, num_feat))
        for _ in range(num_conv):
            self.body.append(nn.Conv2d(num_feat, num_feat, 3, 1, 1))
            self.body.append(self._activation(act_type, num_feat))
        self.body.append(nn.Conv2d(num_feat, 3 * upscale * upscale, 3, 1, 1))
        self.upsampler = nn.PixelShuffle(upscale)

    @staticmethod
    def _activation(act_type: str, num_feat: int) -> nn.Module:
        if act_type == "relu":
            return nn.ReLU(inplace=True)
        if act_type == "prelu":
            return nn.PReLU(num_parameters=num_feat)
        return nn.LeakyReLU(negative_slope=0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(0, len(self.body)):
            out = self.body[i](out)
        out = self.upsampler(out)
        out += nn.functional.interpolate(x, scale_factor=self.upscale, mode="nearest")
        return out


class VGGFeatureExtractor(nn.Module):
    """As BasicSR has it, with fewer channels: layers iterated by hand, copies kept of those that are asked for."""

    def __init__(self, layer_name_list: list[str], use_input_norm: bool = True, range_norm: bool = False) -> None:
        super().__init__()
        self.layer_name_list = layer_name_list
        self.use_input_norm = use_input_norm
        self.range_norm = range_norm
        layers: dict[str, nn.Module] = {}
        channels = 3
        for stage in (1, 2):
            for k in (1, 2):
                layers[f"conv{stage}_{k}"] = nn.Conv2d(channels, 4 * stage, 3, padding=1)
                layers[f"relu{stage}_{k}"] = nn.ReLU(inplace=True)
                channels = 4 * stage
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        self.vgg_net = nn.Sequential(OrderedDict(layers))
        if use_input_norm:
            self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.range_norm:
            x = (x + 1) / 2
        if self.use_input_norm:
            x = (x - self.mean) / self.std
        output = {}
        for key, layer in self.vgg_net._modules.items():
            x = layer(x)
            if key in self.layer_name_list:
                output[key] = x.clone()
        return output


class Impostor(ResidualBlockNoBN):
    """The children of a residual block, another formula."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(super().forward(x))


def _network(*blocks: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *blocks, nn.Conv2d(8, 3, 3, 1, 1))


BLOCKS: list[Callable[[], nn.Module]] = [ResidualBlockNoBN, ResBlock, ResBlockCRC, PReLUBlock]


def _loss_and_gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    y = net(x)
    loss = (y * y).sum()
    return [y.detach(), *torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad])]


def _assert_same(net: nn.Module, other: nn.Module) -> None:
    x = random((2, 3, 9, 10), torch.float32, 0)
    expected = _loss_and_gradients(net, x)
    for backend in (None, "native") if why_not("native", x.device, x.dtype) is None else (None,):
        with srkernels.use_backend(backend):
            found = _loss_and_gradients(other, x)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.__name__)
def test_known_blocks(block: Callable[[], nn.Module]) -> None:
    net = _network(block(), block())
    original = copy.deepcopy(net)
    before = copy.deepcopy(net.state_dict())
    report = patch(net)
    assert [(line.path, line.op) for line in report.taken] == [("1", "residual_block"), ("2", "residual_block")]
    assert list(net.state_dict()) == list(before)
    net.load_state_dict(before, strict=True)
    original.load_state_dict(net.state_dict(), strict=True)
    assert isinstance(net[1], block)
    assert repr(net) == repr(original)
    _assert_same(original, net)
    assert not patch(net).taken
    assert unpatch(net) == 2
    assert type(net[1]) is block
    assert net[1].__dict__.keys() == original[1].__dict__.keys()
    _assert_same(original, net)


@pytest.mark.parametrize(
    ("block", "name", "key"),
    [
        (ResidualDenseBlock, "rdb", "1.rdb3.conv5.weight"),
        (ResidualDenseBlock, "RDB", "1.RDB1.conv1.bias"),
        (OldDenseBlock, "RDB", "1.RDB2.conv4.0.weight"),
    ],
    ids=["BasicSR", "RRDB_trunk", "model.1.sub"],
)
def test_dense_blocks_of_every_family_of_keys(block: Callable[[], nn.Module], name: str, key: str) -> None:
    net = _network(RRDB(block, name))
    original = copy.deepcopy(net)
    assert key in net.state_dict()
    report = patch(net)
    assert [(line.path, line.op) for line in report.taken] == [(f"1.{name}{k}", "dense_block") for k in (1, 2, 3)]
    net.load_state_dict(original.state_dict(), strict=True)
    original.load_state_dict(net.state_dict(), strict=True)
    _assert_same(original, net)
    assert unpatch(net) == 3
    _assert_same(original, net)


def test_copies_stay_patched() -> None:
    net = _network(ResidualBlockNoBN(res_scale=0.1), PReLUBlock())
    patch(net)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(buffer, weights_only=False)):
        _assert_same(net, other)
        assert other[1].conv1 is not net[1].conv1
        with torch.no_grad():  # a copy computes with its own parameters
            other[1].conv1.weight.zero_()
        x = random((1, 3, 8, 8), torch.float32, 1)
        assert not torch.equal(other(x), net(x))
        assert unpatch(other) == 2


def test_exponential_moving_average() -> None:
    net = _network(ResidualBlockNoBN())
    patch(net)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x = random((2, 3, 8, 8), torch.float32, 0)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        average.update_parameters(net)
    assert torch.isfinite(average(x)).all()
    assert not torch.equal(average(x), net(x))


def test_compiles_in_one_graph() -> None:
    net = _network(ResidualBlockNoBN(), PReLUBlock())
    expected = copy.deepcopy(net)
    patch(net)
    _assert_same(expected, torch.compile(net, fullgraph=True, backend="aot_eager"))


def test_requires_grad_may_be_toggled() -> None:
    """As GAN loops freeze a discriminator for the generator's step."""
    net, x = _network(ResidualBlockNoBN()), random((2, 3, 8, 8), torch.float32, 0).requires_grad_()
    patch(net)
    net.requires_grad_(False)
    (frozen,) = torch.autograd.grad(net(x).sum(), x)
    net.requires_grad_(True)
    grads = torch.autograd.grad(net(x).sum(), [x, *net.parameters()])
    torch.testing.assert_close(grads[0], frozen)
    assert all(g.any() for g in grads)


@pytest.mark.parametrize(
    ("block", "part"),
    [(ResidualBlockNoBN, "conv1"), (ResidualBlockNoBN, "relu"), (ResBlock, "body"), (ResidualDenseBlock, "conv5")],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_a_hook_inside_sees_its_call(block: Callable[[], nn.Module], part: str) -> None:
    net, seen = _network(block()), []
    assert patch(net).taken
    handle = net[1].get_submodule(part).register_forward_hook(lambda module, args, out: seen.append(out.shape))
    x = random((1, 3, 8, 8), torch.float32, 0)
    hooked = net(x)
    assert len(seen) == 1
    handle.remove()
    torch.testing.assert_close(net(x), hooked)
    assert len(seen) == 1


def test_spectral_norm_keeps_working() -> None:
    block = ResidualBlockNoBN()
    block.conv1 = spectral_norm(block.conv1)
    net = _network(block)
    report = patch(net)
    assert not report.taken or net(random((1, 3, 8, 8), torch.float32, 0)).isfinite().all()
    before = net[1].conv1.weight_u.clone()
    net(random((1, 3, 8, 8), torch.float32, 0))
    assert not torch.equal(net[1].conv1.weight_u, before), "the power iteration runs in every forward"


class DroppingBlock(ResidualBlockNoBN):
    """A residual block in evaluation mode only."""

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.dropout(self.conv2(self.relu(self.conv1(x))), 0.5, self.training)


def test_a_block_is_proven_in_both_modes() -> None:
    for training in (True, False):
        assert not patch(_network(DroppingBlock()).train(training)).taken


def test_what_is_not_known_is_left_and_said() -> None:
    bigger = ResidualBlockNoBN()
    bigger.conv2 = nn.Conv2d(8, 8, 5, padding=2)
    gelu = ResidualBlockNoBN()
    gelu.relu = nn.GELU()
    reflect = ResidualBlockNoBN()
    reflect.conv1 = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
    net = _network(Impostor(), bigger, gelu, reflect)
    before = {name: type(m) for name, m in net.named_modules()}
    x = random((1, 3, 8, 8), torch.float32, 0)
    expected = net(x)
    report = patch(net)
    assert not report.taken
    assert {name: type(m) for name, m in net.named_modules()} == before
    assert torch.equal(net(x), expected)
    reasons = {line.path: line.note for line in report.left}
    assert reasons["1"] == "looks like a known block but computes something else"
    assert reasons["2"] == "a 5x5 convolution"
    assert "GELU" in reasons["3"]
    assert "padding" in reasons["4"]
    assert reasons["0"] == "followed by Impostor"
    table = str(report)
    assert "0 taken" in table
    assert "left  " in table


def test_sequences_of_convolution_and_activation() -> None:
    """VGG, tapped by a hook before the ReLU, and a discriminator's leaky ReLUs."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(inplace=True),
    ]
    net = nn.Sequential(*layers, nn.MaxPool2d(4), nn.Conv2d(8, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 1))
    original = copy.deepcopy(net)
    (line,) = patch(net).taken
    assert line.op == "conv2d_act"
    assert line.note.startswith("3 convolutions")
    assert list(net.state_dict()) == list(original.state_dict())
    _assert_same(original, net)
    tapped: list[Tensor] = []
    net[2].register_forward_hook(lambda module, args, out: tapped.append(out.clone()))
    _assert_same(original, net)
    assert (tapped[0] < 0).any(), "the tap is before the ReLU"


@pytest.mark.parametrize("act_type", ["relu", "prelu", "leakyrelu"])
def test_compact_network(act_type: str) -> None:
    torch.manual_seed(0)
    net = SRVGGNetCompact(act_type)
    original = copy.deepcopy(net)
    (line,) = patch(net).taken
    assert (line.path, line.op) == ("", "conv2d_act")
    assert line.note.startswith("3 convolutions")
    net.load_state_dict(original.state_dict(), strict=True)
    _assert_same(original, net)
    assert unpatch(net) == 1
    _assert_same(original, net)


def test_a_compact_network_of_another_formula_is_left() -> None:
    class NoSkip(SRVGGNetCompact):
        def forward(self, x: Tensor) -> Tensor:
            out = x
            for layer in self.body:
                out = layer(out)
            return self.upsampler(out)

    (line,) = (line for line in patch(NoSkip()).left if line.path == "")
    assert line.note == "looks like a known block but computes something else"


@pytest.mark.parametrize("range_norm", [False, True])
def test_features_tapped_before_and_after_the_activation(range_norm: bool) -> None:
    torch.manual_seed(0)
    names = ["conv1_2", "relu2_1", "conv2_2"]
    net = VGGFeatureExtractor(names, range_norm=range_norm)
    original = copy.deepcopy(net)
    (line,) = patch(net).taken
    assert line.op == "conv2d_act"
    x = random((2, 3, 12, 10), torch.float32, 0)
    for layers in (names, ["relu1_1", "pool1", "conv2_2"], ["pool2"]):  # the list may change later
        net.layer_name_list = original.layer_name_list = layers
        found, expected = net(x), original(x)
        assert list(found) == list(expected) == layers
        for name in layers:
            torch.testing.assert_close(found[name], expected[name])


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        srkernels.patch(3)  # type: ignore[arg-type]
