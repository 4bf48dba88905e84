"""Loader of the native core; a failed load is remembered as the reason why, never raised at import."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ._workspace import per_stream

_EXTENSIONS = {"cpu": "_cpu", "cuda": "_cuda"}


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
    """Call a function of the core for ``x``'s device; it takes tensors as they are (or None) and, last, the thread
    count or the stream."""
    if x.is_cpu:
        _function("cpu", function)(*arguments, torch.get_num_threads())
        return
    with torch.cuda.device(x.device):
        _function("cuda", function)(*arguments, torch.cuda.current_stream(x.device).cuda_stream)


def workspace(device: torch.device) -> Tensor:
    """Scratch of the CUDA core's reductions: partial sums of any shape behind a ticket that launches leave at zero."""
    return per_stream(_new_workspace, device)


def _new_workspace(device: torch.device) -> Tensor:
    return torch.zeros(extension("cuda").weighted_loss_workspace(), dtype=torch.uint8, device=device)
