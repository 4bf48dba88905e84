"""Weights that the user names by an option, read with errors that name the option."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.data import InputError
from models.networks import LPIPS, VGG19Features, load_weights


def load_network(path: Path, option: str, kinds: tuple[type[nn.Module], ...], part: str | None = None) -> nn.Module:
    """A network of one of `kinds` from a file of ours or a published one. Raises InputError naming the option."""
    try:
        network = load_weights(path, part=part)
    except (OSError, ValueError) as error:
        raise InputError(f"{option}: {error}") from error
    if not isinstance(network, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{option}: {path} holds a {type(network).__name__}, wanted {wanted}")
    for name, value in network.state_dict().items():
        if not bool(value.isfinite().all()):
            raise InputError(f"{option}: {path} holds values in {name} that are not finite")
    return network


def load_vgg(layers: Iterable[str], path: Path | None, option: str, *, input_norm: bool = True) -> VGG19Features:
    """VGG-19 with torchvision's weights. Raises InputError if the file is missing or a different one."""
    network = VGG19Features(layers, input_norm=input_norm)
    _fill(network.load_torchvision, {option: (path, "torchvision's vgg19-dcbb9e9d.pth")})
    return network


def load_lpips(alex: Path | None, lin: Path | None, option: str) -> LPIPS:
    """LPIPS with its two files, `<option>-alex` and `<option>-lin`. Raises InputError as `load_vgg` does."""
    network = LPIPS()
    files = {
        f"{option}-alex": (alex, "torchvision's alexnet-owt-7be5be79.pth"),
        f"{option}-lin": (lin, "LPIPS's weights/v0.1/alex.pth"),
    }
    _fill(network.load, files)
    return network


def _fill(load: Callable[..., None], files: dict[str, tuple[Path | None, str]]) -> None:
    states = [_state(option, path, what) for option, (path, what) in files.items()]
    try:
        load(*states)
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{', '.join(files)}: {' '.join(str(error).split())}") from error


def _state(option: str, path: Path | None, what: str) -> dict[str, Any]:
    if path is None:
        raise InputError(f"{option} is needed: {what}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{option}: cannot read weights from {path}: {' '.join(str(error).split())}") from error
    if not isinstance(state, dict):
        raise InputError(f"{option}: {path} holds a {type(state).__name__}, wanted {what}")
    return state
