"""The short way through PyTorch in ordinary eager execution.

A registered op costs a few microseconds in the dispatcher, and ``Function.apply`` in its ``setup_context`` form some
twenty in ``inspect``, more than a small kernel takes. Where nothing is watching (no compiler, functorch transform,
dispatch mode, profiler or tensor subclass) both are left out: the same implementation is called with the same
arguments. Where something is, calls take the registered op, which is what it has to see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = frozenset((Tensor, Parameter, type(None)))
transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_profiling: Callable[[], bool] = torch._C._autograd._profiler_enabled


def unwatched(*tensors: Tensor | None) -> bool:
    """True if an implementation may be called on these directly."""
    if torch.compiler.is_compiling() or transforms_active() or _dispatch_modes() or _profiling():
        return False
    # Not all(...): its generator alone takes a third of a microsecond.
    for x in tensors:  # noqa: SIM110
        if type(x) not in _PLAIN:
            return False
    return True


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
    plain = super(torch.autograd.Function, Plain).apply  # type: ignore[misc]

    def apply(*args: Any) -> Any:
        if torch.compiler.is_compiling() or transforms_active():
            return function.apply(*args)
        return plain(*args)

    return apply
