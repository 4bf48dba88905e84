"""``patch(model)``: the fused ops inside somebody else's network, with no key changed.

A block is recognised by its structure, not by the name of its class, and is taken only after a proof: a copy of it in
fp64, its parameters redrawn at random, gives the same output and the same gradients by the old forward, in training and
in evaluation mode, and by the new one.

A taken module gets a subclass of its own class with another ``forward``. Nothing else changes: parameters, buffers,
keys, hooks, ``isinstance``, ``deepcopy``, pickling. While a hook sits on a part that the new forward would pass over,
the old forward runs.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._plans import RECIPES, Plan, watched

_PLAN = "_srkernels_plan"


@dataclass(frozen=True)
class Line:
    """One module of a report.

    Attributes:
        path: its name in the model ("" is the model itself).
        kind: the name of its class.
        op: what computes it now; None if it was left.
        note: what was recognised, or why it was left.
    """

    path: str
    kind: str
    op: str | None
    note: str


@dataclass(frozen=True)
class Report:
    """What ``patch`` took and left. Prints as a table."""

    lines: tuple[Line, ...]

    @property
    def taken(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.op is not None)

    @property
    def left(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.op is None)

    def __str__(self) -> str:
        rows = [("module", "class", "now", "note")]
        rows += [(x.path or "(the model)", x.kind, x.op or "left", x.note) for x in self.lines]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)) + "  " + row[3] for row in rows]
        text.insert(1, "-" * max(map(len, text)))
        return "\n".join([*text, f"{len(self.taken)} taken, {len(self.left)} left"])


def patch(model: nn.Module) -> Report:
    """Let the fused ops compute the blocks of ``model`` that they know, in place.

    Taken are: residual blocks of two 3x3 convolutions (BasicSR ``ResidualBlockNoBN``, EDSR ``ResBlock``, KAIR
    ``ResBlock`` in mode CRC, DASR's block with PReLU), the dense blocks of an RRDB by any of its three families of keys
    (``body.N.rdbK.convJ``, ``RRDB_trunk.N.RDBK.convJ``, ``model.1.sub.N.RDBK.convJ.0``), and pairs of a 3x3 convolution
    and an activation in an ``nn.Sequential`` that is called whole (VGG, discriminators) and in BasicSR's
    ``SRVGGNetCompact`` and ``VGGFeatureExtractor``. All else stays as it is, and the report says why.

    Returns:
        What was taken and what was left, with reasons. A second call takes nothing more.

    Raises:
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch: model must be a torch.nn.Module, got {type(model).__name__}")
    return Report(tuple(_visit(model, "")))


def unpatch(model: nn.Module) -> int:
    """Undo ``patch``, in place; the number of modules restored."""
    restored = 0
    for module in model.modules():
        if isinstance(module, _Fused):
            del module.__dict__[_PLAN]
            module.__class__ = module._srkernels_original  # type: ignore[assignment]
            restored += 1
    return restored


def _visit(module: nn.Module, path: str) -> Iterator[Line]:
    kind = type(module).__name__
    inside = list(module.named_children())
    if isinstance(module, _Fused):
        yield Line(path, kind, None, "patched before")
        return
    reasons = []
    for recipe in RECIPES:
        plan = recipe.match(module)
        if plan is None:
            continue
        reason = plan if isinstance(plan, str) else _take(module, plan)
        if reason is None:
            assert not isinstance(plan, str)
            yield Line(path, kind, recipe.op, plan.describe())
            inside = [(name, child) for name, child in inside if name not in plan.parts()]
            break
        reasons.append(reason)
    else:
        if reasons or (not inside and any(True for _ in module.parameters(recurse=False))):
            yield Line(path, kind, None, "; ".join(reasons) or "no known block around it")
    for name, child in inside:
        yield from _visit(child, f"{path}.{name}" if path else name)


class _Fused:
    """What a taken module's class is besides its own."""

    _srkernels_original: type[nn.Module]


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _fused_class(original: type[nn.Module]) -> type[nn.Module]:
    if original in _classes:
        return _classes[original]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self.__dict__[_PLAN]
        if len(args) != 1 or kwargs or any(map(watched, plan.passed_over(self))):
            return original.forward(self, *args, **kwargs)
        return plan.run(self, args[0])

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (original,), self.__dict__

    body = {
        "forward": forward,
        "__reduce_ex__": reduce,
        "__module__": original.__module__,
        "_srkernels_original": original,
    }
    _classes[original] = type(original.__name__, (_Fused, original), body)
    return _classes[original]


def _rebuild(original: type[nn.Module]) -> nn.Module:
    module = original.__new__(original)
    module.__class__ = _fused_class(original)
    return module


def _take(module: nn.Module, plan: Plan) -> str | None:
    """Give ``module`` the plan's forward if it is proven equal; otherwise the reason why not."""
    for block, alone in plan.proofs(module):
        reason = _disproof(block, alone)
        if reason is not None:
            return reason
    module.__dict__[_PLAN] = plan
    module.__class__ = _fused_class(type(module))
    return None


def _disproof(module: nn.Module, plan: Plan) -> str | None:
    """Why ``plan`` does not compute ``module``; None if outputs and gradients agree on a sample."""
    try:
        old = copy.deepcopy(module).double()
    except Exception as error:
        return f"cannot be copied: {error}"
    generator = torch.Generator().manual_seed(20201)
    parameters = list(old.parameters())
    channels = next(m.in_channels for m in old.modules() if isinstance(m, nn.Conv2d))
    device = parameters[0].device

    def draw(like: tuple[int, ...]) -> Tensor:
        return torch.empty(like, dtype=torch.float64).uniform_(-1, 1, generator=generator).to(device)

    with torch.no_grad():
        for p in parameters:
            p.copy_(draw(tuple(p.shape)))
    x = draw((2, channels, *plan.sample_size))
    try:
        new = _results(functools.partial(plan.run, old), x, parameters)
        both_modes = [_results(old.train(training), x, parameters) for training in (True, False)]
    except Exception as error:
        return f"its forward does not run on one image tensor: {str(error).splitlines()[0] if str(error) else error!r}"
    for results in both_modes:
        if len(results) != len(new):
            return "looks like a known block but gives another number of outputs"
        for a, b in zip(results, new, strict=True):
            if a is None or b is None:
                if a is not b:
                    return "looks like a known block but does not use the same parameters"
            elif a.shape != b.shape or not torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(a.abs().max())):
                return "looks like a known block but computes something else"
    return None


def _results(function: Callable[[Tensor], Any], x: Tensor, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """Outputs, a tensor or several by name, and gradients of input and parameters."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        for p in parameters:
            p.requires_grad_()
        y = function(leaf)
        outputs = [y[name] for name in sorted(y)] if isinstance(y, dict) else [y]
        for out in outputs:
            if not isinstance(out, Tensor):
                raise TypeError(f"returns {type(out).__name__}, not a tensor")
        cotangents = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape) for y in outputs]
        grads = torch.autograd.grad(outputs, [leaf, *parameters], cotangents, allow_unused=True)
    return [*(y.detach() for y in outputs), *grads]
