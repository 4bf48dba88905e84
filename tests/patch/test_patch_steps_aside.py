"""A patched network that was edited since, is called in an unusual way, or is being observed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from helpers.networks import (
    OldDenseBlock,
    PReLUBlock,
    ResBlock,
    ResidualBlockNoBN,
    ResidualDenseBlock,
    SRVGGNetCompact,
    VGGFeatureExtractor,
)
from helpers.operands import random
from helpers.patching import assert_same_calls, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils import parametrizations

from srkernels import patch, unpatch

pytestmark = pytest.mark.usefixtures("one_thread")


class Doubling(nn.Conv2d):
    """Like an adapter: a convolution with another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Standardised(nn.Conv2d):
    """``nn.Conv2d``'s forward, another convolution inside."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


def conv(channels: int = 8, out: int = 8, **settings: Any) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(channels, out, **{"kernel_size": 3, "padding": 1, **settings}).double()


def chain() -> nn.Sequential:
    return nn.Sequential(conv(3), nn.ReLU(), conv(), nn.LeakyReLU(0.2), conv(), nn.PReLU(), conv())


def reflecting() -> nn.Sequential:
    return nn.Sequential(conv(3, padding_mode="reflect"), nn.ReLU(), conv())


def image() -> Tensor:
    return random((2, 3, 8, 12), torch.float64, 0)


def around(block: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(conv(3), block())


def set_to(path: str, value: Any) -> Callable[[nn.Module], None]:
    """Replace a module or another attribute; a callable makes it."""

    def edit(net: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        setattr(net.get_submodule(owner), name, value() if callable(value) else value)

    return edit


def halved(path: str) -> Callable[[nn.Module], None]:
    def edit(net: nn.Module) -> None:
        module = net.get_submodule(path)
        old = module.forward
        module.forward = lambda x: old(x) / 2

    return edit


def hooked(path: str) -> Callable[[nn.Module], None]:
    return lambda net: net.get_submodule(path).register_forward_hook(lambda module, args, out: out * 2) and None


def without(path: str) -> Callable[[nn.Module], None]:
    def edit(net: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        del net.get_submodule(owner)[int(name)]  # type: ignore[operator]

    return edit


Edit = Callable[[nn.Module], Any]
RESIDUAL, BODY, PRELU = around(ResidualBlockNoBN), around(ResBlock), around(PReLUBlock)
DENSE, OLD_DENSE = around(ResidualDenseBlock), around(OldDenseBlock)
EDITS: dict[str, tuple[Callable[[], nn.Module], Edit]] = {
    "another class of convolution": (chain, set_to("0", lambda: Doubling(3, 8, 3, padding=1).double())),
    "another convolution inside": (chain, set_to("0", lambda: Standardised(3, 8, 3, padding=1).double())),
    "stride": (chain, set_to("2", lambda: conv(stride=2))),
    "stride, edited": (chain, set_to("2.stride", (2, 2))),
    "stride, edited to a number": (chain, set_to("2.stride", 2)),
    "padding mode, edited": (chain, set_to("2.padding_mode", "reflect")),
    "padding of a mode, edited": (reflecting, set_to("0.padding", (2, 2))),
    "another activation": (chain, set_to("1", nn.GELU)),
    "no activation": (chain, set_to("3", nn.Identity)),
    "appended": (chain, lambda net: net.append(nn.ReLU())),
    "inserted": (chain, lambda net: net.insert(1, nn.Tanh())),
    "deleted": (chain, without("1")),
    "slope": (chain, set_to("3.negative_slope", 0.4)),
    "negative slope": (chain, set_to("3.negative_slope", -0.4)),
    "weight of another size": (chain, set_to("0.weight", lambda: nn.Parameter(torch.rand(8, 3, 1, 1).double()))),
    "no bias": (chain, set_to("0.bias", None)),
    "parametrised": (chain, lambda net: parametrizations.weight_norm(net[0])),
    "forward of a convolution": (chain, halved("0")),
    "forward of an activation": (chain, halved("1")),
    "hook on a convolution": (chain, hooked("2")),
    "hook on an activation": (chain, hooked("3")),
    "hook on the whole": (chain, hooked("")),
    "res_scale": (RESIDUAL, set_to("1.res_scale", 0.3)),
    "res_scale, a tensor": (RESIDUAL, set_to("1.res_scale", lambda: torch.tensor(0.3).double())),
    "block's convolution": (RESIDUAL, set_to("1.conv2", lambda: Doubling(8, 8, 3, padding=1).double())),
    "block's forward": (RESIDUAL, halved("1")),
    "block's dilation": (RESIDUAL, set_to("1.conv1", lambda: conv(dilation=2, padding=2))),
    "block's activation": (RESIDUAL, set_to("1.relu", nn.SiLU)),
    "block's parametrised convolution": (RESIDUAL, lambda net: parametrizations.spectral_norm(net[1].conv1)),
    "wider": (
        RESIDUAL,
        lambda net: [set_to("1.conv1", lambda: conv(8, 4))(net), set_to("1.conv2", lambda: conv(4))(net)],
    ),
    "body appended": (BODY, lambda net: net[1].body.append(nn.Tanh())),
    "body's order": (BODY, lambda net: net[1].body.insert(0, net[1].body.pop(1))),
    "body's hook": (BODY, hooked("1.body")),
    "slopes, one": (PRELU, set_to("1.prelu", lambda: nn.PReLU(8).double())),
    "dense slope": (DENSE, set_to("1.lrelu.negative_slope", 0.05)),
    "dense slope below zero": (DENSE, set_to("1.lrelu.negative_slope", -0.05)),
    "dense convolution": (DENSE, set_to("1.conv3", lambda: conv(16, 4, padding_mode="reflect"))),
    "one slope of four": (OLD_DENSE, lambda net: set_to("1.conv2.1.negative_slope", 0.5)(net)),
    "compact activation": (SRVGGNetCompact, set_to("body.1", nn.Sigmoid)),
    "compact layers": (SRVGGNetCompact, lambda net: net.body.insert(1, nn.Tanh())),
    "compact attribute": (SRVGGNetCompact, set_to("upsampler", lambda: nn.Sequential(nn.PixelShuffle(2), nn.Tanh()))),
    "features asked for": (lambda: VGGFeatureExtractor(["relu1_1"]), lambda net: net.layer_name_list.append("conv2_2")),
    "features' norm": (lambda: VGGFeatureExtractor(["relu1_1"]), set_to("use_input_norm", False)),
}


@pytest.mark.parametrize("case", EDITS)
def test_edited_networks(case: str) -> None:
    make, edit = EDITS[case]
    torch.manual_seed(0)
    original = make().double()
    patched = copy.deepcopy(original)
    assert patch(patched).taken
    assert_same_calls(original, patched, image())
    for net in (original, patched):
        torch.manual_seed(2)
        edit(net)
    assert_same_calls(original, patched, image())
    unpatch(patched)
    assert_same_calls(original, patched, image())


class Later(nn.Module):
    """A residual block whose class changes after the patch."""

    strength = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(), conv()

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.conv1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * self.strength


@pytest.mark.parametrize(
    ("name", "value"),
    [("forward", lambda self, x: x - self.branch(x)), ("branch", lambda self, x: self.conv1(x)), ("strength", 0.5)],
    ids=["forward", "method", "attribute"],
)
@pytest.mark.parametrize("of_the_class", [True, False], ids=["class", "object"])
def test_an_edited_class(name: str, value: Any, of_the_class: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = Later(), random((1, 8, 9, 9), torch.float64, 0)
    assert patch(block).taken
    before = block(x)
    bound = value if of_the_class or not callable(value) else value.__get__(block)
    monkeypatch.setattr(Later if of_the_class else block, name, bound)
    found = block(x)
    unpatch(block)
    torch.testing.assert_close(found, block(x))
    assert not torch.allclose(found, before)


def test_slices_and_others_of_the_class() -> None:
    original = chain().double()
    patched = copy.deepcopy(original)
    patch(patched)
    for take in (
        lambda net: net[:2],
        lambda net: net[1:],
        lambda net: type(net)(conv(3), nn.ReLU()),
        lambda net: net + nn.Sequential(nn.Tanh()),
    ):
        mine, theirs = take(patched), take(original)
        x = random((1, mine[0].in_channels if isinstance(mine[0], nn.Conv2d) else 8, 9, 9), torch.float64, 0)
        torch.testing.assert_close(mine(x), theirs(x))
    assert patch(patched[:2]).taken, "a slice can be patched for itself"
    assert unpatch(patched[:2]) == 0


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_hook_on_all_modules_sees_every_call(kind: str) -> None:
    net, seen = around(PReLUBlock)().double(), []
    assert patch(net).taken
    handle = getattr(hooks, f"register_module_{kind}_hook")(lambda module, *rest: seen.append(type(module).__name__))
    try:
        net(image().requires_grad_()).sum().backward()
    finally:
        handle.remove()
    assert seen.count("Conv2d") == 3


@pytest.mark.parametrize(
    ("block", "part"),
    [(ResidualBlockNoBN, "conv1"), (ResidualBlockNoBN, "relu"), (ResBlock, "body"), (ResidualDenseBlock, "conv5")],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_a_hook_inside_sees_its_call(block: Callable[[], nn.Module], part: str) -> None:
    net, seen = around(block)().double(), []
    assert patch(net).taken
    handle = net[1].get_submodule(part).register_forward_hook(lambda module, args, out: seen.append(out.shape))
    hooked = net(image())
    assert len(seen) == 1
    handle.remove()
    torch.testing.assert_close(net(image()), hooked)
    assert len(seen) == 1


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "one image": lambda net, x: net(x[0]),
    "keyword": lambda net, x: net(input=x),
    "no image": lambda net, x: net(x[:0]),
    "no rows": lambda net, x: net(x[:, :, :0]),
    "another dtype": lambda net, x: net(x.float()),
    "integers": lambda net, x: net(x.int()),
    "channels": lambda net, x: net(x[:, :2]),
    "two images": lambda net, x: net(x, x),
    "nested": lambda net, x: net(torch.nested.nested_tensor([x[0], x[1]])),
    "subclass": lambda net, x: net(x.as_subclass(Marked)),
    "meta": lambda net, x: net(x.to("meta")),
    "None": lambda net, x: net(None),
    "vmap": lambda net, x: torch.func.vmap(net)(x[None]),
    "jvp": lambda net, x: torch.func.jvp(net, (x,), (x,))[1],
    "compiled vmap": lambda net, x: torch.compile(torch.func.vmap(net), backend="eager")(x[None]),
    "grad": lambda net, x: torch.func.grad(lambda x: net(x).sum())(x),
    "forward mode": lambda net, x: _tangent(net, x),
    "inference": lambda net, x: _in(torch.inference_mode(), net, x),
    "float under autocast": lambda net, x: _in(torch.autocast("cpu", torch.bfloat16), net, x.float()),
}


class Marked(Tensor):
    pass


def _tangent(net: nn.Module, x: Tensor) -> Tensor:
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(net(forward_ad.make_dual(x, x))).tangent


def _in(context: AbstractContextManager[Any], net: nn.Module, x: Tensor) -> Tensor:
    with context:
        return net(x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "make", [chain, around(ResidualBlockNoBN), around(ResidualDenseBlock)], ids=["chain", "residual", "dense"]
)
def test_unusual_calls(make: Callable[[], nn.Module], call: str) -> None:
    """They work, or raise, as those of the original do."""
    torch.manual_seed(0)
    original = make().double()
    patched = copy.deepcopy(original)
    assert patch(patched).taken

    def result(net: nn.Module) -> Any:
        try:
            return CALLS[call](net, image())
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    expected, found = result(original), result(patched)
    assert type(expected) is type(found)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected)


def _scripted(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.jit.script(net)


def _traced(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.jit.trace(net, image())


def _symbolic(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.fx.symbolic_trace(net)


def _exported(strict: bool) -> Callable[[nn.Module], Callable[[Tensor], Tensor]]:
    return lambda net: torch.export.export(net, (image(),), strict=strict).module()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "tool",
    [_scripted, _traced, _symbolic, _exported(True), _exported(False)],
    ids=["script", "trace", "fx", "strict export", "export"],
)
@pytest.mark.parametrize(
    "make", [chain, around(ResidualBlockNoBN), around(ResBlock)], ids=["chain", "residual", "body"]
)
def test_tools_find_the_original(make: Callable[[], nn.Module], tool: Callable[[nn.Module], Any]) -> None:
    """What they make needs no srkernels where it runs."""
    torch.manual_seed(0)
    net = make().double()
    expected = net(image())
    assert patch(net).taken
    found = tool(net)
    torch.testing.assert_close(found(image()), expected)
    text = str(found.inlined_graph if hasattr(found, "inlined_graph") else found.graph)
    assert "srkernels" not in text
    torch.testing.assert_close(net(image()), expected)


@contextmanager
def _dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "gradients off": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "default float64": lambda: _dtype(torch.float64),
    "default bfloat16": lambda: _dtype(torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("built_inside", [False, True], ids=["built outside", "built inside"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_contexts(context: str, built_inside: bool, dtype: torch.dtype) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), ResBlock(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()).to(
            dtype
        )

    net = None if built_inside else make()
    with CONTEXTS[context]():
        net = net or make()
        report = patch(net)
    if built_inside and context == "default device":
        assert {line.note for line in report.left if not line.path} == {
            "on the meta device: patch it once it has values"
        }
        return
    assert [line.op for line in report.taken] == ["conv2d_act", "residual_block"]
    assert all(p.requires_grad and p.dtype is dtype for p in net.parameters())
    with torch.inference_mode():
        assert net(image().to(dtype)).isfinite().all()
