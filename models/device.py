"""Which device a command runs on."""

from __future__ import annotations

import torch

from models.data import InputError


def pick_device(wanted: str) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`. Raises InputError if there is no GPU where one is asked for."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no GPU")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
