"""Lazy access to Triton: availability with a reason, and what its launchers share."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch.torch_version import TorchVersion

from ._modes import capturing
from ._spec import AotCase
from ._workspace import per_stream


@functools.cache
def interpreting() -> bool:
    """True if kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` before the first import of triton)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


_NOT_INSTALLED = "triton is not installed (pip install srkernels[triton])"


@functools.cache
def why_no_interpreter() -> str | None:
    """Why Triton's interpreter cannot run kernels here, whether or not it was requested; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return _NOT_INSTALLED
    import numpy
    import triton

    if TorchVersion(triton.__version__) < "3.7" and TorchVersion(numpy.__version__) >= "2.4":
        # Its loops call int() on one-element arrays, which NumPy has refused since 2.4.
        return "the interpreter of Triton before 3.7 needs NumPy before 2.4"
    return None


def why_not(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on ``device``; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return _NOT_INSTALLED
    if device.type == "cpu":
        if not interpreting():
            return "CPU tensors need Triton's interpreter: set TRITON_INTERPRET=1"
        return why_no_interpreter()
    if device.type != "cuda":
        return f"no Triton kernels for {device.type} tensors"
    return _why_no_launch(device) if torch.cuda.is_available() else "torch sees no CUDA or ROCm device"


_launched: dict[torch.device, str | None] = {}


def _why_no_launch(device: torch.device) -> str | None:
    """Triton compiles its launcher, in C, and loads its driver when a kernel is first launched: so one is."""
    if device not in _launched:
        if capturing():  # what is captured was launched before, by those who know how to capture
            return None
        try:
            _launch_nothing(device)
        except torch.OutOfMemoryError:  # says nothing of later
            return None
        except Exception as error:
            first, *_ = str(error).splitlines() or [""]
            _launched[device] = f"Triton cannot launch a kernel on {device}: {type(error).__name__}: {first}"
            warnings.warn(f"srkernels: {_launched[device]}. Other backends run instead.", stacklevel=2)
        else:
            _launched[device] = None
    return _launched[device]


def _launch_nothing(device: torch.device) -> None:
    from ._probe import nothing

    with on_device(device):
        nothing[(1,)]()


_HERE: AbstractContextManager[None] = nullcontext()


def on_device(device: torch.device) -> AbstractContextManager[None]:
    """Guard under which kernels launch on ``device``; Triton itself launches on the current device and stream."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(device)


# Warps that make 128 threads: AMD's data-centre GPUs have 64 lanes to a warp.
WARPS_128 = 2 if torch.version.hip else 4


@functools.cache
def cores(device: torch.device) -> int:
    """Streaming multiprocessors (compute units) of ``device``; one in the interpreter."""
    return 1 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


# Triton's own, where a launch sets none.
DEFAULT_STAGES = 3

# Size of a workspace: fp64 partial sums, int32 counters.
SHARES = 4096
COUNTERS = 1024


def workspace(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(shares, counters) for a kernel whose last program finishes the others' sums. It leaves its counters at zero."""
    return per_stream(_new_workspace, device)


def _new_workspace(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    shares = torch.empty(SHARES, dtype=torch.float64, device=device)
    return shares, torch.zeros(COUNTERS, dtype=torch.int32, device=device)


_ELEMENTS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
}


def aot_case(
    id: str,
    module: ModuleType,
    kernel: str,
    call: Callable[[], Any],
    wide_loads: int = 0,
    wide_stores: int = 0,
    **instead: Any,
) -> AotCase:
    """The launch of ``module.kernel`` that ``call`` makes. It is recorded, not made, so operands may be CPU tensors.

    Taking signatures from the launchers themselves keeps what is compiled ahead of time from drifting away from them.
    ``instead``: replacements for names of ``module`` during the call.
    """
    from ._launch import redirected

    launches: list[tuple[Any, ...]] = []
    before = {name: getattr(module, name) for name in instead}
    vars(module).update(instead)
    try:
        with redirected(lambda *launch: launches.append(launch)):
            call()
    finally:
        vars(module).update(before)
    ((launch, *tensors),) = (found for found in launches if found[0].kernel is getattr(module, kernel))
    args, options = (*tensors, *launch.arguments), launch.options
    parameters = inspect.signature(launch.kernel.fn).parameters
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    for (name, parameter), value in zip(parameters.items(), args, strict=True):
        if value is None or "constexpr" in str(parameter.annotation):
            constexprs[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = _ELEMENTS[value.dtype]
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
    aligned = tuple(n for n, v in zip(parameters, args, strict=True) if n in signature and _aligned(v))
    compiled = options["num_warps"], options.get("num_stages", DEFAULT_STAGES)
    return AotCase(id, module.__name__, kernel, signature, constexprs, aligned, *compiled, wide_loads, wide_stores)


def _aligned(value: Any) -> bool:
    # Integers are passed without specialisation.
    return isinstance(value, torch.Tensor) and value.data_ptr() % 16 == 0
