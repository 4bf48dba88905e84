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
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from .functional import conv2d_act, dense_block, residual_block
from .ops.conv import is_plain

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
    and an activation in an ``nn.Sequential`` (VGG, discriminators). All else stays as it is, and the report says why.

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
    for recipe in _RECIPES:
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


@dataclass(frozen=True)
class _Activation:
    """An activation by name, and where the module with PReLU's slopes is."""

    name: str
    negative_slope: float | None = None
    prelu: str | None = None

    def slope(self, owner: nn.Module) -> float | Tensor | None:
        return self.negative_slope if self.prelu is None else _at(owner, self.prelu).weight  # type: ignore[return-value]

    def describe(self) -> str:
        return self.name if self.negative_slope is None else f"{self.name} {self.negative_slope:g}"


def _at(owner: nn.Module, path: str) -> nn.Module:
    for name in path.split("."):
        owner = owner._modules[name]  # type: ignore[assignment]
    return owner


def _convolution_at(owner: nn.Module, path: str) -> nn.Conv2d:
    return cast(nn.Conv2d, _at(owner, path))


def _activation(module: nn.Module, path: str) -> _Activation | None:
    if type(module) is nn.ReLU:
        return _Activation("relu")
    if type(module) is nn.LeakyReLU:
        return _Activation("leaky_relu", float(module.negative_slope))
    if type(module) is nn.PReLU:
        return _Activation("prelu", prelu=path)
    return None


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward


def _why_not_fused(conv: nn.Module) -> str | None:
    assert isinstance(conv, nn.Conv2d)
    if conv.kernel_size != (3, 3):
        return f"a {'x'.join(map(str, conv.kernel_size))} convolution"
    return None if is_plain(conv) else "a convolution with stride, dilation, groups or another padding"


def _watched(module: nn.Module) -> bool:
    """Whether a hook expects to see this module's own call."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


@dataclass(frozen=True)
class _ResidualPlan:
    """x + res_scale * conv2(act(conv1(x)))"""

    conv1: str
    conv2: str
    activation: _Activation
    scale_from: str | None  # attribute with res_scale; None: 1

    def parts(self) -> tuple[str, ...]:
        return tuple(path.split(".")[0] for path in (self.conv1, self.conv2, self.activation.prelu or self.conv1))

    def passed_over(self, owner: nn.Module) -> Iterator[nn.Module]:
        return itertools.islice(owner.modules(), 1, None)

    def proofs(self, owner: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
        yield owner, self

    def describe(self) -> str:
        scale = f", times {self.scale_from}" if self.scale_from else ""
        return f"x + {self.conv2}({self.activation.describe()}({self.conv1}(x))){scale}"

    def run(self, owner: nn.Module, x: Tensor) -> Tensor:
        conv1, conv2 = _convolution_at(owner, self.conv1), _convolution_at(owner, self.conv2)
        scale = 1.0 if self.scale_from is None else getattr(owner, self.scale_from)
        return residual_block(
            x, conv1.weight, conv1.bias, conv2.weight, conv2.bias,
            activation=self.activation.name, slope=self.activation.slope(owner), res_scale=scale,
        )  # fmt: skip


def _match_residual(module: nn.Module) -> _ResidualPlan | str | None:
    children = [(n, c) for n, c in module.named_children() if type(c) is not nn.Identity]
    if len(children) == 1 and type(children[0][1]) is nn.Sequential and type(module) is not nn.Sequential:
        outer, sequence = children[0]
        children = [(f"{outer}.{n}", c) for n, c in sequence.named_children() if type(c) is not nn.Identity]
        if [_is_convolution(c) for _, c in children] != [True, False, True]:
            return None
    elif type(module) is nn.Sequential:
        return None
    convs = [(n, c) for n, c in children if _is_convolution(c)]
    others = [(n, c) for n, c in children if not _is_convolution(c)]
    if len(convs) != 2 or len(others) > 1:
        return None
    activation = _activation(others[0][1], others[0][0]) if others else _Activation("relu")  # functional: proven below
    if activation is None:
        return f"two convolutions around {type(others[0][1]).__name__}, which is not fused"
    (name1, conv1), (name2, conv2) = convs
    for conv in (conv1, conv2):
        reason = _why_not_fused(conv)
        if reason is not None:
            return reason
    if conv2.in_channels != conv1.out_channels or conv2.out_channels != conv1.in_channels:
        return "two convolutions whose channels do not lead back to the input's"
    scaled = isinstance(getattr(module, "res_scale", None), (int, float))
    return _ResidualPlan(name1, name2, activation, "res_scale" if scaled else None)


@dataclass(frozen=True)
class _DensePlan:
    """x + 0.2 * conv5(x | x1 | x2 | x3 | x4)"""

    convs: tuple[str, ...]
    slope: float

    def parts(self) -> tuple[str, ...]:
        return tuple(path.split(".")[0] for path in self.convs)

    def passed_over(self, owner: nn.Module) -> Iterator[nn.Module]:
        return itertools.islice(owner.modules(), 1, None)

    def proofs(self, owner: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
        yield owner, self

    def describe(self) -> str:
        return f"x + {DENSE_SCALE} * {self.convs[4]}(x | x1 | x2 | x3 | x4), leaky_relu {self.slope:g}"

    def run(self, owner: nn.Module, x: Tensor) -> Tensor:
        convs = [_convolution_at(owner, path) for path in self.convs]
        weights, biases = [c.weight for c in convs], [c.bias for c in convs]
        return dense_block(x, weights, biases, slope=self.slope, res_scale=DENSE_SCALE)


DENSE_SCALE = 0.2


def _match_dense(module: nn.Module) -> _DensePlan | str | None:
    convs: list[tuple[str, nn.Conv2d]] = []
    slopes = []
    for name, child in module.named_children():
        layers = [(name, child)]
        if type(child) is nn.Sequential:  # the older keys: conv1.0
            layers = [(f"{name}.{n}", c) for n, c in child.named_children()]
        for path, layer in layers:
            if _is_convolution(layer):
                convs.append((path, cast(nn.Conv2d, layer)))
            elif type(layer) is nn.LeakyReLU:
                slopes.append(float(layer.negative_slope))
            elif type(layer) is not nn.Identity:
                return None
    if len(convs) != 5 or type(module) is nn.Sequential:
        return None
    for _, conv in convs:
        reason = _why_not_fused(conv)
        if reason is not None:
            return reason
    channels, growth = convs[0][1].in_channels, convs[0][1].out_channels
    expected = [(channels + k * growth, channels if k == 4 else growth) for k in range(5)]
    if [(c.in_channels, c.out_channels) for _, c in convs] != expected:
        return None
    if len(set(slopes)) > 1 or any(slope <= 0 for slope in slopes):
        return "five dense convolutions with different or negative slopes"
    return _DensePlan(tuple(path for path, _ in convs), slopes[0] if slopes else 0.2)  # functional: proven below


@dataclass(frozen=True)
class _SequentialPlan:
    """Children in order, a convolution and the activation after it as one."""

    pairs: tuple[tuple[str, str, _Activation], ...]

    def parts(self) -> tuple[str, ...]:
        return tuple(name for conv, activation, _ in self.pairs for name in (conv, activation))

    def passed_over(self, owner: nn.Module) -> Iterator[nn.Module]:
        return iter(())  # hooks are looked at pair by pair

    def proofs(self, owner: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
        """Each pair for itself: what lies between may not take any image size."""
        for conv, name, activation in self.pairs:
            alone = replace(activation, prelu=activation.prelu and "1")
            yield nn.Sequential(_at(owner, conv), _at(owner, name)), _SequentialPlan((("0", "1", alone),))

    def describe(self) -> str:
        return f"{len(self.pairs)} convolutions with the activation after them"

    def run(self, owner: nn.Module, x: Tensor) -> Tensor:
        fused = {conv: (name, activation) for conv, name, activation in self.pairs}
        done = ""
        for name, child in owner._modules.items():
            assert child is not None
            if name == done:
                continue
            if name in fused:
                after, activation = fused[name]
                if not _watched(child) and not _watched(owner._modules[after]):  # type: ignore[arg-type]
                    slope = activation.slope(owner)
                    x = conv2d_act(x, child.weight, child.bias, activation=activation.name, slope=slope)  # type: ignore[arg-type]
                    done = after
                    continue
            x = child(x)
        return x


def _match_sequential(module: nn.Module) -> _SequentialPlan | None:
    if type(module) is not nn.Sequential:
        return None
    children = list(module.named_children())
    pairs = []
    for (name, child), (after, follower) in itertools.pairwise(children):
        activation = _activation(follower, after)
        if activation is not None and _is_convolution(child) and _why_not_fused(child) is None:
            pairs.append((name, after, activation))
    return _SequentialPlan(tuple(pairs)) if pairs else None


@dataclass(frozen=True)
class _Recipe:
    op: str
    match: Callable[[nn.Module], Any]


_RECIPES = (
    _Recipe("residual_block", _match_residual),
    _Recipe("dense_block", _match_dense),
    _Recipe("conv2d_act", _match_sequential),
)


class _Fused:
    """What a taken module's class is besides its own."""

    _srkernels_original: type[nn.Module]


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _fused_class(original: type[nn.Module]) -> type[nn.Module]:
    if original in _classes:
        return _classes[original]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self.__dict__[_PLAN]
        if len(args) != 1 or kwargs or any(map(_watched, plan.passed_over(self))):
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


def _take(module: nn.Module, plan: Any) -> str | None:
    """Give ``module`` the plan's forward if it is proven equal; otherwise the reason why not."""
    for block, alone in plan.proofs(module):
        reason = _disproof(block, alone)
        if reason is not None:
            return reason
    module.__dict__[_PLAN] = plan
    module.__class__ = _fused_class(type(module))
    return None


def _disproof(module: nn.Module, plan: Any) -> str | None:
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
    x = draw((2, channels, 9, 8))
    try:
        new = _results(functools.partial(plan.run, old), x, parameters)
        both_modes = [_results(old.train(training), x, parameters) for training in (True, False)]
    except Exception as error:
        return f"its forward does not run on one image tensor: {str(error).splitlines()[0] if str(error) else error!r}"
    for results in both_modes:
        for a, b in zip(results, new, strict=True):
            if a is None or b is None:
                if a is not b:
                    return "looks like a known block but does not use the same parameters"
            elif a.shape != b.shape or not torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(a.abs().max())):
                return "looks like a known block but computes something else"
    return None


def _results(function: Callable[[Tensor], Tensor], x: Tensor, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """Output, and gradients of input and parameters."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        for p in parameters:
            p.requires_grad_()
        y = function(leaf)
        if not isinstance(y, Tensor):
            raise TypeError(f"returns {type(y).__name__}, not a tensor")
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
        grads = torch.autograd.grad((y * weights).sum(), [leaf, *parameters], allow_unused=True)
    return [y.detach(), *grads]
