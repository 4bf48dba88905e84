"""The short way through PyTorch in ordinary eager execution.

A registered op costs a few microseconds in the dispatcher, and ``Function.apply`` in its ``setup_context`` form some
twenty in ``inspect``, more than a small kernel takes. Where nothing is watching (no compiler, tracer, functorch
transform, dispatch mode, profiler or tensor subclass) both are left out: the same implementation is called with the
same arguments. Where something is, calls take the registered op, which is what it has to see.

On CPU the rest is Python: checks, choice of a backend, layouts, a few dozen functions. In a training loop, whose data
has driven them out of the caches, they take a tenth of a millisecond per pass. All of it depends on the operands'
``signature`` and the settings alone, so that an op can decide once and ``remember``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.nn import Parameter

from . import _native

_Call = TypeVar("_Call")
_PLAIN = frozenset((Tensor, Parameter, type(None)))
transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_profiling: Callable[[], bool] = torch._C._autograd._profiler_enabled
_tracing: Callable[[], Any] = torch._C._get_tracing_state  # torch.jit.trace, and ONNX's export by it
# Tensors whose numbers are not what their memory holds: a negation or zeros not yet written, batches of older vmaps.
_PENDING = 0
for _key in ("Negative", "ZeroTensor", "Batched"):
    _PENDING |= torch._C.DispatchKeySet(torch._C._dispatch_key_parse(_key)).raw_repr()


def in_forward_mode() -> bool:
    """Whether tangents may be carried forward: a Function has to be asked, which refuses as it knows none."""
    return forward_ad._current_level >= 0


def records(*tensors: Tensor | None) -> bool:
    """Whether a call on these leaves something for a derivative."""
    if not torch.is_grad_enabled():
        return False
    # Not any(...): its generator alone takes a third of a microsecond.
    for x in tensors:  # noqa: SIM110
        if x is not None and x.requires_grad:
            return True
    return False


_WATCHERS: tuple[Callable[[], Any], ...] = (transforms_active, _dispatch_modes, _profiling, _tracing, in_forward_mode)


def unwatched(*tensors: Tensor | None) -> bool:
    """True if an implementation may be called on these directly."""
    if is_compiling():
        return False
    for watches in _WATCHERS:
        if watches():
            return False
    for x in tensors:
        if type(x) not in _PLAIN:
            return False
        if x is not None and torch._C._dispatch_keys(x).raw_repr() & _PENDING:
            return False
    return True


_core = None if _native.why_not(torch.device("cpu")) else _native.extension("cpu")
if _core is not None:
    _core.set_watchers(_WATCHERS)


def signature(*tensors: Tensor | None) -> bytes | None:
    """All that a decision about these may depend on; None if they are watched, or not plain CPU tensors."""
    # The core itself asks those that watch: cold Python code would cost as much as all the rest.
    return None if _core is None or is_dynamo_compiling() else _core.signature(*tensors)


UNDECIDED = object()  # for what is not among the remembered
_MOST = 1024  # networks with images of ever new sizes must not fill the memory


def remember(calls: dict[Any, _Call], key: Any, call: _Call) -> _Call:
    """``call``, from now on under ``key``."""
    if len(calls) >= _MOST:
        calls.clear()
    calls[key] = call
    return call


def unwatched_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` for a ``forward`` that takes the context, without the search for a transform."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


def short_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply``; in plain eager that of its older form, whose ``forward`` takes the context.

    The ``setup_context`` form, which transforms need, binds its signature anew and enters Python twice in each call.
    """

    class Plain(function):  # type: ignore[valid-type, misc]
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        setup_context = torch.autograd.Function.setup_context

    Plain.__name__ = Plain.__qualname__ = function.__name__  # what grad_fn shows
    plain = unwatched_apply(Plain)

    def apply(*args: Any) -> Any:
        if is_compiling() or transforms_active():
            return function.apply(*args)
        return plain(*args)

    return apply


def map_one_by_one(op: Any) -> Callable[..., Any]:
    """The rule by which ``torch.vmap`` runs a registered op: once for each element, results stacked."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        def element(i: int) -> list[Any]:
            # Of a list of settings ``d`` is a list too.
            return [a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]

        if not info.batch_size:
            raise RuntimeError(f"{op.name().partition('::')[2]}: torch.vmap of no element")
        results = [op(*element(i)) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return stacked, [0] * len(stacked)

    return rule
