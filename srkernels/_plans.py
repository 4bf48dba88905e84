"""What ``patch`` knows: for each kind of block a plan that names its parts and computes it by the fused ops.

A matcher looks at structure alone and gives a plan, or a sentence on why a block that looks known is not, or None. It
may be wrong: ``patch`` proves every plan before it is used.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from .functional import conv2d_act, dense_block, residual_block
from .ops.conv import is_plain


class Plan(ABC):
    """How the fused ops compute one module, ``owner``. Holds names alone, so that it can be pickled and copied."""

    @property
    def sample_size(self) -> tuple[int, int]:
        """Height and width of the image it is proven on."""
        return 9, 8

    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Children that it stands for."""

    @abstractmethod
    def describe(self) -> str: ...

    @abstractmethod
    def run(self, owner: nn.Module, x: Tensor) -> Any: ...

    def passed_over(self, owner: nn.Module) -> Iterator[nn.Module]:
        """Modules whose own call does not happen."""
        return itertools.islice(owner.modules(), 1, None)

    def proofs(self, owner: nn.Module) -> Iterator[tuple[nn.Module, Plan]]:
        """What to prove: modules and the plans that should equal them."""
        yield owner, self


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


def watched(module: nn.Module) -> bool:
    """Whether a hook expects to see this module's own call."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


@dataclass(frozen=True)
class _ResidualPlan(Plan):
    """x + res_scale * conv2(act(conv1(x)))"""

    conv1: str
    conv2: str
    activation: _Activation
    scale_from: str | None  # attribute with res_scale; None: 1

    def parts(self) -> tuple[str, ...]:
        return tuple(path.split(".")[0] for path in (self.conv1, self.conv2, self.activation.prelu or self.conv1))

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


def _match_residual(module: nn.Module) -> Plan | str | None:
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
    activation = _activation(others[0][1], others[0][0]) if others else _Activation("relu")  # functional: to be proven
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


_DENSE_SCALE = 0.2


@dataclass(frozen=True)
class _DensePlan(Plan):
    """x + 0.2 * conv5(x | x1 | x2 | x3 | x4)"""

    convs: tuple[str, ...]
    slope: float

    def parts(self) -> tuple[str, ...]:
        return tuple(path.split(".")[0] for path in self.convs)

    def describe(self) -> str:
        return f"x + {_DENSE_SCALE} * {self.convs[4]}(x | x1 | x2 | x3 | x4), leaky_relu {self.slope:g}"

    def run(self, owner: nn.Module, x: Tensor) -> Tensor:
        convs = [_convolution_at(owner, path) for path in self.convs]
        weights, biases = [c.weight for c in convs], [c.bias for c in convs]
        return dense_block(x, weights, biases, slope=self.slope, res_scale=_DENSE_SCALE)


def _match_dense(module: nn.Module) -> Plan | str | None:
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
    return _DensePlan(tuple(path for path, _ in convs), slopes[0] if slopes else 0.2)  # functional: to be proven


@dataclass(frozen=True)
class _Pair:
    """A convolution and the activation after it, by their names in one container."""

    conv: str
    after: str
    activation: _Activation


def _pairs(layers: nn.Module) -> tuple[_Pair, ...]:
    """The pairs among ``layers``, which are called in their order."""
    found = []
    for (name, child), (after, follower) in itertools.pairwise(layers.named_children()):
        activation = _activation(follower, after)
        if activation is not None and _is_convolution(child) and _why_not_fused(child) is None:
            found.append(_Pair(name, after, activation))
    return tuple(found)


def _outputs(
    layers: nn.Module, pairs: Collection[_Pair], x: Tensor, wanted: Collection[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Names and outputs of ``layers``, in order. A pair gives one, unless a hook or ``wanted`` asks for its first."""
    fused = {pair.conv: pair for pair in pairs}
    done = ""
    for name, child in layers.named_children():
        if name == done:
            continue
        pair = fused.get(name)
        if pair and name not in wanted and not watched(child) and not watched(_at(layers, pair.after)):
            conv, slope = cast(nn.Conv2d, child), pair.activation.slope(layers)
            x = conv2d_act(x, conv.weight, conv.bias, activation=pair.activation.name, slope=slope)
            name = done = pair.after
        else:
            x = child(x)
        yield name, x


def _last_output(layers: nn.Module, pairs: Collection[_Pair], x: Tensor) -> Tensor:
    for _, out in _outputs(layers, pairs, x):
        x = out
    return x


@dataclass(frozen=True)
class _SequentialPlan(Plan):
    """Children in order, a convolution and the activation after it as one."""

    pairs: tuple[_Pair, ...]

    def parts(self) -> tuple[str, ...]:
        return tuple(name for pair in self.pairs for name in (pair.conv, pair.after))

    def passed_over(self, owner: nn.Module) -> Iterator[nn.Module]:
        return iter(())  # hooks are looked at pair by pair

    def proofs(self, owner: nn.Module) -> Iterator[tuple[nn.Module, Plan]]:
        """Each pair for itself: what lies between may not take any image size."""
        for pair in self.pairs:
            alone = _Pair("0", "1", replace(pair.activation, prelu=pair.activation.prelu and "1"))
            yield nn.Sequential(_at(owner, pair.conv), _at(owner, pair.after)), _SequentialPlan((alone,))

    def describe(self) -> str:
        return f"{len(self.pairs)} convolutions with the activation after them, where it is called whole"

    def run(self, owner: nn.Module, x: Tensor) -> Tensor:
        return _last_output(owner, self.pairs, x)


def _match_sequential(module: nn.Module) -> Plan | None:
    pairs = _pairs(module) if type(module) is nn.Sequential else ()
    return _SequentialPlan(pairs) if pairs else None


@dataclass(frozen=True)
class _CompactPlan(Plan):
    """upsampler(layers(x)) + nearest(x)"""

    layers: str
    upsampler: str
    pairs: tuple[_Pair, ...]

    def parts(self) -> tuple[str, ...]:
        return self.layers, self.upsampler

    def describe(self) -> str:
        return f"{len(self.pairs)} convolutions of {self.layers} with the activation after them"

    def run(self, owner: nn.Module, x: Tensor) -> Tensor:
        upsampler = cast(nn.PixelShuffle, _at(owner, self.upsampler))
        out = upsampler(_last_output(_at(owner, self.layers), self.pairs, x))
        return out + F.interpolate(x, scale_factor=upsampler.upscale_factor, mode="nearest")


def _match_compact(module: nn.Module) -> Plan | None:
    """BasicSR's ``SRVGGNetCompact``."""
    children = {type(child): name for name, child in module.named_children()}
    if set(children) != {nn.ModuleList, nn.PixelShuffle} or len(module._modules) != 2:
        return None
    layers = children[nn.ModuleList]
    pairs = _pairs(_at(module, layers))
    return _CompactPlan(layers, children[nn.PixelShuffle], pairs) if pairs else None


@dataclass(frozen=True)
class _FeaturesPlan(Plan):
    """Outputs of those layers that are asked for, by name."""

    pairs: tuple[_Pair, ...]

    @property
    def sample_size(self) -> tuple[int, int]:
        return 33, 32  # five poolings

    def parts(self) -> tuple[str, ...]:
        return ("vgg_net",)

    def describe(self) -> str:
        return f"{len(self.pairs)} convolutions of vgg_net with the activation after them, but for those asked for"

    def run(self, owner: Any, x: Tensor) -> dict[str, Tensor]:
        if owner.range_norm:
            x = (x + 1) / 2
        if owner.use_input_norm:
            x = (x - owner.mean) / owner.std
        wanted = set(owner.layer_name_list)
        # A copy: the layer after may work in place.
        return {name: y.clone() for name, y in _outputs(owner.vgg_net, self.pairs, x, wanted) if name in wanted}


def _match_features(module: nn.Module) -> Plan | None:
    """BasicSR's ``VGGFeatureExtractor``."""
    layers = module._modules.get("vgg_net")
    if type(layers) is not nn.Sequential or len(module._modules) != 1:
        return None
    if not all(hasattr(module, name) for name in ("layer_name_list", "use_input_norm", "range_norm")):
        return None
    pairs = _pairs(layers)
    return _FeaturesPlan(pairs) if pairs else None


@dataclass(frozen=True)
class Recipe:
    """The op that computes what ``match`` finds."""

    op: str
    match: Callable[[nn.Module], Plan | str | None]


RECIPES = (
    Recipe("residual_block", _match_residual),
    Recipe("dense_block", _match_dense),
    Recipe("conv2d_act", _match_compact),
    Recipe("conv2d_act", _match_features),
    Recipe("conv2d_act", _match_sequential),
)
