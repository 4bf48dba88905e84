"""Which device a command runs on, and how a batch gets there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.data import InputError


def pick_device(wanted: str) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`. Raises InputError if there is no GPU where one is asked for."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no GPU")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def to_device(batch: Mapping[str, Any], device: torch.device, layout: torch.memory_format) -> dict[str, Tensor]:
    """The tensors of a loader's batch, in the layout that the networks have; its lists of strings are left out."""
    return {
        name: value.to(device, non_blocking=True, memory_format=layout)
        for name, value in batch.items()
        if isinstance(value, Tensor)
    }
