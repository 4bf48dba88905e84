"""Weights that the user names by an option, read with errors that name the option."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from models.data import InputError
from models.networks import LPIPS, VGG19Features, load_weights
from models.networks.weights import load_state

AUTO = Path("auto")  # in place of a file's path: fetch it


class _Public(NamedTuple):
    """A file that anyone can fetch; the end of `name` is the beginning of its SHA-256."""

    what: str
    name: str
    url: str


_TORCHVISION = "https://download.pytorch.org/models/"
_VGG, _ALEX = (
    _Public(f"torchvision's {name}", name, _TORCHVISION + name)
    for name in ("vgg19-dcbb9e9d.pth", "alexnet-owt-7be5be79.pth")
)
_LIN = _Public(
    "LPIPS's weights/v0.1/alex.pth",
    "lpips-v0.1-alex-df73285e.pth",
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth",
)


def load_network(path: Path, option: str, kinds: tuple[type[nn.Module], ...], part: str | None = None) -> nn.Module:
    """A network of one of `kinds` from a file of ours or a published one. Raises InputError naming the option."""
    try:
        network = load_weights(path, part=part)
    except (OSError, ValueError) as error:
        raise InputError(f"{option}: {error}") from error
    if not isinstance(network, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{option}: {path} holds a {type(network).__name__}, wanted {wanted}")
    _check_finite(network, f"{option}: {path} holds")
    return network


def load_vgg(layers: Iterable[str], path: Path | None, option: str, *, input_norm: bool = True) -> VGG19Features:
    """VGG-19 with torchvision's weights, fetched if `path` is AUTO.

    Raises InputError if the file is missing, a different one, or cannot be fetched.
    """
    network = VGG19Features(layers, input_norm=input_norm)
    _fill(network, network.load_torchvision, {option: (path, _VGG)})
    return network


def load_lpips(alex: Path | None, lin: Path | None, option: str) -> LPIPS:
    """LPIPS with its two files, `<option>-alex` and `<option>-lin`, AUTO and errors as in `load_vgg`."""
    network = LPIPS()
    _fill(network, network.load, {f"{option}-alex": (alex, _ALEX), f"{option}-lin": (lin, _LIN)})
    return network


def _fill(network: nn.Module, load: Callable[..., None], files: dict[str, tuple[Path | None, _Public]]) -> None:
    states = [_state(option, path, public) for option, (path, public) in files.items()]
    try:
        load(*states)
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{', '.join(files)}: {_line(error)}") from error
    _check_finite(network, f"{', '.join(files)}:")


def _state(option: str, path: Path | None, public: _Public) -> Any:
    if path is None:
        raise InputError(f"{option} is needed: {public.what}, or auto, which fetches it")
    try:
        return _fetched(option, public) if path == AUTO else load_state(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{option}: cannot read weights from {path}: {error}") from error


def _fetched(option: str, public: _Public) -> Any:
    try:
        return torch.hub.load_state_dict_from_url(
            public.url, map_location="cpu", check_hash=True, file_name=public.name, weights_only=True
        )
    except (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / public.name
        raise InputError(
            f"{option}: cannot fetch {public.url} ({_line(error)}). Put {public.what} at {place}, or name its path"
        ) from error


def _check_finite(network: nn.Module, holds: str) -> None:
    for name, value in network.state_dict().items():
        if not bool(value.isfinite().all()):
            raise InputError(f"{holds} values in {name} that are not finite")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
