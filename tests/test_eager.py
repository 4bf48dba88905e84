"""The short way through eager PyTorch: where it must not be taken, and what a remembered decision depends on."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import srkernels
from srkernels import _eager
from srkernels.ops.haar import schema as haar
from srkernels.ops.weighted_l1 import schema as weighted_l1

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


@each
def test_a_profile_shows_the_op(call: Callable[[Tensor], Tensor]) -> None:
    call(X)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        call(X)
    assert any(event.name.startswith("srkernels::") for event in profiled.events())


def _variants() -> list[Tensor]:
    """Images alike in all but one thing that a decision depends on, each twice."""
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
    """Outputs of the ops with both settings of what they take, and gradients where there are any."""
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


def test_memory_of_decisions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_eager, "_MOST", 5)
    for calls in (haar._analyses, weighted_l1._known):
        calls.clear()
    for rows in range(1, 30):
        srkernels.haar_highpass(X[:, :, :1].expand(2, 3, rows, 16).contiguous())
        srkernels.weighted_l1_loss(*(X[:, :, :1].expand(2, 3, rows, 16).contiguous() for _ in range(2)))
        assert len(haar._analyses) <= 5 and len(weighted_l1._known) <= 5
