"""Whether a patched network does what the unpatched one does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# Another order of fp64 sums of some thousand terms, in a few layers.
TOLERANCE = 4096 * torch.finfo(torch.float64).eps


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Nothing here is large enough to be split, and two busy cores wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True, repr=False)
class Call:
    """What a call of a network, forward and backward, leaves behind."""

    tensors: dict[str, Tensor | None]
    generator: Tensor

    def __repr__(self) -> str:
        return "a result"


def call(net: nn.Module, x: Tensor, autocast: bool = False) -> Call | str:
    """Outputs, gradients, buffers and the state of the random generator; the error's type if it raises."""
    torch.manual_seed(0)
    leaf = x.detach().clone().requires_grad_()
    image = leaf * 1
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    try:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            y = net(image)
        outputs = y if isinstance(y, dict) else {"": y}
        generator = torch.get_rng_state()
        cotangents = [torch.linspace(-1, 2, y.numel()).to(y).view(y.shape) for y in outputs.values()]
        grads = torch.autograd.grad([*outputs.values()], [leaf, *parameters.values()], cotangents, allow_unused=True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    found: dict[str, Any] = {f"output {name}": y.detach() for name, y in outputs.items()}
    found |= {f"gradient of {name}": g for name, g in zip(["x", *parameters], grads, strict=True)}
    found |= {f"buffer {name}": b.clone() for name, b in net.named_buffers()}
    return Call({**found, "input": image.detach()}, generator)


def assert_same_calls(original: nn.Module, patched: nn.Module, x: Tensor) -> None:
    """In training and evaluation in fp64, and in fp32 under autocast, where eager's rounding sets the bound."""
    for training in (True, False):
        nets = original.train(training), patched.train(training)
        exact, found = (call(net, x) for net in nets)
        _compare(exact, found, exact, TOLERANCE, f"training={training}")
        _assert_as_close_under_autocast(nets, x, f"training={training}, autocast")


def _assert_as_close_under_autocast(nets: tuple[nn.Module, nn.Module], x: Tensor, what: str) -> None:
    unlucky = None  # after a normalisation one rounding of one image may outweigh all others together
    for image in (x, x.flip(-1), x.flip(-2)):
        exact, _ = (call(net, image) for net in nets)  # both, as some count their calls
        eager, found = (call(net.float(), image.float(), autocast=True) for net in nets)
        for net in nets:
            net.double()
        nets[1].load_state_dict(nets[0].state_dict())  # running statistics of rounded activations differ
        try:
            _compare(eager, found, exact, torch.finfo(torch.bfloat16).eps, what)
            return
        except AssertionError as error:
            unlucky = error
    assert unlucky is None, str(unlucky)


def _compare(expected: Call | str, found: Call | str, exact: Call | str, tolerance: float, what: str) -> None:
    """``found`` is at most twice as far from ``exact`` as ``expected`` is, plus ``tolerance`` of its length.

    For all outputs together, and all gradients: one alone may be a sum that cancels.
    """
    if isinstance(expected, str) or isinstance(found, str) or isinstance(exact, str):
        if isinstance(expected, str) and "modified by an inplace operation" in expected:
            return  # an untrainable network: an op that saves less may not notice
        kinds = [c.split(":")[0] if isinstance(c, str) else "" for c in (expected, found)]
        assert kinds[0] == kinds[1], f"{what}: {found}, not {expected}"
        return
    assert torch.equal(expected.generator, found.generator), f"{what}: other random numbers"
    assert expected.tensors.keys() == found.tensors.keys(), what
    for kind in ("output", "gradient", "buffer", "input"):
        errors, length = [0.0, 0.0], 0.0
        for name, a in expected.tensors.items():
            b, e = found.tensors[name], exact.tensors[name]
            assert (a is None) == (b is None), f"{what}: {name} is {b}"
            if a is None or b is None or e is None or not name.startswith(kind):
                continue
            assert a.dtype is b.dtype and a.shape == b.shape, f"{what}: {name} is {b.dtype}, not {a.dtype}"
            errors = [d + float((t.double() - e).square().sum()) for d, t in zip(errors, (a, b), strict=True)]
            length += float(e.double().square().sum())
        allowed = 2 * errors[0] ** 0.5 + tolerance * length**0.5
        assert errors[1] ** 0.5 <= allowed, f"{what}: {kind} off by {errors[1] ** 0.5:.3g}, allowed {allowed:.3g}"
