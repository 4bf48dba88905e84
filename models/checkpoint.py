"""Checkpoints: weights as safetensors under the networks' own keys, training state beside them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn


def save_weights(module: nn.Module, path: Path) -> None:
    """Writes the state dict as contiguous CPU tensors; the file appears whole or not at all."""
    weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    _write_whole(path, lambda temporary: save_file(weights, temporary))


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads what `save_weights` wrote; raises RuntimeError naming the keys that do not match."""
    module.load_state_dict(load_file(path), strict=True)


def save_training_state(state: dict[str, Any], path: Path) -> None:
    """Writes optimiser states and the like with `torch.save`; the file appears whole or not at all."""
    _write_whole(path, lambda temporary: torch.save(state, temporary))


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    os.replace(temporary, path)
