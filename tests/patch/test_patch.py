"""``patch`` on networks as published code bases write them: what it takes, what it leaves and why; no key changes."""

from __future__ import annotations

import copy
import io
import pickle
import random as python_random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from helpers.calls import recorded
from helpers.networks import (
    EDSR,
    RRDB,
    PReLUBlock,
    ResBlock,
    ResBlockCRC,
    ResidualBlockNoBN,
    ResidualDenseBlock,
    SRVGGNetCompact,
    VGGFeatureExtractor,
    old_esrgan,
)
from helpers.operands import random
from helpers.patching import assert_same_calls, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from srkernels import patch, unpatch, use_backend
from srkernels._dispatch import why_not
from srkernels._meter import saved_bytes

pytestmark = pytest.mark.usefixtures("one_thread")


def conv(channels: int = 8, out: int = 8, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out, **{"kernel_size": 3, "padding": 1, **settings})


def network(*blocks: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(3), *blocks, conv(out=3))


class Recursion(nn.Sequential):
    """One convolution and one activation, repeated, and an attribute that nobody reads."""

    def __init__(self) -> None:
        super().__init__(conv(3), *[conv(), nn.PReLU(8)] * 3, conv(out=3))
        self.depth = 3


class SharedLayers(nn.Module):
    """A residual block of one convolution, which a second place calls too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = conv(3), conv()
        self.block = ResidualBlockNoBN()
        self.block.conv1 = self.block.conv2 = self.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(self.conv(self.first(x))))


class InPlaceSum(ResidualBlockNoBN):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.relu(self.conv1(x))) * self.res_scale
        y += x
        return y


def vgg() -> nn.Sequential:
    """VGG's layers, and a discriminator's: batch norm, stride, in-place dropout after an activation."""
    layers = [conv(3), nn.ReLU(True), conv(), nn.ReLU(True), nn.MaxPool2d(4), conv(), nn.BatchNorm2d(8)]
    layers += [nn.LeakyReLU(0.2), conv(), nn.LeakyReLU(0.2), conv(stride=2), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, conv(), nn.LeakyReLU(0.2), nn.Dropout(0.5, inplace=True), conv())


def parametrised() -> nn.Module:
    block = ResidualBlockNoBN()
    parametrizations.spectral_norm(block.conv1)
    return network(block)


BLOCK, DENSE, CHAIN = "residual_block", "dense_block", "conv2d_act"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "ResidualBlockNoBN": (lambda: network(ResidualBlockNoBN(), ResidualBlockNoBN()), {"1": BLOCK, "2": BLOCK}),
    "ResBlock": (lambda: network(ResBlock(), ResBlock()), {"1": BLOCK, "2": BLOCK}),
    "ResBlockCRC": (lambda: network(ResBlockCRC()), {"1": BLOCK}),
    "PReLUBlock": (lambda: network(PReLUBlock()), {"1": BLOCK}),
    "in-place sum": (lambda: network(InPlaceSum()), {"1": BLOCK}),
    "parametrised": (parametrised, {"1": BLOCK}),
    "EDSR": (EDSR, {"body.0": BLOCK, "body.1": BLOCK}),
    "dense, rdb": (lambda: network(RRDB(ResidualDenseBlock, "rdb")), {f"1.rdb{k}": DENSE for k in (1, 2, 3)}),
    "dense, RDB": (lambda: network(RRDB(ResidualDenseBlock, "RDB")), {f"1.RDB{k}": DENSE for k in (1, 2, 3)}),
    "old ESRGAN": (old_esrgan, {"": CHAIN, **{f"1.sub.0.RDB{k}": DENSE for k in (1, 2, 3)}}),
    "VGG": (vgg, {"": CHAIN}),
    "recursion": (Recursion, {"": CHAIN}),
    "shared layers": (SharedLayers, {"block": BLOCK}),
    "one activation": (lambda: nn.Sequential(conv(3), act := nn.ReLU(), conv(), act, conv()), {"": CHAIN}),
    **{
        f"compact, {act}": (lambda act=act: SRVGGNetCompact(act), {"": CHAIN})  # type: ignore[misc]
        for act in ("relu", "prelu", "leakyrelu")
    },
    **{
        f"features, range_norm={on}": (
            lambda on=on: VGGFeatureExtractor(["conv1_2", "relu2_1", "conv2_2"], range_norm=on),  # type: ignore[misc]
            {"": CHAIN},
        )
        for on in (False, True)
    },
}


OTHER_FILTERS: dict[str, dict[str, Any]] = {
    "stride": {"stride": 2},
    "stride in one direction": {"stride": (1, 2)},
    "dilation": {"dilation": 2},
    "groups": {"groups": 4},
    "depthwise": {"groups": 8},
    "no padding": {"padding": 0},
    "padding mode": {"padding_mode": "reflect"},
    "padding of one side": {"kernel_size": 4, "padding": "same"},
    "padding mode of one side": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    "1x1": {"kernel_size": 1, "padding": 0},
    "discriminator": {"kernel_size": 4, "stride": 2},
}


@pytest.mark.parametrize("case", OTHER_FILTERS)
def test_other_filters(case: str) -> None:
    """The first activation works in place, and nothing follows the second."""
    torch.manual_seed(0)
    layers = [conv(3), nn.LeakyReLU(0.2, True), conv(**OTHER_FILTERS[case]), nn.LeakyReLU(0.2, True)]
    net = nn.Sequential(*layers).double()
    original = copy.deepcopy(net)
    report = patch(net)
    assert [line.op for line in report.taken] == [CHAIN] and not report.left
    with use_backend("reference"), recorded() as calls:
        net(image())
    # Where PyTorch pads one side alone in another mode, its own forward runs.
    assert len(calls) == (1 if case == "padding mode of one side" else 2)
    for network in (original, net):  # whose weight changes with each reading, of which there may be one
        parametrizations.spectral_norm(network[2])
    net[2].load_state_dict(original[2].state_dict())
    for backend in (None, "reference", "native"):
        if backend is None or why_not(backend, torch.device("cpu"), torch.float64) is None:
            with use_backend(backend):
                assert_same_calls(original, net, image())


@pytest.fixture(params=NETWORKS, ids=str)
def taken(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, str]]:
    make, lines = NETWORKS[request.param]
    torch.manual_seed(0)
    return make().double(), lines


def image(dtype: torch.dtype = torch.float64) -> Tensor:
    return random((2, 3, 8, 12), dtype, 0)


def test_networks(taken: tuple[nn.Module, dict[str, str]]) -> None:
    net, lines = taken
    original = copy.deepcopy(net)
    report = patch(net)
    assert {line.path: line.op for line in report.taken} == lines
    assert len({line.path for line in report.lines}) == len(report.lines)
    assert repr(net) == repr(original)
    assert list(net.state_dict()) == list(original.state_dict())
    net.load_state_dict(original.state_dict(), strict=True)
    for backend in (None, "native") if why_not("native", torch.device("cpu"), torch.float64) is None else (None,):
        with use_backend(backend):
            assert_same_calls(original, net, image())
    assert not patch(net).taken
    assert unpatch(net) == len(lines)
    assert [type(m) for m in net.modules()] == [type(m) for m in original.modules()]
    assert [vars(m).keys() for m in net.modules()] == [vars(m).keys() for m in original.modules()]


def test_copies_stay_patched(taken: tuple[nn.Module, dict[str, str]]) -> None:
    net, lines = taken
    patch(net)
    ways = [copy.deepcopy]
    if not any(map(parametrize.is_parametrized, net.modules())):  # which PyTorch does not pickle
        ways += [lambda net: pickle.loads(pickle.dumps(net)), _saved_and_loaded]
    for way in ways:
        other = way(net)
        assert_same_calls(net, other, image())
        with torch.no_grad():  # a copy computes with its own parameters
            for p in other.parameters():
                p.zero_()
        assert any(p.any() for p in net.parameters())
        assert unpatch(other) == len(lines)


def _saved_and_loaded(net: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("name", ["ResBlock", "dense, rdb", "compact, prelu", "features, range_norm=False", "VGG"])
def test_compiles_in_one_graph(name: str) -> None:
    net = NETWORKS[name][0]().double()
    original = copy.deepcopy(net).eval()
    patch(net.eval())
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    with torch.no_grad():
        found = torch.compile(net, fullgraph=True, backend=backend)(image())
        torch.testing.assert_close(found, original(image()))
    assert len(graphs) == 1
    assert "srkernels" not in str(graphs[0].graph)  # the formula, where no kernel of ours is faster: test_compile


def test_nothing_but_the_class_is_touched(taken: tuple[nn.Module, dict[str, str]]) -> None:
    net, _ = taken
    net.train()
    next(net.children()).eval()
    parameters = list(net.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    tensors = [t.clone() for t in net.state_dict().values()]
    modes = [m.training for m in net.modules()]
    states = torch.get_rng_state(), python_random.getstate(), numpy.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    patch(net)
    assert all(map(torch.equal, tensors, net.state_dict().values()))
    assert modes == [m.training for m in net.modules()]
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * (len(parameters) - 1)
    assert [p.grad is None for p in net.parameters()] == [True] * (len(parameters) - 1) + [False]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (python_random.getstate(), numpy.random.get_state()[1].tolist())  # type: ignore[index,union-attr]


@pytest.mark.skipif(
    why_not("native", torch.device("cpu"), torch.float32) is not None,
    reason="without the native core the automatic choice is eager PyTorch, whose autograd decides what it keeps",
)
@pytest.mark.parametrize("block", [ResidualBlockNoBN, ResidualDenseBlock], ids=lambda b: b.__name__)
def test_what_the_backward_pass_finds(block: Callable[[], nn.Module]) -> None:
    x = random((4, 8, 16, 16), torch.float32, 0).requires_grad_()

    def kept(save: str) -> int:
        module = block()
        assert patch(module, save=save).taken
        with use_backend("native"):
            return saved_bytes(lambda: module(x), module.parameters())

    assert kept("recompute") == x.nbytes
    assert kept("activations") > x.nbytes


class Impostor(ResidualBlockNoBN):
    """The children of a residual block, but another formula."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(super().forward(x))


class Dropping(ResidualBlockNoBN):
    """A residual block in evaluation mode only."""

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.dropout(self.conv2(self.relu(self.conv1(x))), 0.5, self.training)


class Surviving(ResidualBlockNoBN):
    """Stochastic depth: a generator drops the branch one time in ten."""

    draw: Callable[[], float]

    def forward(self, x: Tensor) -> Tensor:
        return x if self.draw() > 0.9 else super().forward(x)


class SurvivingTorch(Surviving):
    def draw(self) -> float:
        return float(torch.rand(()))


class SurvivingPython(Surviving):
    def draw(self) -> float:
        return python_random.random()


class SurvivingNumpy(Surviving):
    def draw(self) -> float:
        return float(numpy.random.rand())


class Counting(ResidualBlockNoBN):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


_calls = [0]


class Alternating(ResidualBlockNoBN):
    def forward(self, x: Tensor) -> Tensor:
        _calls[0] += 1
        return super().forward(x) * (_calls[0] % 2)


class FixedScale(ResidualBlockNoBN):
    """Does not read its ``res_scale``."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x)))


class Gated(ResidualBlockNoBN):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gate", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate * self.conv2(self.relu(self.conv1(x)))


class Precise(ResidualBlockNoBN):
    """Leaves autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


class Fixed(ResidualBlockNoBN):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Saturating(ResidualBlockNoBN):
    """An activation that is a ReLU for small values."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(nn.functional.relu6(self.conv1(x))) * self.res_scale


class Clamped(ResidualBlockNoBN):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-255, 255)


class Flagged(ResidualBlockNoBN):
    """Does something else until a flag is set."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("warm", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.warm > 0.25 else x


class NoSkip(SRVGGNetCompact):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x)
        return self.upsampler(x)


def changed(block: nn.Module, **layers: Any) -> nn.Module:
    for name, layer in layers.items():
        setattr(block, name, layer)
    return block


OTHER = "looks like a known block but computes something else"
LEFT: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "another formula": (Impostor, "", OTHER),
    "in a model": (lambda: EDSR(), "conv_first", "part of EDSR, whose own forward matches no known block"),
    "a known block's convolution": (Impostor, "conv1", "part of Impostor, whose own forward matches no known block"),
    "no skip": (NoSkip, "", OTHER),
    "dropout": (Dropping, "", "looks like a known block but draws random numbers"),
    "random, torch": (SurvivingTorch, "", "looks like a known block but draws random numbers"),
    "random, Python": (SurvivingPython, "", "looks like a known block but draws random numbers"),
    "random, NumPy": (SurvivingNumpy, "", "looks like a known block but draws random numbers"),
    "counting": (Counting, "", "its forward sets attributes"),
    "alternating": (Alternating, "", "its forward does not repeat itself"),
    "fixed scale": (FixedScale, "", OTHER),
    "a buffer that is 1": (Gated, "", OTHER),
    "relu6": (Saturating, "", OTHER),
    "clamped": (Clamped, "", OTHER),
    "a flag": (Flagged, "", OTHER),
    "leaves autocast": (Precise, "", "looks like a known block but leaves autocast"),
    "no gradient": (Fixed, "", "returns a tensor without gradient"),
    "a tensor": (
        lambda: changed(ResidualBlockNoBN(), mask=torch.ones(())),
        "",
        "keeps an object that may change (mask)",
    ),
    "settings": (
        lambda: changed(ResidualBlockNoBN(), args=SimpleNamespace(res_scale=1)),
        "",
        "keeps an object that may change (args)",
    ),
    "its own forward": (
        lambda: changed(ResidualBlockNoBN(), forward=lambda x: x),
        "",
        "its forward was replaced on the object",
    ),
    "5x5": (lambda: changed(ResidualBlockNoBN(), conv2=conv(kernel_size=5, padding=2)), "", "a 5x5 convolution"),
    "GELU": (lambda: changed(ResidualBlockNoBN(), relu=nn.GELU()), "", "two convolutions and GELU"),
    "norm": (lambda: changed(ResidualBlockNoBN(), n=nn.BatchNorm2d(8)), "", "two convolutions and BatchNorm2d"),
    "channels": (
        lambda: changed(ResidualBlockNoBN(), conv2=conv(out=4)),
        "",
        "two convolutions whose channels do not lead back to the input's",
    ),
    "slopes": (
        lambda: changed(ResidualDenseBlock(), lrelu=nn.LeakyReLU(-0.2)),
        "",
        "five dense convolutions with different or negative slopes",
    ),
    "norm after": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU()), "0", "followed by BatchNorm2d"),
    "norm itself": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(8)), "1", "no op computes BatchNorm2d"),
    "SiLU after": (lambda: nn.Sequential(conv(), nn.SiLU()), "0", "followed by SiLU"),
    "nothing after": (lambda: nn.Sequential(conv(), nn.ReLU(), conv()), "2", "no activation after it"),
    "written to": (
        lambda: nn.Sequential(conv(), nn.LeakyReLU(), nn.Dropout(0.5, True)),
        "0",
        "followed by LeakyReLU, whose output may be written to",
    ),
    "spectral norm": (
        lambda: nn.Sequential(spectral_norm(conv()), nn.ReLU()),
        "0",
        "a convolution with a hook (SpectralNorm)",
    ),
    "alone": (conv, "", "a convolution alone"),
    "meta": (
        lambda: nn.Sequential(conv(device="meta"), nn.ReLU()),
        "",
        "on the meta device: patch it once it has values",
    ),
    "meta block": (lambda: ResidualBlockNoBN().to("meta"), "", "on the meta device: patch it once it has values"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(8, 3, padding=1), nn.ReLU()),
        "0",
        "not initialised: patch it after its first forward",
    ),
    "no size that fits": (
        lambda: nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(7, 1)),
        "",
        "its forward does not run on one image tensor: mat1 and mat2 shapes cannot be multiplied (1x131072 and 7x1)",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_is_said_why(case: str) -> None:
    make, path, reason = LEFT[case]
    net = make()
    report = patch(net)
    assert {line.path: line.note for line in report.left}[path] == reason
    assert path not in {line.path for line in report.taken}
    assert f"{len(report.taken)} taken, {len(report.left)} left" in str(report)


def test_one_size_only() -> None:
    """A discriminator with a linear layer takes images of one size."""
    torch.manual_seed(0)
    layers = [conv(3), nn.ReLU(), nn.MaxPool2d(8), conv(), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 1)]
    assert [line.path for line in patch(nn.Sequential(*layers)).taken] == [""]


def test_spectral_norm_keeps_working() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(spectral_norm(conv(3)), nn.ReLU(), conv(), nn.ReLU(), weight_norm(conv()), nn.ReLU()).double()
    net(image()).sum().backward()  # a weight that is not a leaf cannot be copied the usual way
    report = patch(net)
    assert [line.note.split(" with")[0] for line in report.taken] == ["convolution"]
    before = net[0].weight_u.clone()
    net(image())
    assert not torch.equal(net[0].weight_u, before), "the power iteration runs in every forward"


def test_exponential_moving_average() -> None:
    net = network(ResidualBlockNoBN())
    patch(net)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x = image(torch.float32)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        average.update_parameters(net)
    assert torch.isfinite(average(x)).all()
    assert not torch.equal(average(x), net(x))


def test_arguments() -> None:
    for value, name in ((3, "int"), (None, "NoneType")):
        for function in (patch, unpatch):
            expected = rf"^{function.__name__}: model must be a torch\.nn\.Module, got {name}$"
            with pytest.raises(TypeError, match=expected):
                function(value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^patch: save must be one of activations, recompute, got 'nothing'$"):
        patch(ResidualBlockNoBN(), save="nothing")


def test_a_pickle_of_another_class_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source was edited between saving and loading: the new forward runs."""
    net = network(ResidualBlockNoBN())
    assert patch(net).taken
    saved = pickle.dumps(net)
    monkeypatch.setattr(ResidualBlockNoBN, "forward", lambda self, x: x - self.conv2(self.relu(self.conv1(x))))
    x = random((1, 3, 8, 8), torch.float32, 0)
    loaded = pickle.loads(saved)
    inside = loaded[0](x)
    expected = loaded[2](inside - loaded[1].conv2(loaded[1].relu(loaded[1].conv1(inside))))
    torch.testing.assert_close(loaded(x), expected)


def test_a_second_call_takes_what_is_new() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU())
    assert patch(net).taken
    net.append(ResidualBlockNoBN())
    assert [(line.path, line.op) for line in patch(net).taken] == [("4", "residual_block")]


@pytest.mark.parametrize("slope", [True, numpy.float32(0.25)], ids=repr)
def test_slopes_that_are_numbers_of_another_kind(slope: Any) -> None:
    net, x = nn.Sequential(conv(3), nn.LeakyReLU(slope, True), conv()), random((1, 3, 8, 8), torch.float32, 0)
    expected = net(x)
    assert patch(net).taken
    torch.testing.assert_close(net(x), expected)
