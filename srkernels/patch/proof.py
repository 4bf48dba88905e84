"""The proof that a plan computes what a module does: both run on a copy, with everything that could tell them apart.

In fp64 outputs, gradients, what is left in the input and in buffers, and the state of every random generator must be
equal, for three draws of parameters, settings and images, in training and in evaluation mode. Under autocast every
dtype must be the same, and nothing may be rounded that was not before.
"""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .._dispatch import use_backend
from .blocks import INTERNAL, PLAN, Plan, frozen, same
from .layers import original_class

_SIZES = ((6, 5), (33, 32), (64, 64), (128, 128))
_GROWN = (1, 2)  # the second image's height and width beyond the first's
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TOLERANCE = 1e-9  # of sums in fp64 in another order
_COARSER = 16  # times eager's error: bf16 where eager had fp32 is 2**16 times, another order of sums about once
Run = Callable[[Tensor], Any]


class Disproof(Exception):
    """Why a plan is not used."""


def prove(module: nn.Module, plan: Plan) -> Plan:
    """The variant of ``plan`` that computes ``module``; raises Disproof if there is none."""
    reason = plan.objection(module)
    if reason is not None:
        raise Disproof(reason)
    device = next(module.parameters()).device
    with _undisturbed(device):
        trial = _Trial(module, device)
        try:
            size = trial.in_fp64(plan)
            return trial.under_autocast(plan.variants(), size) if _autocasts(device) else plan
        except Disproof:
            raise
        except Exception as error:
            raise Disproof(f"cannot be tried: {_first_line(error)}") from error


def _autocasts(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type)


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Regardless of the caller's modes; random generators are restored afterwards."""
    states, threads = _generators(device), torch.get_num_threads()
    no_autocast = torch.autocast(device.type, enabled=False) if _autocasts(device) else nullcontext()
    torch.set_num_threads(1)  # the images are too small to be split
    try:
        with torch.inference_mode(False), torch.enable_grad(), no_autocast, use_backend("reference"):
            yield
    finally:
        torch.set_num_threads(threads)
        _set_generators(device, states)


def _generators(device: torch.device) -> tuple[Any, ...]:
    of_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), of_device, random.getstate(), numpy.random.get_state()


def _same_generators(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    if not torch.equal(a[0], b[0]) or (a[1] is not None and not torch.equal(a[1], b[1])):
        return False
    return a[2] == b[2] and numpy.array_equal(a[3][1], b[3][1]) and a[3][2:] == b[3][2:]


def _set_generators(device: torch.device, states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.get_device_module(device).set_rng_state(states[1], device)
    random.setstate(states[2])
    numpy.random.set_state(states[3])


def _copied(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy to try out, without the user's hooks, which may count calls."""
    memo: dict[int, Any] = {}
    for m in module.modules():
        for name in _HOOKS:
            hooks = getattr(m, name)
            own = ((k, copy.deepcopy(h)) for k, h in hooks.items() if type(h).__module__.startswith("torch.nn.utils"))
            memo[id(hooks)] = OrderedDict(own)
        for value in vars(m).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:  # which deepcopy refuses
                memo[id(value)] = value.detach().clone()
    try:
        found = copy.deepcopy(module, memo).to(dtype)
        found.__class__ = original_class(module)
        found.__dict__.pop(PLAN, None)
        return found
    except Exception as error:
        raise Disproof(f"cannot be copied: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


@dataclass(frozen=True)
class _Outcome:
    """All that a call leaves behind."""

    outputs: dict[str, Tensor]
    grads: list[Tensor | None]  # of the image and the parameters
    image: Tensor
    buffers: list[Tensor]
    generators: tuple[Any, ...]

    def error(self, exact: _Outcome) -> float:
        """Relative root mean square, of outputs and the image's gradient."""
        found = [*self.outputs.values(), self.grads[0]]
        right = [*exact.outputs.values(), exact.grads[0]]
        pairs = [(a.double(), b) for a, b in zip(found, right, strict=True) if a is not None and b is not None]
        return max(float((a - b).norm() / b.norm().clamp_min(1e-300)) for a, b in pairs)

    def dtypes(self) -> list[torch.dtype | None]:
        return [None if t is None else t.dtype for t in (*self.outputs.values(), *self.grads)]


def _named(y: Any) -> dict[str, Any]:
    return dict(y) if isinstance(y, dict) else {"": y}


def _repeats(expected: _Outcome, again: Any) -> bool:
    return all(map(_equal, expected.outputs.values(), _named(again).values()))


def _difference(a: _Outcome, b: _Outcome) -> str | None:
    """What tells two calls apart."""
    if not _same_generators(a.generators, b.generators):
        return "draws random numbers"
    if a.outputs.keys() != b.outputs.keys():
        return "gives other outputs"
    if not all(map(_equal, a.outputs.values(), b.outputs.values())):
        return "computes something else"
    if [g is None for g in a.grads] != [g is None for g in b.grads]:
        return "does not use the same parameters"
    if not all(x is None or y is None or _equal(x, y) for x, y in zip(a.grads, b.grads, strict=True)):
        return "has other gradients"
    if not _equal(a.image, b.image):
        return "writes into its input"
    if not all(map(_equal, a.buffers, b.buffers)):
        return "updates its buffers in another way"
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype is not b.dtype:
        return False
    if not a.is_floating_point() or a.numel() == 0:
        return torch.equal(a, b)
    return float((a - b).abs().max()) <= _TOLERANCE * float(a.abs().max())


class _Trial:
    """A copy of ``module`` on which its forward and a plan's are compared."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self.draws = torch.Generator().manual_seed(20201)
        self.start = _generators(device)
        self.use(_copied(module, torch.float64))

    def use(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = [p.requires_grad_() for p in module.parameters() if p.is_floating_point()]
        self.buffers = [(m._buffers, dict(m._buffers)) for m in module.modules()]

    def uniform(self, like: tuple[int, ...], low: float = -1.0) -> Tensor:
        return torch.empty(like, dtype=torch.float64, device="cpu").uniform_(low, 1, generator=self.draws)

    def draw(self, buffers: bool = True) -> None:
        """New parameters, which leave activations about as large as they were, and buffers, some of them variances."""
        with torch.no_grad():
            for p in self.parameters:
                fan_in = p[0].numel() if p.dim() > 1 else 3
                p.copy_(self.uniform(tuple(p.shape)) * (3 / fan_in) ** 0.5)
        for _, saved in self.buffers if buffers else ():
            for name, b in saved.items():
                if b is not None and b.is_floating_point():
                    saved[name] = (0.5 + self.uniform(tuple(b.shape), 0)).to(b)

    def image(self, batch: int, size: tuple[int, int]) -> Tensor:
        channels = next(m.in_channels for m in self.module.modules() if isinstance(m, nn.Conv2d))
        return self.uniform((batch, channels, *size)).to(self.device)

    def old(self, x: Tensor) -> Any:
        before = _attributes(self.module)
        y = type(self.module).forward(self.module, x)
        if not same(before, _attributes(self.module)):
            raise Disproof("its forward sets attributes")
        return y

    def reset(self) -> None:
        for buffers, saved in self.buffers:
            buffers.update({name: None if b is None else b.clone() for name, b in saved.items()})
        _set_generators(self.device, self.start)

    def run(self, forward: Run, x: Tensor, autocast: bool = False) -> _Outcome:
        self.reset()
        leaf = x.clone().requires_grad_()
        image = leaf * 1  # which may be written to
        with torch.autocast(self.device.type, torch.bfloat16) if autocast else nullcontext():
            y = forward(image)
        outputs = _named(y)
        for out in outputs.values():
            if type(out) is not Tensor:
                raise Disproof(f"returns {type(out).__name__}, not a tensor")
            if not out.requires_grad:
                raise Disproof("returns a tensor without gradient")
        generators = _generators(self.device)
        cotangents = [
            torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape) for y in outputs.values()
        ]
        grads = torch.autograd.grad([*outputs.values()], [leaf, *self.parameters], cotangents, allow_unused=True)
        after = [b for buffers, _ in self.buffers for b in buffers.values() if b is not None]
        detached = {name: y.detach() for name, y in outputs.items()}
        return _Outcome(detached, list(grads), image.detach(), after, generators)

    @torch.no_grad()
    def call(self, x: Tensor) -> Any:
        self.reset()
        return self.old(x.clone())

    def sizes(self) -> list[tuple[int, int]]:
        """The smallest size that the module takes, and another where it takes any."""
        reason = ""
        self.module.eval()
        for size in _SIZES:
            try:
                self.call(self.image(1, size))
            except Disproof:
                raise
            except Exception as error:
                reason = f"its forward does not run on one image tensor: {_first_line(error)}"
                continue
            other = size[0] + _GROWN[0], size[1] + _GROWN[1]
            try:
                self.call(self.image(1, other))
                return [size, other]
            except Exception:
                return [size, size]
        raise Disproof(reason)

    def in_fp64(self, plan: Plan) -> tuple[int, int]:
        """Compare values; returns the image size to continue with."""
        self.draw(buffers=False)  # first with its own buffers, which may be flags
        small, other = self.sizes()
        # The last image exceeds every bound that an activation or a sum may be clamped to.
        for batch, size, modes, times in (
            (2, small, (True, False), 1),
            (2, other, (True,), 1),
            (1, small, (False,), 1e6),
        ):
            x = times * self.image(batch, size)
            for training in modes:
                self.module.train(training)
                expected = self.run(self.old, x)
                if not all(out.isfinite().all() for out in expected.outputs.values()):
                    raise Disproof("gives no finite values for a drawn image")
                if len(modes) == 2 and not _repeats(expected, self.call(x)):
                    raise Disproof("its forward does not repeat itself")
                reason = _difference(expected, self.run(partial(_fused, plan, self.module), x))
                if reason is not None:
                    raise Disproof(f"looks like a known block but {reason}")
            self.draw()
            plan.vary(self.module, 0.1 + 0.4 * float(self.uniform((), 0)))
        return small

    def under_autocast(self, variants: Iterable[Plan], size: tuple[int, int]) -> Plan:
        """The first of ``variants`` that has the dtypes of the old forward."""
        x = self.image(1, size)
        exact = self.run(self.old, x)
        self.use(self.module.float())
        expected = self.run(self.old, x.float(), autocast=True)
        for plan in variants:
            found = self.run(partial(_fused, plan, self.module), x.float(), autocast=True)
            if found.dtypes() == expected.dtypes():
                if found.error(exact) > _COARSER * expected.error(exact):
                    raise Disproof("looks like a known block but leaves autocast")
                return plan
        raise Disproof("looks like a known block but has another dtype under autocast")


def _attributes(module: nn.Module) -> Any:
    return frozen({name: value for name, value in vars(module).items() if name not in INTERNAL})


def _fused(plan: Plan, module: nn.Module, x: Tensor) -> Any:
    out = plan.run(module, x)
    if out is None:
        raise Disproof("looks like a known block but is none")
    return out
