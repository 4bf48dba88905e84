"""Launches of Triton kernels, prepared once for each class of operands. Imports triton.

``kernel[grid](...)`` binds some thirty arguments, inspects each and looks the kernel up under all of them, at every
launch. What it finds depends on little: on sizes, strides, dtypes and device of the tensors, on whether their addresses
are divisible by 16, and on settings. So for each such class a launch goes Triton's way once, which returns the compiled
kernel; from then on that is launched, on the stream that is current and with the hooks that are set at the time.
Options of the compiler that are set through ``triton.knobs`` hold for classes that were not launched before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from torch import Tensor
from torch.torch_version import TorchVersion
from triton.compiler import CompiledKernel

# (launcher, class) -> what makes its launches, from tensors and the arguments that follow them. Networks have dozens.
_ready: dict[Hashable, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
_MOST = 4096

# A compiled kernel takes the grid and all arguments, constants too: the form that was read and tried. On AMD's GPUs
# Triton also looks at how large a tensor's memory is.
_TAKES_ALL = "3.6" <= TorchVersion(triton.__version__) < "3.10" and torch.version.hip is None


class Launch:
    """``kernel`` by ``programs``: what it takes after its tensors, and Triton's options."""

    def __init__(self, kernel: Any, programs: int, *arguments: Any, **options: int) -> None:
        self.kernel, self.grid, self.arguments, self.options = kernel, (programs, 1, 1), arguments, options

    def __call__(self, *tensors: Tensor | None) -> Callable[..., Any]:
        """Make it, and return what makes the next one, from tensors and arguments."""
        by_triton = self.kernel[self.grid]
        found = by_triton(*tensors, *self.arguments, **self.options)
        if _TAKES_ALL and isinstance(found, CompiledKernel):
            return found[self.grid]
        return functools.partial(by_triton, **self.options)


class Launcher:
    """``plan(*tensors, *settings)`` says what to launch and is asked once for each class of operands.

    It may depend on the tensors' sizes, strides, dtypes and device and on the settings, and on nothing else.
    """

    def __init__(self, plan: Callable[..., Launch]) -> None:
        self.plan = plan

    def __call__(self, tensors: tuple[Tensor | None, ...], *settings: Hashable) -> None:
        """Launch on ``tensors``, the kernel's first arguments, with the first of their device current."""
        forms = [None if x is None else (x.shape, x.stride(), x.dtype, x.data_ptr() & 15 == 0) for x in tensors]
        key = (self, *forms, settings, tensors[0].get_device())  # type: ignore[union-attr]
        ready = _ready.get(key)
        if ready is not None:
            again, arguments = ready
            again(*tensors, *arguments)
            return
        if len(_ready) >= _MOST:
            _ready.clear()
        launch = self.plan(*tensors, *settings)
        _ready[key] = launch(*tensors), launch.arguments


@contextmanager
def redirected(note: Callable[..., Any]) -> Iterator[None]:
    """Inside, every launch is planned anew and handed to ``note(launch, *tensors)``, which may make it or not."""
    before = Launcher.__call__

    def noted(self: Launcher, tensors: tuple[Tensor | None, ...], *settings: Hashable) -> None:
        note(self.plan(*tensors, *settings), *tensors)

    Launcher.__call__ = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Launcher.__call__ = before  # type: ignore[method-assign]
