"""Lazy loader of the native core; a failed load is remembered as the reason why, never raised at import."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_EXTENSIONS = {"cpu": "_cpu", "cuda": "_cuda"}

# Codes of csrc/common/types.h
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def build_info() -> dict[str, Any]:
    """What setup.py recorded at build time: per extension "built" or the reason why not. Empty if never built."""
    path = Path(__file__).with_name("_build_info.json")
    return json.loads(path.read_text()) if path.exists() else {}


@functools.cache
def _load(device_type: str) -> ModuleType | str:
    name = _EXTENSIONS[device_type]
    try:
        return importlib.import_module(f"srkernels.{name}")
    except ImportError as error:
        recorded = build_info().get(name, {}).get("why_not")
        return recorded or f"srkernels.{name} did not load: {error}"


def extension(device_type: str) -> ModuleType:
    """The loaded extension module of ``"cpu"`` or ``"cuda"``; RuntimeError with the reason if there is none."""
    module = _load(device_type)
    if isinstance(module, str):
        raise RuntimeError(module)
    return module


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Why the native core cannot run on ``device``; None if it can."""
    if device.type not in _EXTENSIONS:
        return f"no native kernels for {device.type} tensors"
    if device.type == "cuda" and torch.version.hip:
        return "the CUDA core does not run on ROCm"
    module = _load(device.type)
    return module if isinstance(module, str) else None


@functools.cache
def _function(device_type: str, name: str) -> Any:
    return getattr(extension(device_type), name)


def launch(x: Tensor, function: str, *arguments: Any) -> None:
    """Call a function of the core for ``x``'s device; its last argument is the thread count, or the stream."""
    if x.is_cpu:
        _function("cpu", function)(*arguments, torch.get_num_threads())
        return
    with torch.cuda.device(x.device):
        _function("cuda", function)(*arguments, torch.cuda.current_stream(x.device).cuda_stream)


# One ticket per (device, stream), zero between launches: kernels reset it themselves, so graphs may replay them.
_tickets: dict[tuple[torch.device, int], Tensor] = {}


def workspace(x: Tensor, need_weight: bool) -> int:
    """Address of the workspace of the CUDA core's reductions on x's device and current stream."""
    size = extension("cuda").weighted_l1_workspace(tuple(x.shape), need_weight)
    key = (x.device, torch.cuda.current_stream(x.device).cuda_stream)
    held = _tickets.get(key)
    if held is None or held.numel() < size:
        held = _tickets[key] = torch.zeros(size, dtype=torch.uint8, device=x.device)
    return held.data_ptr()
