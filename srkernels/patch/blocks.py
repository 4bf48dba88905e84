"""What ``patch`` knows: for each kind of block a plan that names its parts and computes it with the fused ops.

A new kind is a subclass of ``Plan`` (of ``OwnForward`` where the block's class has a forward of its own, of ``Block``
where that calls none but known layers) and an entry of ``PLANS``. ``match`` looks at structure alone and may be wrong:
every plan is proven before it is used. ``run`` rechecks all that the proof rested on, and returns None where that
no longer holds, so that the old forward runs.
"""

from __future__ import annotations

import itertools
import types
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from numbers import Number, Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._dispatch import autocasts, requested
from ..functional import conv2d_act, dense_block, residual_block
from .layers import (
    ACTIVATIONS,
    Tree,
    at,
    flat,
    image,
    is_sequence,
    kind,
    original_class,
    pair,
    pairs,
    passes,
    tree,
    watched,
    why_no_values,
    why_not_in_a_block,
)


@dataclass(frozen=True)
class Plan(ABC):
    """How the fused ops compute one module, ``owner``. Holds names and settings, so that it can be pickled and copied.

    Attributes:
        save: as in the ops.
        rounds: whether the result has the dtype of a branch that the image was added to in place.
    """

    op: ClassVar[str]
    adds: ClassVar[bool] = False  # whether it adds the image to a branch
    save: str = field(default="activations", kw_only=True)
    rounds: bool = field(default=False, kw_only=True)

    @staticmethod
    @abstractmethod
    def match(module: nn.Module) -> Plan | str | None:
        """A plan, or why a module that looks known is not, or None."""

    def objection(self, owner: nn.Module) -> str | None:
        """Why no proof could hold for ``owner``."""
        if "forward" in owner.__dict__:
            return "its forward was replaced on the object"
        return why_no_values(owner)

    @abstractmethod
    def parts(self) -> Collection[str]:
        """Children that it replaces."""

    @abstractmethod
    def describe(self) -> str: ...

    @abstractmethod
    def run(self, owner: nn.Module, x: Any) -> Any:
        """The output of ``owner`` for ``x``; None where either is not what the plan is for."""

    def variants(self) -> Iterator[Plan]:
        """Plans with one formula whose results may differ in dtype."""
        yield self
        if self.adds:
            yield replace(self, rounds=True)

    def vary(self, owner: nn.Module, number: float) -> None:
        """Set what ``run`` rereads on each call."""
        for module in owner.modules():
            if type(module) is nn.LeakyReLU:
                module.negative_slope = number

    def _sum(self, x: Tensor, out: Tensor) -> Tensor:
        if self.rounds and autocasts(x) and x.dtype is not torch.float64:
            return out.to(torch.get_autocast_dtype(x.device.type))
        return out


PLAN = "_srkernels_plan"  # the attribute of a taken module
# What every module has; the rest are settings of its class.
INTERNAL = frozenset(vars(nn.Module()))
Settings = tuple[tuple[str, Any], ...]


def frozen(value: Any) -> Any:
    """A snapshot of containers and what they hold."""
    if isinstance(value, (list, tuple)):
        return tuple(frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, frozen(v)) for k, v in value.items())
    return frozenset(value) if isinstance(value, set) else value


def same(a: Any, b: Any) -> bool:
    """Whether two frozen values are equal, tensors by identity."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or (not hasattr(a, "__array__") and not hasattr(b, "__array__") and bool(a == b))


def settings(module: nn.Module, live: Collection[str] = ()) -> Settings:
    """Attributes of ``module`` except ``live``; the value is ``...`` for those inherited from its class."""
    inherited = {
        name
        for cls in original_class(module).__mro__
        if cls not in nn.Module.__mro__
        for name in vars(cls)
        if not name.startswith("__")
    }
    names = sorted((inherited | vars(module).keys()) - INTERNAL - {*live, PLAN})
    return tuple((name, frozen(vars(module).get(name, ...))) for name in names)


def fingerprint(module: nn.Module) -> Any:
    """All that a forward may depend on except the values of parameters and buffers, which a proof redraws."""
    return tuple(
        (
            original_class(m),
            settings(m),
            tuple((name, child is None) for name, child in m._modules.items()),
            tuple(
                (name, None if t is None else (type(t), t.shape, t.dtype, t.device))
                for name, t in (*m._parameters.items(), *m._buffers.items())
            ),
        )
        for m in module.modules()
    )


def _is_plain(value: Any) -> bool:
    """Whether nobody can change what ``frozen`` made of a setting unnoticed by ``same``."""
    if isinstance(value, (tuple, frozenset)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


_PLAIN = (
    *(Number, str, bytes, type(None), type(...), type, types.FunctionType, types.BuiltinFunctionType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


@dataclass(frozen=True)
class OwnForward(Plan):
    """A block whose class has a forward of its own, determined by its layers and its settings.

    Attributes:
        children: their names.
        settings: attributes that it was proven with, except those that ``run`` reads.
    """

    children: tuple[str, ...]
    settings: Settings

    def parts(self) -> Collection[str]:
        return self.children

    def objection(self, owner: nn.Module) -> str | None:
        for name, value in self.settings:
            if not _is_plain(value):
                return f"keeps an object that may change ({name})"
        for name, buffer in owner.named_buffers(recurse=False):
            if not buffer.is_floating_point():
                return f"keeps a buffer of integers ({name})"
        return super().objection(owner)

    def unchanged(self, owner: nn.Module) -> bool:
        own = owner.__dict__
        for name, value in self.settings:
            if not same(value, frozen(own.get(name, ...))):
                return False
        return tuple(owner._modules) == self.children


@dataclass(frozen=True)
class Block(OwnForward):
    """A block whose fused form calls none of its layers."""

    layers: Tree

    adds = True

    def unchanged(self, owner: nn.Module) -> bool:
        return super().unchanged(owner) and tree(owner) == self.layers


@dataclass(frozen=True)
class ResidualPlan(Block):
    """x + res_scale * conv2(act(conv1(x)))"""

    conv1: str
    conv2: str
    activation: str
    activation_at: str | None  # None: a function
    scale_from: str | None  # attribute with res_scale; None: 1

    op = "residual_block"

    @staticmethod
    def match(module: nn.Module) -> Plan | str | None:
        layers = tree(module)
        kinds = dict(flat(layers))
        convs = [path for path in kinds if isinstance(at(module, path), nn.Conv2d)]
        others = [path for path in kinds if path not in convs]
        if is_sequence(module) or len(convs) != 2 or any(at(module, path)._modules for path in others):
            return None
        reason = next(filter(None, (why_not_in_a_block(at(module, path)) for path in convs)), None)
        if reason is not None:
            return reason
        for path in others:
            if kinds[path] not in ACTIVATIONS.values():
                layer = at(module, path)
                return f"a hook on {path}" if watched(layer) else f"two convolutions and {type(layer).__name__}"
        if len(others) > 1:
            return "two convolutions and more than one activation"
        first, second = at(module, convs[0]), at(module, convs[1])
        if (second.in_channels, second.out_channels) != (first.out_channels, first.in_channels):
            return "two convolutions whose channels do not lead back to the input's"
        scale_from = "res_scale" if isinstance(getattr(module, "res_scale", None), Real) else None
        place = others[0] if others else None
        activation = "relu" if place is None else str(kinds[place])  # a function: to be proven
        known = settings(module, () if scale_from is None else (scale_from,))
        return ResidualPlan(tuple(module._modules), known, layers, convs[0], convs[1], activation, place, scale_from)

    def describe(self) -> str:
        scale = f", times {self.scale_from}" if self.scale_from else ""
        return f"x + {self.conv2}({self.activation}({self.conv1}(x))){scale}"

    def vary(self, owner: nn.Module, number: float) -> None:
        super().vary(owner, number)
        if self.scale_from is not None:
            setattr(owner, self.scale_from, number)

    def run(self, owner: nn.Module, x: Any) -> Any:
        given = image(x)
        if given is None or not self.unchanged(owner):
            return None
        conv1, conv2 = at(owner, self.conv1), at(owner, self.conv2)
        scale = 1.0 if self.scale_from is None else getattr(owner, self.scale_from, None)
        if given.channels != conv1.in_channels or not isinstance(scale, Real):
            return None
        first = given.operands(conv1, None if self.activation_at is None else at(owner, self.activation_at))
        second = given.operands(conv2)
        if first is None or second is None:
            return None
        out = residual_block(
            x,
            *first[:2],
            *second[:2],
            activation=self.activation,
            slope=first[2],
            res_scale=float(scale),
            save=self.save,
        )
        return self._sum(x, out)


_DENSE_SCALE = 0.2
_DENSE_SLOPE = 0.2


@dataclass(frozen=True)
class DensePlan(Block):
    """x + 0.2 * conv5(x | x1 | x2 | x3 | x4)"""

    convs: tuple[str, ...]
    activations: tuple[str, ...]  # none: a function

    op = "dense_block"

    @staticmethod
    def match(module: nn.Module) -> Plan | str | None:
        layers = tree(module)
        kinds = dict(flat(layers))
        convs = tuple(path for path in kinds if isinstance(at(module, path), nn.Conv2d))
        activations = tuple(path for path in kinds if path not in convs)
        if is_sequence(module) or len(convs) != 5 or any(at(module, path)._modules for path in activations):
            return None
        for path in convs:
            reason = why_not_in_a_block(at(module, path))
            if reason is not None:
                return reason
        channels, growth = at(module, convs[0]).in_channels, at(module, convs[0]).out_channels
        expected = [("conv", channels + k * growth, channels if k == 4 else growth) for k in range(5)]
        if [kinds[path] for path in convs] != expected:
            return None
        for path in activations:
            if kinds[path] != "leaky_relu":
                return f"five dense convolutions and {type(at(module, path)).__name__}"
        slopes = {at(module, path).negative_slope for path in activations}
        if len(slopes) > 1 or any(slope <= 0 for slope in slopes):
            return "five dense convolutions with different or negative slopes"
        return DensePlan(tuple(module._modules), settings(module), layers, convs, activations)

    def describe(self) -> str:
        return f"x + {_DENSE_SCALE} * {self.convs[4]}(x | x1 | x2 | x3 | x4), leaky_relu"

    def run(self, owner: nn.Module, x: Any) -> Any:
        given = image(x)
        if given is None or not self.unchanged(owner):
            return None
        slopes = [at(owner, path).negative_slope for path in self.activations] or [_DENSE_SLOPE]
        slope = slopes[0]
        if any(s != slope for s in slopes) or not isinstance(slope, Real) or not float(slope) > 0:
            return None
        convs = [at(owner, path) for path in self.convs]
        if given.channels != convs[0].in_channels:
            return None
        found = [given.operands(conv) for conv in convs]
        weights = [f[0] for f in found if f is not None]
        biases = [f[1] for f in found if f is not None]
        if len(weights) < len(found):
            return None
        return self._sum(x, dense_block(x, weights, biases, slope=float(slope), res_scale=_DENSE_SCALE, save=self.save))


@dataclass(frozen=True)
class Chain:
    """Layers called in order, a convolution and the activation after it as one.

    Attributes:
        names: of all layers.
        pairs: of the convolutions that are computed together with what follows.
    """

    names: tuple[str, ...]
    pairs: tuple[str, ...]

    @staticmethod
    def of(layers: nn.Module) -> Chain | None:
        found = pairs(layers)
        return Chain(tuple(layers._modules), found) if found else None

    def describe(self, where: str = "") -> str:
        what = "convolution" if len(self.pairs) == 1 else f"{len(self.pairs)} convolutions"
        return f"{what}{where} with the activation after {'it' if len(self.pairs) == 1 else 'them'}"

    def unchanged(self, layers: nn.Module) -> bool:
        return tuple(layers._modules) == self.names

    def outputs(self, layers: nn.Module, x: Any, wanted: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
        """Names and outputs. A pair gives one, unless it was edited or its first is ``wanted``."""
        modules: list[Any] = [*layers._modules.values(), None, None]
        fused = False
        for i, name in enumerate(self.names):
            if fused:
                fused = False
                yield name, x
                continue
            out = None
            if name in self.pairs and name not in wanted and pair(*modules[i : i + 3]):
                out = _conv_act(x, modules[i], modules[i + 1])
            fused = out is not None
            if fused:
                x = out
            else:
                x = modules[i](x)
                yield name, x

    def last(self, layers: nn.Module, x: Any) -> Any:
        for _, out in self.outputs(layers, x):
            x = out
        return x


_OF_3X3 = "native", "triton"  # backends that compute the filters of blocks alone


def _conv_act(x: Any, conv: nn.Conv2d, activation: nn.Module) -> Tensor | None:
    given, others = image(x), passes(conv)
    if given is None or given.channels != conv.in_channels or others is None:
        return None
    if others and requested() in _OF_3X3:
        return None
    found = given.operands(conv, activation)
    if found is None:
        return None
    weight, bias, slope = found
    return conv2d_act(x, weight, bias, activation=str(kind(activation)), slope=slope, **others)


@dataclass(frozen=True)
class SequentialPlan(Plan):
    """``nn.Sequential``, and subclasses that keep its forward."""

    chain: Chain

    op = "conv2d_act"

    @staticmethod
    def match(module: nn.Module) -> Plan | str | None:
        chain = Chain.of(module) if is_sequence(module) else None
        return None if chain is None else SequentialPlan(chain)

    def parts(self) -> Collection[str]:
        names = self.chain.names
        return [name for before, name in itertools.pairwise(["", *names]) if {before, name} & set(self.chain.pairs)]

    def describe(self) -> str:
        return f"{self.chain.describe()}, where it is called whole"

    def run(self, owner: nn.Module, x: Any) -> Any:
        return self.chain.last(owner, x) if self.chain.unchanged(owner) else None


@dataclass(frozen=True)
class CompactPlan(OwnForward):
    """upsampler(layers(x)) + nearest(x): BasicSR's ``SRVGGNetCompact``."""

    body: str
    upsampler: str
    chain: Chain

    op = "conv2d_act"
    adds = True

    @staticmethod
    def match(module: nn.Module) -> Plan | str | None:
        found = {type(child): name for name, child in module._modules.items()}
        if set(found) != {nn.ModuleList, nn.PixelShuffle} or len(module._modules) != 2:
            return None
        body = found[nn.ModuleList]
        chain = Chain.of(at(module, body))
        if chain is None:
            return None
        return CompactPlan(tuple(module._modules), settings(module), body, found[nn.PixelShuffle], chain)

    def describe(self) -> str:
        return self.chain.describe(f" of {self.body}")

    def run(self, owner: nn.Module, x: Any) -> Any:
        if image(x) is None or not self.unchanged(owner):
            return None
        layers, upsampler = at(owner, self.body), at(owner, self.upsampler)
        if type(layers) is not nn.ModuleList or type(upsampler) is not nn.PixelShuffle:
            return None
        if not self.chain.unchanged(layers):
            return None
        out = upsampler(self.chain.last(layers, x))
        base = F.interpolate(x, scale_factor=upsampler.upscale_factor, mode="nearest")
        return self._sum(x, out + base)


@dataclass(frozen=True)
class FeaturesPlan(OwnForward):
    """Outputs of the layers requested, by name: BasicSR's ``VGGFeatureExtractor``."""

    chain: Chain

    op = "conv2d_act"

    @staticmethod
    def match(module: nn.Module) -> Plan | str | None:
        if tuple(module._modules) != ("vgg_net",) or not is_sequence(at(module, "vgg_net")):
            return None
        if not all(hasattr(module, name) for name in ("layer_name_list", "use_input_norm", "range_norm")):
            return None
        chain = Chain.of(at(module, "vgg_net"))
        return None if chain is None else FeaturesPlan(("vgg_net",), settings(module), chain)

    def describe(self) -> str:
        return f"{self.chain.describe(' of vgg_net')}, but for those asked for"

    def run(self, owner: Any, x: Any) -> Any:
        layers = owner._modules.get("vgg_net")
        if image(x) is None or not self.unchanged(owner) or not self.chain.unchanged(layers):
            return None
        if owner.range_norm:
            x = (x + 1) / 2
        if owner.use_input_norm:
            x = (x - owner.mean) / owner.std
        wanted = owner.layer_name_list
        # A copy: the next layer may work in place.
        return {name: y.clone() for name, y in self.chain.outputs(layers, x, wanted) if name in wanted}


PLANS: tuple[type[Plan], ...] = (ResidualPlan, DensePlan, CompactPlan, FeaturesPlan, SequentialPlan)
