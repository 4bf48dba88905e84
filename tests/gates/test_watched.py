"""Calls that something watches or alters: tracers, profilers, forward mode, hooks, tensors with pending operations."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

import srkernels

X, Y, W = (torch.rand(2, c, 8, 16, generator=torch.Generator().manual_seed(c)) for c in (3, 6, 1))
Y = Y[:, :3].contiguous()


def _convolved(x: Tensor) -> Tensor:
    with srkernels.use_backend("reference"):  # the automatic choice for this image is eager PyTorch, without the op
        return srkernels.conv2d_act(x, torch.ones(4, 3, 3, 3), activation="relu")


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "haar_highpass": srkernels.haar_highpass,
    "haar_idwt2d": lambda x: srkernels.haar_idwt2d(x, None),
    "weighted_l1_loss": lambda x: srkernels.weighted_l1_loss(x, Y, W),
    "conv2d_act": _convolved,
}
each = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@each
def test_a_pending_negation_is_seen(call: Callable[[Tensor], Tensor]) -> None:
    negated = torch.complex(torch.zeros_like(X), X).conj().imag
    assert negated.is_neg()
    assert torch.equal(call(negated), call(-X))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@each
def test_traced_calls_record_the_op(call: Callable[[Tensor], Tensor]) -> None:
    call(X)
    traced = torch.jit.trace(call, X, check_trace=False)
    assert "srkernels::" in str(traced.graph)
    other = X.flip(3)
    assert torch.equal(traced(other), call(other))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@each
def test_traced_calls_with_a_gradient_compute(call: Callable[[Tensor], Tensor]) -> None:
    x, other = X.clone().requires_grad_(), X.flip(3).requires_grad_()
    traced = torch.jit.trace(call, x, check_trace=False)
    out = traced(other)
    assert torch.equal(out, call(other))
    found, expected = (torch.autograd.grad(y.square().sum(), other)[0] for y in (out, call(other)))
    assert torch.equal(found, expected) and found.any()


@each
def test_calls_that_nothing_watches_go_past_the_dispatcher(call: Callable[[Tensor], Tensor]) -> None:
    def refused(*arguments: object) -> list[Tensor]:
        raise NotImplementedError("dispatched")

    x = X.clone().requires_grad_()
    with torch.library._scoped_library("srkernels", "IMPL") as library:
        for name in torch._C._dispatch_get_all_op_names():
            if name.startswith("srkernels::"):
                library.impl(name, refused, "CPU")
        call(X)
        call(x).sum().backward()
        with _Functions(), pytest.raises(NotImplementedError, match="dispatched"):
            call(X)


class _Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@each
def test_function_modes_see_the_op(call: Callable[[Tensor], Tensor]) -> None:
    """And nothing of its implementation, whose tensors a default device, which is such a mode, would move."""
    with _Functions() as mode:
        call(X)
    assert mode.seen[-1].startswith("srkernels.")


@each
def test_traces_ahead_of_autograd_record_the_op(call: Callable[[Tensor], Tensor]) -> None:
    traced = make_fx(lambda x: call(x), pre_dispatch=True)(X)
    assert "srkernels." in traced.code
    assert torch.equal(traced(X.flip(3)), call(X.flip(3)))


@each
def test_a_compiled_backward_pass_records_the_op(call: Callable[[Tensor], Tensor]) -> None:
    """In one graph, of a forward pass that was not compiled."""
    x, other = (X.clone().requires_grad_() for _ in range(2))
    graphs: list[str] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph.code)
        return graph

    out = call(x).square().sum()
    with compiled_autograd._enable(lambda graph: torch.compile(graph, backend=compiler, fullgraph=True)):
        out.backward()
    call(other).square().sum().backward()
    assert "srkernels." in graphs[-1]
    assert torch.equal(x.grad, other.grad)


@each
def test_functionalized_tensors_are_seen(call: Callable[[Tensor], Tensor]) -> None:
    """They name a device and have a storage, in which there is nothing."""
    wrapped = call(torch._to_functional_tensor(X))
    assert torch.equal(torch._from_functional_tensor(wrapped), call(X))


@each
def test_zeros_not_yet_written_are_zeros(call: Callable[[Tensor], Tensor]) -> None:
    torch.testing.assert_close(call(torch._efficientzerotensor(X.shape)), call(torch.zeros_like(X)), rtol=0, atol=0)


@each
def test_forward_mode_is_refused(call: Callable[[Tensor], Tensor]) -> None:
    """No rule propagates tangents; they must not get lost."""
    call(X)
    with pytest.raises((NotImplementedError, RuntimeError), match="jvp"):
        torch.func.jvp(call, (X,), (Y,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises((NotImplementedError, RuntimeError), match="jvp"):
        call(torch.autograd.forward_ad.make_dual(X, Y))


@each
def test_batched_cotangents(call: Callable[[Tensor], Tensor]) -> None:
    """With the older vmap: right, or PyTorch's own error."""
    x = X.clone().requires_grad_()
    out = call(x)
    cotangents = torch.stack([torch.ones_like(out), 2 * torch.ones_like(out)])
    refusal = ""
    try:
        (batched,) = torch.autograd.grad(out, x, cotangents, is_grads_batched=True, retain_graph=True)
    except RuntimeError as error:
        refusal = str(error)
    if refusal:
        assert "Batching rule not implemented for srkernels::" in refusal
        return
    (one,) = torch.autograd.grad(out, x, cotangents[0])
    torch.testing.assert_close(batched, torch.stack([one, 2 * one]))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_saved_tensors_may_come_back_in_another_layout(memory_format: torch.memory_format) -> None:
    other = {torch.contiguous_format: torch.channels_last, torch.channels_last: torch.contiguous_format}[memory_format]

    def unpack(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=other) if x.dim() == 4 else x

    x, y = (t.contiguous(memory_format=memory_format) for t in (X, Y))
    found = []
    for hook in (unpack, lambda x: x):
        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, hook):
            srkernels.weighted_l1_loss(leaf, y, W).backward()
        found.append(leaf.grad)
    assert torch.equal(*found)


def test_an_undefined_gradient_stays_undefined() -> None:
    class Ends(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    for call in (srkernels.haar_highpass, lambda x: srkernels.weighted_l1_loss(x, Y, W)):
        x = X.clone().requires_grad_()
        Ends.apply(call(x)).sum().backward()
        assert x.grad is None


@each
def test_a_profile_shows_the_op(call: Callable[[Tensor], Tensor]) -> None:
    call(X)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        call(X)
    assert any(event.name.startswith("srkernels::") for event in profiled.events())


def _variants() -> list[Tensor]:
    """Images that differ in one property that a decision depends on, each twice."""
    some = [
        X, X.double(), X.bfloat16(), X[:1], X[..., :15], X.contiguous(memory_format=torch.channels_last),
        X.transpose(2, 3), X.clone().requires_grad_(), torch.nn.Parameter(X),
    ]  # fmt: skip
    return [*some, *some]


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_decision_is_not_taken_for_another(backend: str | None) -> None:
    with srkernels.use_backend("reference"):
        expected = [_everything(x) for x in _variants()]
    with srkernels.use_backend(backend):
        for x, outputs in zip(_variants(), expected, strict=True):
            for found, wanted in zip(_everything(x), outputs, strict=True):
                assert found.dtype is wanted.dtype and found.requires_grad == wanted.requires_grad
                torch.testing.assert_close(found, wanted, check_stride=True)


def _everything(x: Tensor) -> list[Tensor]:
    """Outputs of the ops with both values of each setting, and gradients where there are any."""
    y = torch.full_like(x, 0.5)
    outputs: list[Tensor] = []
    for pad, bands in itertools.product(("reflect", "zero"), ("high", "low")):
        outputs += [out for out in srkernels.haar_dwt2d(x, "dasr", bands=bands, pad=pad) if isinstance(out, Tensor)]
    for corners, normalize in itertools.product((False, True), ("numel", "weight_sum")):
        map = W[: len(x)].to(x.dtype)
        outputs.append(srkernels.weighted_l1_loss(x, y, map, align_corners=corners, normalize=normalize))
    with torch.autocast("cpu"):
        outputs.append(srkernels.weighted_l1_loss(x, y, None))
    if x.requires_grad:
        outputs += [torch.autograd.grad(out.sum(), x, retain_graph=True)[0] for out in outputs]
        with torch.no_grad():
            outputs += [srkernels.haar_highpass(x), srkernels.weighted_l1_loss(x, y)]
    return outputs


def test_gradients_follow_the_layout_rule() -> None:
    x = torch.rand(2, 6, 8, 16)[:, :3][:1].requires_grad_()  # dense, except for the stride of its only image
    (grad,) = torch.autograd.grad(srkernels.weighted_l1_loss(x, Y[:1], W[:1]), x)
    assert grad.stride() == (384, 128, 16, 1)


def test_what_does_not_fit_is_refused_after_what_did() -> None:
    for _ in range(2):
        srkernels.weighted_l1_loss(X, Y, W)
        with pytest.raises(ValueError, match="target must have input's shape"):
            srkernels.weighted_l1_loss(X, Y[:1], W)
        with pytest.raises(ValueError, match=r"weight must be \(N or 1, 1 or C, h, w\)"):
            srkernels.weighted_l1_loss(X, Y, W.expand(2, 2, 8, 16))
        with pytest.raises(TypeError, match="x must be float16"):
            srkernels.haar_highpass(X.long())
        with pytest.raises(ValueError, match="x must be 4-D"):
            srkernels.haar_highpass(X[0])
        srkernels.haar_idwt2d(X, None, output_size=(16, 31))
        with pytest.raises(TypeError, match="output_size must be two integers"):
            srkernels.haar_idwt2d(X, None, output_size=(16.0, 31.0))
