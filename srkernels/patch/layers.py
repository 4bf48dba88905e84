"""What single layers are to the fused ops, checked on each call: a network may have been edited since patching."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from .._dispatch import autocasts

ACTIVATIONS: Mapping[type[nn.Module], str] = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.PReLU: "prelu"}
IDENTITY = "identity"
# As they are now: somebody may replace PyTorch's own forward.
_FORWARDS: dict[Any, Any] = {cls: cls.forward for cls in (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity)}
_NAMES = {**ACTIVATIONS, nn.Identity: IDENTITY}
_CONVOLUTION = nn.Conv2d.forward, nn.Conv2d._conv_forward
# A 3x3 convolution that keeps the size of its image.
_USUAL = {"kernel_size": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
_VALUES = tuple(_USUAL.values())
_PADDINGS = (1, 1), "same"
_PASSES = "stride", "padding", "dilation", "groups", "padding_mode"
_SEQUENTIAL = nn.Sequential.forward
_CALL = nn.Module.__call__
_PLAIN = (Tensor, nn.Parameter)

# ("conv", in, out) of a 3x3 convolution that blocks have, the name of an activation, "identity"; None: any other.
Kind = tuple[str, int, int] | str | None
# Names and kinds of a module's layers in order; a container inside is listed by its own.
Tree = tuple[tuple[str, Any], ...]


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, patched or not, as its author wrote it."""
    cls: type[nn.Module] = getattr(type(module), "_srkernels_original", type(module))
    return cls


def watched(module: nn.Module) -> bool:
    """Whether a hook expects to see this module's own call."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it computes what ``nn.Conv2d`` does; its weight may be parametrised."""
    if not isinstance(module, nn.Conv2d):
        return False
    cls = type(module)
    return (
        cls.forward is _CONVOLUTION[0]
        and cls._conv_forward is _CONVOLUTION[1]
        and cls.__call__ is _CALL
        and "forward" not in module.__dict__
        and "_conv_forward" not in module.__dict__
    )


def is_sequence(module: nn.Module) -> bool:
    """Whether it calls its children in their order and nothing else."""
    return (
        original_class(module).forward is _SEQUENTIAL
        and type(module).__call__ is _CALL
        and "forward" not in module.__dict__
    )


def kind(module: nn.Module) -> Kind:
    if watched(module):
        return None
    if is_convolution(module):
        fits = tuple([getattr(module, name) for name in _USUAL]) == _VALUES and module.padding in _PADDINGS
        return ("conv", module.in_channels, module.out_channels) if fits else None
    cls = type(module)
    if cls in _FORWARDS and cls.forward is _FORWARDS[cls] and "forward" not in module.__dict__:
        return _NAMES[cls]
    return None


def tree(module: nn.Module) -> Tree:
    """The layers of ``module`` and of containers directly inside it."""
    found: list[tuple[str, Any]] = []
    for name, child in module._modules.items():
        if child is None:
            continue
        if is_sequence(child) and not watched(child):
            inside = [(n, None if c is None else kind(c)) for n, c in child._modules.items()]
            found.append((name, tuple(inside) if inside else IDENTITY))
        else:
            found.append((name, kind(child)))
    return tuple(found)


def flat(layers: Tree) -> Iterator[tuple[str, Kind]]:
    """Paths and kinds of all layers but identities."""
    for name, found in layers:
        inside = found if isinstance(found, tuple) and isinstance(found[0], tuple) else None
        for path, k in [(f"{name}.{n}", k) for n, k in inside] if inside else [(name, found)]:
            if k != IDENTITY:
                yield path, k


def at(owner: nn.Module, path: str) -> Any:
    """The layer at ``path``."""
    for name in path.split("."):
        owner = owner._modules[name]  # type: ignore[assignment]
    return owner


class Image(NamedTuple):
    """What the ops accept along with an image.

    Attributes:
        channels: of the image.
        device: of every tensor.
        dtypes: of parameters; several where autocast casts them to one.
    """

    channels: int
    device: torch.device
    dtypes: tuple[torch.dtype, ...]

    def has(self, parameter: Any, shape: tuple[int, ...]) -> bool:
        return (
            type(parameter) in _PLAIN
            and parameter.shape == shape
            and parameter.dtype in self.dtypes
            and parameter.device == self.device
        )

    def operands(self, conv: nn.Conv2d, activation: nn.Module | None = None) -> tuple[Any, Any, Any] | None:
        """Weight, bias and slope; None where the ops would not take them, or not as PyTorch would.

        Reads each once: a parametrised weight is computed, and may change, when it is read.
        """
        weight, bias, out = conv.weight, conv.bias, conv.out_channels
        filters = (out, conv.in_channels // conv.groups, *conv.kernel_size)
        if not self.has(weight, filters) or not (bias is None or self.has(bias, (out,))):
            return None
        slope: Any = None
        if isinstance(activation, nn.LeakyReLU):
            if not isinstance(activation.negative_slope, Real):
                return None
            slope = float(activation.negative_slope)
        elif isinstance(activation, nn.PReLU):
            slope = activation.weight
            if not self.has(slope, (1,)) and not self.has(slope, (out,)):
                return None
        return weight, bias, slope


_AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)


def image(x: Any) -> Image | None:
    """What goes with ``x``; None where the ops do not compute it: a proxy, a subclass, a nested or unbatched tensor."""
    if type(x) not in _PLAIN or x.layout is not torch.strided or x.is_nested or x.dim() != 4:
        return None
    if not x.is_floating_point() or x.numel() == 0:
        return None
    dtypes = _AUTOCAST if x.dtype in _AUTOCAST and autocasts(x) else (x.dtype,)
    return Image(x.shape[1], x.device, dtypes)


def pairs(layers: nn.Module) -> tuple[str, ...]:
    """Names of the convolutions among ``layers``, called in their order, that one op computes with what follows."""
    modules = [*layers._modules.values(), None, None]
    return tuple(name for i, name in enumerate(layers._modules) if pair(*modules[i : i + 3]))


def pair(conv: nn.Module | None, after: nn.Module | None, then: nn.Module | None) -> bool:
    """Whether one op may compute ``conv`` and ``after``, with ``then`` called next."""
    if conv is None or after is None or not is_convolution(conv) or watched(conv):
        return False
    return kind(after) in _SLOPED and (not keeps_output(after) or (then is not None and is_convolution(then)))


_SLOPED = tuple(ACTIVATIONS.values())


def keeps_output(activation: nn.Module) -> bool:
    """Whether the op's backward pass needs an output that PyTorch's does not, so that nothing may write into it."""
    return isinstance(activation, nn.LeakyReLU) and not activation.inplace


def why_no_values(module: nn.Module) -> str | None:
    """Why a module cannot be proven yet."""
    for p in itertools.chain(module.parameters(), module.buffers()):
        if nn.parameter.is_lazy(p):
            return "not initialised: patch it after its first forward"
        if p.is_meta:
            return "on the meta device: patch it once it has values"
    return None


def passes(conv: nn.Conv2d) -> dict[str, Any] | None:
    """The arguments of ``conv2d_act`` that say how filters pass over an image, none for those of blocks.

    None where they were edited to what PyTorch reads in another way: a list, one number, a mode's padding.
    """
    if kind(conv) is not None:
        return {}
    found = {name: getattr(conv, name) for name in _PASSES}
    for size in (conv.stride, conv.dilation, conv.padding):
        if type(size) is not str and not (type(size) is tuple and len(size) == 2 and set(map(type, size)) == {int}):
            return None
    if conv.padding_mode != "zeros":
        around = conv._reversed_padding_repeated_twice  # what PyTorch pads, as it was at first
        rows, columns = conv.padding if type(conv.padding) is tuple else (around[2], around[0])
        if list(around) != [columns, columns, rows, rows]:
            return None
        found["padding"] = (rows, columns)
    return found


def why_not_called(conv: nn.Conv2d) -> str | None:
    """Why no op computes a convolution, whatever its filters."""
    hooks = [*conv._forward_pre_hooks.values(), *conv._forward_hooks.values()]
    if watched(conv):
        names = {getattr(hook, "__name__", type(hook).__name__) for hook in hooks}
        return f"a convolution with a hook ({', '.join(sorted(names)) or 'backward'})"
    if not is_convolution(conv):
        return f"{type(conv).__name__}, a convolution with its own forward"
    return None


def why_not_in_a_block(conv: nn.Conv2d) -> str | None:
    """Why no block's op computes a convolution, whatever is around it."""
    reason = why_not_called(conv)
    if reason is not None:
        return reason
    if conv.kernel_size != (3, 3):
        return f"a {'x'.join(map(str, conv.kernel_size))} convolution"
    for name, usual in _USUAL.items():
        value = getattr(conv, name)
        if value != usual:
            value = value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
            return f"a convolution with {name} {value}"
    return None if conv.padding in _PADDINGS else f"a convolution with padding {conv.padding}"


def why_left(layer: nn.Module, owner: nn.Module | None, then: nn.Module | None) -> str:
    """Why a layer without children was left; ``owner`` calls it, and ``then`` next where it is a container."""
    reason = why_no_values(layer)
    if reason is not None:
        return reason
    if not isinstance(layer, nn.Conv2d):
        return f"no op computes {type(layer).__name__}"
    reason = why_not_called(layer)
    if reason is not None:
        return reason
    if owner is None:
        return "a convolution alone"
    if not is_sequence(owner):
        return f"part of {original_class(owner).__name__}, whose own forward matches no known block"
    if then is None:
        return "no activation after it"
    after = type(then).__name__
    if kind(then) not in _SLOPED:
        return f"followed by {after}"
    return f"followed by {after}, whose output may be written to" if keeps_output(then) else "left with its container"
