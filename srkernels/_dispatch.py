"""Which backend runs an op: an explicit request, or the one measured fastest among those that can run.

A request (``use_backend`` or ``SRKERNELS_BACKEND``) either runs or raises with the reason; it never falls back.
The choice itself is made inside the registered op, on real tensors, so it is the same in eager mode and under
``torch.compile``.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import _native, _triton
from ._spec import Refusal
from ._validate import FLOAT_DTYPES, shown

BACKENDS = ("reference", "native", "triton", "pointwise")


def parts(candidate: str) -> tuple[str, list[str]]:
    """("triton", ["shift pixels=64", "weight stages=2"]) of "triton[shift pixels=64, weight stages=2]".

    A candidate is a backend, or one with a configuration of its kernels, a name for each pass that has its own.
    """
    if not candidate.endswith("]"):
        return candidate, []
    backend, _, names = candidate[:-1].partition("[")
    return backend, names.split(", ")


def configured(candidate: str, name: str) -> str:
    """``candidate`` with one more pass in the configuration of this name."""
    backend, names = parts(candidate)
    return f"{backend}[{', '.join([*names, name])}]"


# Fastest first, by device type. CPU: measured (bench/results); the interpreter is never an automatic choice.
# CUDA: ordered by counted bytes and launches until a results file of a GPU run says otherwise.
_AUTOMATIC = {"cpu": ("native",), "cuda": ("triton", "pointwise", "native")}


def _checked(name: str | None, origin: str) -> str | None:
    if name is not None and not (isinstance(name, str) and name in BACKENDS):
        raise ValueError(
            f"{origin}: backend must be one of {', '.join(BACKENDS)} or None (automatic), got {shown(name)}"
        )
    return name


_requested: str | None = _checked(os.environ.get("SRKERNELS_BACKEND") or None, "SRKERNELS_BACKEND")


def requested() -> str:
    """The backend requested by name, or "" for automatic choice: the form that ops take."""
    return _requested or ""


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every op inside the block on ``name``: ``"reference"``, ``"native"``, ``"triton"``, ``"pointwise"`` or
    None (automatic).

    Process-wide, as PyTorch's own backend flags are. A backward pass uses the backend of its forward pass.

    Raises:
        ValueError: unknown name. An op inside the block raises RuntimeError if that backend cannot run it.
    """
    global _requested
    previous, _requested = _requested, _checked(name, "use_backend")
    try:
        yield
    finally:
        _requested = previous


def why_not(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    refuses: Refusal | None = None,
    detail: tuple[int, ...] = (),
    automatic: bool = False,
) -> str | None:
    """Why ``backend`` cannot run on this device and dtype, or None if it can; the op's own reasons come last."""
    if backend == "reference":
        return None
    if dtype not in FLOAT_DTYPES:
        return f"no {dtype} kernel"
    reason = _native.why_not(device) if backend == "native" else _triton.why_not(device)
    return reason if reason is not None or refuses is None else refuses(backend, device, dtype, detail, automatic)


def ranked(
    device: torch.device, dtype: torch.dtype, refuses: Refusal | None = None, detail: tuple[int, ...] = ()
) -> list[tuple[str, str | None]]:
    """Backends in automatic order, each with the reason against it (None: eligible)."""
    order = _AUTOMATIC.get(device.type, ())
    return [(b, why_not(b, device, dtype, refuses, detail, True)) for b in order] + [("reference", None)]


# (op package, request, device, dtype, the op's reasons, detail) -> backend module. Availability cannot change within
# a process, except for the interpreter switch, which _triton reads once.
_cache: dict[tuple[str, str, torch.device, torch.dtype, Refusal | None, tuple[int, ...]], Any] = {}


def implementation(
    package: str, backend: str, x: Tensor, refuses: Refusal | None = None, detail: tuple[int, ...] = ()
) -> Any:
    """The module ``package.<backend>`` that runs on ``x``, or what it has in its place for a configuration.

    Raises RuntimeError if an explicit request cannot run.
    """
    key = (package, backend, x.device, x.dtype, refuses, detail)
    found = _cache.get(key)
    if found is None:
        name, configuration = parts(backend)
        if backend:
            reason = why_not(name, x.device, x.dtype, refuses, detail)
            if reason is not None:
                op = package.rpartition(".")[2]
                raise RuntimeError(f"{op}: backend {backend!r} was asked for but cannot run: {reason}")
        else:
            name = next(b for b, reason in ranked(x.device, x.dtype, refuses, detail) if reason is None)
        found = importlib.import_module(f"{package}.{name}")
        if configuration:
            found = found.configured(configuration)
        _cache[key] = found
    return found


_P = ParamSpec("_P")
_R = TypeVar("_R")


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for ``x``; meta has none, and Dynamo in torch 2.11 cannot ask which devices do."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def without_autocast(run: Callable[_P, _R]) -> Callable[_P, _R]:
    """For our own eager operations, in ops and before them: autocast would change the promised dtypes."""

    @functools.wraps(run)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        flat = (x for a in args for x in (a if isinstance(a, tuple) else (a,)))
        first = next(x for x in flat if isinstance(x, Tensor))
        if not autocasts(first):
            return run(*args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return run(*args, **kwargs)

    return wrapped
