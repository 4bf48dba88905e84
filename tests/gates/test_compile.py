"""Under ``torch.compile`` the ops stay in one graph and give eager's bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from helpers.calls import Target, why_not
from helpers.marks import thorough
from helpers.operands import cotangents, operands, random
from helpers.process import python
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import srkernels
from srkernels import _op
from srkernels._parity import gradients, present, values
from srkernels._spec import OpSpec
from srkernels.ops.conv import support

# Dynamo and AOTAutograd decide whether a graph breaks, what a fake promises and how a backward pass is traced; they
# take a second. Inductor adds code generation for what surrounds the ops and ten seconds: one graph holds all ops.
FAST = "aot_eager"


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout_", [pytest.param("contiguous", marks=pytest.mark.thorough), "channels_last"])
def test_full_graph_equals_eager(spec: OpSpec, target: Target, layout_: str) -> None:
    for case in (spec.cases[1], spec.small[-1]):
        if why_not(spec, case, target.backend, target.device) is not None:
            continue
        torch._dynamo.reset()
        xs = operands(case, torch.float32, layout_, device=target.device)
        compiled = torch.compile(spec.op, fullgraph=True, backend=FAST)
        cots = cotangents(values(spec.eager, case, xs), layout_)
        wanted = present(xs)
        with srkernels.use_backend(target.backend):
            _assert_same_bits(values(compiled, case, xs), values(spec.op, case, xs))
            found = gradients(compiled, case, xs, cots, wanted)
            expected = gradients(spec.op, case, xs, cots, wanted)
        _assert_same_bits(found, expected)
        assert all(g.any() for g in found)


def _training_step(x: Tensor, y: Tensor, distance: Tensor) -> Tensor:
    """Every op in one graph, with ordinary operations between them."""
    low, high = srkernels.haar_dwt2d(x * 1.5, "mwcnn")
    again = srkernels.haar_idwt2d(low, high * 0.5, "mwcnn", output_size=(x.shape[2], x.shape[3]))
    content = srkernels.weighted_l1_loss(again.relu(), y, distance)
    bands = srkernels.weighted_l1_loss(srkernels.haar_highpass(again), srkernels.haar_highpass(y), distance.detach())
    return content + 0.1 * bands


def _step_operands(rows: int, columns: int, device: str = "cpu") -> list[Tensor]:
    shapes = ((2, 3, rows, columns), (2, 3, rows, columns), (2, 1, 3, 4))
    return [random(s, torch.float32, i, device) for i, s in enumerate(shapes)]


def _step_and_gradients(step: Callable[..., Tensor], xs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in xs]
    loss = step(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def test_inductor_runs_a_training_step(target: Target) -> None:
    xs = _step_operands(15, 18, target.device)
    with srkernels.use_backend(target.backend):
        found = _step_and_gradients(torch.compile(_training_step, fullgraph=True), xs)
        expected = _step_and_gradients(_training_step, xs)
    for a, b in zip(found, expected, strict=True):
        # Inductor may contract a multiplication and an addition: one rounding for each of the few steps between ops.
        torch.testing.assert_close(a, b, rtol=0, atol=8 * torch.finfo(torch.float32).eps * b.abs().max().item())
        assert b.any()


def test_dynamic_shapes_compile_once(target: Target) -> None:
    counter = CompileCounterWithBackend(FAST)
    compiled = torch.compile(_training_step, fullgraph=True, dynamic=True, backend=counter)
    with srkernels.use_backend(target.backend):
        for rows, columns in ((16, 20), (18, 26), (21, 33), (40, 22)):
            xs = _step_operands(rows, columns, target.device)
            _assert_same_bits(_step_and_gradients(compiled, xs), _step_and_gradients(_training_step, xs))
    # One graph for all: nothing in an op depends on the parity of a size.
    assert counter.frame_count == 1


@pytest.mark.parametrize("passes", [{}, thorough({"stride": 2, "padding": 1})], ids=["3x3", "stride 2"])
def test_frozen_filters_at_any_size(passes: dict[str, Any]) -> None:
    """Their backward pass has no image, whose size the gradient still has where the stride leaves pixels out."""
    weight = random((4, 3, 3, 3), torch.float32, 1)
    compiled = torch.compile(
        lambda x: srkernels.conv2d_act(x, weight, **passes), fullgraph=True, dynamic=True, backend=FAST
    )
    with srkernels.use_backend("reference"):
        for height in (8, 9):
            x = random((2, 3, height, 10), torch.float32, height).requires_grad_()
            found, expected = compiled(x), srkernels.conv2d_act(x, weight, **passes)
            gradients = [torch.autograd.grad(y, x, torch.ones_like(y))[0] for y in (found, expected)]
            _assert_same_bits([found, gradients[0]], [expected, gradients[1]])


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_tuples_of_bands_in_one_graph(target: Target, autocast: bool) -> None:
    """They are stacked outside autocast, before the op, those of each level by themselves."""

    def inverse(x: Tensor) -> Tensor:
        bands = srkernels.haar_dwt2d(x, "wct2", levels=2, pad="floor")
        return srkernels.haar_idwt2d(*bands, "wct2", output_size=(x.shape[2], x.shape[3]))

    torch._dynamo.reset()
    x = random((1, 2, 4, 6), torch.float16, 0, target.device)
    with srkernels.use_backend(target.backend), torch.autocast(target.device, torch.bfloat16, enabled=autocast):
        _assert_same_bits([torch.compile(inverse, fullgraph=True, backend=FAST)(x)], [inverse(x)])


@pytest.mark.thorough
def test_first_call_of_a_cold_process() -> None:
    """Nothing has run eagerly before the trace: it must not meet any lazy state."""
    python(
        """
        import torch, srkernels
        def step(x, w):
            return srkernels.weighted_l1_loss(srkernels.haar_highpass(x), torch.zeros(2, 9, 4, 4), w)
        x = torch.rand(2, 3, 8, 8, requires_grad=True)
        w = torch.rand(2, 1, 2, 2)
        loss = torch.compile(step, fullgraph=True)(x, w)
        (g,) = torch.autograd.grad(loss, x)
        eager = step(x, w)
        (e,) = torch.autograd.grad(eager, x)
        torch.testing.assert_close(loss, eager)
        torch.testing.assert_close(g, e)
        assert e.any()
        """,
        timeout=240,
    )


def test_double_backward_is_refused(spec: OpSpec, target: Target) -> None:
    """AOTAutograd has no second derivative: an error, never a gradient that misses a term."""
    case = spec.small[0]
    xs = operands(case, torch.float64, device=target.device)
    leaves = [None if x is None else x.requires_grad_() for x in xs]
    with srkernels.use_backend(target.backend):
        outputs = values(torch.compile(spec.op, fullgraph=True, backend=FAST), case, leaves)
        wanted = [x for x in leaves if x is not None]
        grads = torch.autograd.grad(sum((y * y).sum() for y in outputs), wanted, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            torch.autograd.grad(sum((g * g).sum() for g in grads), wanted)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends requested of the Haar ops, seen from inside the op: compiled or not."""
    seen: list[str] = []
    choose = _op.implementation

    def implementation(package: str, backend: str, *what: Any) -> Any:
        seen.append(backend)
        return choose(package, backend, *what)

    monkeypatch.setattr(_op, "implementation", implementation)
    return seen


def test_use_backend_inside_a_compiled_function(asked: list[str]) -> None:
    def step(x: Tensor) -> Tensor:
        with srkernels.use_backend("reference"):
            y = srkernels.haar_highpass(x)
        return y * 2

    x = random((2, 3, 8, 8), torch.float32, 0)
    compiled = torch.compile(step, fullgraph=True, backend=FAST)
    found = compiled(x)
    assert asked == ["reference"]
    assert torch.equal(found, step(x))
    assert srkernels._dispatch.requested() == ""


def test_use_backend_around_a_compiled_function(asked: list[str]) -> None:
    """A graph compiled under one request is not reused under another."""
    compiled = torch.compile(lambda x: srkernels.haar_highpass(x) * 2, fullgraph=True, backend=FAST)
    x = random((2, 3, 8, 8), torch.float32, 0)
    compiled(x)
    with srkernels.use_backend("reference"):
        compiled(x)
    compiled(x)
    assert asked == ["", "reference", ""]


def test_modules_compile_inside_a_network(target: Target) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(srkernels.nn.HaarHighPass(), torch.nn.Conv2d(9, 4, 3), torch.nn.LeakyReLU(0.2))
    net = net.to(target.device)
    x = random((2, 3, 12, 14), torch.float32, 0, target.device)
    with srkernels.use_backend(target.backend):
        found = torch.compile(net, fullgraph=True, backend=FAST)(x)
        found.sum().backward()
        grads = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        expected = net(x)
        expected.sum().backward()
    assert torch.equal(found, expected)
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, net.parameters(), strict=True))


def _traced(call: Callable[..., Tensor], *inputs: Tensor, then: Callable[[], None] = lambda: None) -> list[str]:
    """Names of what a compiler is handed; ``then`` is called before that runs."""
    torch._dynamo.reset()
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        found.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        then()
        return graph.forward

    torch.compile(call, fullgraph=True, backend=aot_autograd(fw_compiler=backend))(*inputs)
    return found


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kind", ["Conv2dAct", "ResidualBlock", thorough("ResidualDenseBlock")])
def test_a_trace_takes_the_formula_of_what_no_kernel_of_ours_is_faster_than(kind, memory_format, monkeypatch) -> None:
    """So that a compiler can fuse it; where ours was measured faster, on Intel AMX, the operator is what it gets."""
    sizes = (32, 32, 3) if kind == "Conv2dAct" else (32,)
    for dtype, amx, opaque in (
        (torch.float32, True, False),
        (torch.bfloat16, False, False),
        (torch.bfloat16, True, memory_format is torch.channels_last),
    ):
        pretended = {"amx": amx}
        monkeypatch.setattr(support, "amx_available", lambda pretended=pretended: pretended["amx"])
        block = getattr(srkernels.nn, kind)(*sizes).to(dtype=dtype, memory_format=memory_format)
        x = random((2, 32, 6, 5), dtype, 0).contiguous(memory_format=memory_format)
        names = _traced(block, x, then=partial(pretended.update, amx=False))
        assert any("srkernels" in name for name in names) == opaque, (dtype, amx, names)
        assert opaque or any("convolution" in name for name in names)
    with torch.no_grad():
        assert any("srkernels" in name for name in _traced(srkernels.haar_highpass, x))


def test_a_compiled_patched_network_is_the_network_compiled_alone() -> None:
    """Convolution by convolution, nothing is added to what the compiler gets."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = (torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(torch.relu(self.conv1(x)))

    for memory_format in (torch.contiguous_format, torch.channels_last):
        net = torch.nn.Sequential(Block(), Block()).to(memory_format=memory_format)
        x = random((1, 8, 6, 5), torch.float32, 0).contiguous(memory_format=memory_format)
        alone = _traced(net, x)
        assert len(srkernels.patch(net).taken) == 2
        assert sorted(_traced(net, x)) == sorted(alone)
