"""A plan's forward in place of a module's own: its class becomes a subclass of itself, and nothing else changes."""

from __future__ import annotations

import functools
import hashlib
import types
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from .._modes import in_forward_mode, transforms_active
from .blocks import PLAN, Plan
from .layers import original_class


class Fused:
    """Mixed into the class of a taken module. Without a plan an instance acts as one of its original class."""

    _srkernels_original: type[nn.Module]
    _srkernels_own: dict[str, Any]


def plan_of(module: nn.Module) -> Plan | None:
    return module.__dict__.get(PLAN) if isinstance(module, Fused) else None


def install(module: nn.Module, plan: Plan) -> None:
    module.__dict__[PLAN] = plan
    module.__class__ = _fused_class(original_class(module))


def remove(module: nn.Module) -> bool:
    """Whether there was a plan to remove."""
    if not isinstance(module, Fused):
        return False
    had = module.__dict__.pop(PLAN, None) is not None
    if "_srkernels_original" in vars(type(module)):  # not where something else made a subclass of it
        module.__class__ = module._srkernels_original  # type: ignore[assignment]
    return had


def _observed() -> bool:
    """Whether something wants to see the calls of all modules, or derivatives that the ops lack."""
    return bool(
        _has_any_global_hook()
        or torch._C._get_tracing_state()
        or torch.compiler.is_exporting()
        or transforms_active()
        or in_forward_mode()
    )


_classes: dict[type[nn.Module], Any] = {}


def _own(cls: type[nn.Module]) -> dict[str, Any]:
    """Methods and plain attributes of a class, which its forward may use."""
    kinds = (types.FunctionType, int, float, str, bool, type(None))
    names = {n for c in cls.__mro__ if c not in nn.Module.__mro__ for n in vars(c) if not n.startswith("__")}
    return {name: value for name in names if isinstance(value := getattr(cls, name), kinds)}


def _digest(own: dict[str, Any]) -> str:
    """Digest of a class's code, for a pickle read where its source may differ."""

    def written(value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            return written(value.__code__), repr(value.__defaults__), repr(value.__kwdefaults__)
        if isinstance(value, types.CodeType):
            return value.co_code, value.co_names, [written(c) for c in value.co_consts]
        return repr(value)

    return hashlib.sha256(repr([(name, written(own[name])) for name in sorted(own)]).encode()).hexdigest()


def _unchanged(cls: type[nn.Module], own: dict[str, Any]) -> bool:
    return all(getattr(cls, name, ...) is value for name, value in own.items())


def _fused_class(original: type[nn.Module]) -> type[nn.Module]:
    known = _classes.get(original)
    if known is not None and _unchanged(original, known._srkernels_own):
        return known
    own = {"forward": original.forward} if original.forward is nn.Sequential.forward else _own(original)

    @functools.wraps(original.forward)  # torch.fx reads the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self.__dict__.get(PLAN)
        if plan is not None and len(args) == 1 and not kwargs and not _observed():
            out = plan.run(self, args[0]) if _unchanged(original, own) else None
            if out is not None:
                return out
        return original.forward(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        reduced: Any = original.__reduce_ex__(self, max(2, int(protocol)))
        if reduced[1][:1] == (type(self),):
            return _rebuild, (original, _digest(own), *reduced[1][1:]), *reduced[2:]
        return original if reduced[0] is type(self) else reduced[0], *reduced[1:]  # pickled its own way

    def prepare_scriptable(self: Any) -> nn.Module:
        bare = original.__new__(original)
        bare.__dict__.update(self.__dict__)
        bare.__dict__["_modules"] = dict(self._modules)  # which torch.jit.script writes to
        bare.__dict__.pop(PLAN, None)
        return bare

    body = {
        "forward": forward,
        "__reduce_ex__": reduce,
        "__prepare_scriptable__": prepare_scriptable,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "_srkernels_original": original,
        "_srkernels_own": own,
    }
    _classes[original] = type(original.__name__, (Fused, original), body)
    return _classes[original]


def _rebuild(original: type[nn.Module], digest: str, *args: Any) -> nn.Module:
    module = original.__new__(original, *args)
    fused: Any = _fused_class(original)
    if _digest(fused._srkernels_own) == digest:  # else a plan was proven for another class of this name
        module.__class__ = fused
    return module
