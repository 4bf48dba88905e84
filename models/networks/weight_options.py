"""Weights that the user names by an option, read with errors that name the option."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from models.data import InputError
from models.networks import LPIPS, VGGFeatures, load_weights
from models.networks.lpips import COMPARED_OF_VGG16, Trunk
from models.networks.vgg import VGG
from models.networks.weights import load_state

AUTO = Path("auto")  # in place of a file's path: fetch it


class _Public(NamedTuple):
    """A file that anyone can fetch; the end of `name` is the beginning of its SHA-256."""

    what: str
    name: str
    url: str


_TORCHVISION = "https://download.pytorch.org/models/"
_VGG16, _VGG19, _ALEX = (
    _Public(f"torchvision's {name}", name, _TORCHVISION + name)
    for name in ("vgg16-397923af.pth", "vgg19-dcbb9e9d.pth", "alexnet-owt-7be5be79.pth")
)
_VGG = {"vgg16": _VGG16, "vgg19": _VGG19}
_ALEX_LIN, _VGG16_LIN = (
    _Public(
        f"LPIPS's weights/v0.1/{name}.pth",
        f"lpips-v0.1-{name}-{digest}.pth",
        f"https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/{name}.pth",
    )
    for name, digest in (("alex", "df73285e"), ("vgg", "a78928a0"))
)


@dataclass(frozen=True, kw_only=True)
class LPIPSFiles:
    """The two files of LPIPS: one of the trunks, and the linear weights that go with it."""

    lpips_alex: Path | None = None
    """torchvision's alexnet-owt-7be5be79.pth, for LPIPS on AlexNet; auto fetches it."""
    lpips_vgg: Path | None = None
    """In its place for LPIPS on VGG-16: torchvision's vgg16-397923af.pth or auto, or for HED-LPIPS what
    python -m models weights hed makes."""
    lpips_lin: Path | None = None
    """LPIPS v0.1's alex.pth or vgg.pth (richzhang/PerceptualSimilarity, weights/v0.1); auto fetches it."""

    @property
    def lpips_trunk(self) -> Trunk:
        return "alex" if self.lpips_vgg is None else "vgg16"

    @property
    def given(self) -> bool:
        """Whether any of them is named."""
        return any(path is not None for path in (self.lpips_alex, self.lpips_vgg, self.lpips_lin))


@dataclass(frozen=True)
class PerceptualFiles(LPIPSFiles):
    """Networks that perceive: VGG as a loss, LPIPS as one, and wherever it is given to judge held-out pictures by."""

    vgg: Path | None = None
    """VGG for a perceptual loss: torchvision's vgg19-dcbb9e9d.pth or vgg16-397923af.pth, auto, which fetches the one
    that --*.perceptual.network names, or a VGG-16 by python -m models weights hed."""

    def check(self, network: str, option: str) -> None:
        """Raises InputError if a perceptual loss on this network, which `option` asks for, needs a file not named."""
        if network in VGG and self.vgg is None:
            raise InputError(f"{option} {network} needs --weights.vgg: {_VGG[network].what}")
        if network == "lpips" and not self.given:
            raise InputError(
                f"{option} lpips needs --weights.lpips-lin and --weights.lpips-alex or --weights.lpips-vgg"
            )


def load_network(
    source: Path | Mapping[str, Any], option: str, kinds: tuple[type[nn.Module], ...], part: str | None = None
) -> nn.Module:
    """A network of one of `kinds` from a file of ours or a published one, or from what such a file holds.

    Raises InputError naming the option.
    """
    name = "state dict" if isinstance(source, Mapping) else source
    try:
        network = load_weights(source, part=part)
    except (OSError, ValueError) as error:
        raise InputError(f"{option}: {error}") from error
    if not isinstance(network, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{option}: {name} holds a {type(network).__name__}, wanted {wanted}")
    _check_finite(network, f"{option}: {name} holds")
    return network


def load_vgg(
    layers: Iterable[str], path: Path | None, option: str, *, network: str = "vgg19", input_norm: bool = True
) -> VGGFeatures:
    """A VGG (vgg16 or vgg19) with torchvision's weights, fetched if `path` is AUTO, or with others in their form.

    Raises InputError if the file is missing, a different one, or cannot be fetched.
    """
    public, kind = _VGG[network], VGG[network]
    path = _named(option, path, public)
    features = load_network(_fetched(option, public) if path == AUTO else path, option, (kind,))
    assert isinstance(features, kind)
    features.choose(layers)
    features.input_norm = input_norm
    return features


def check_layers(network: str, layers: Iterable[str], option: str) -> None:
    """Raises InputError if a perceptual loss on this network, when it is a VGG, cannot compare these layers."""
    if network in VGG:
        try:
            with torch.device("meta"):
                VGG[network](layers)
        except ValueError as error:
            raise InputError(f"{option}: {error}") from error


def load_lpips(files: LPIPSFiles, option: str) -> LPIPS:
    """LPIPS with its two files, `<option>-alex` or `<option>-vgg` and `<option>-lin`; AUTO and errors as in `load_vgg`.

    On a VGG-16 that was not trained on ImageNet alone, its `name` is another.
    """
    alex, vgg, lin = (f"{option}-{name}" for name in ("alex", "vgg", "lin"))
    if files.lpips_alex is not None and files.lpips_vgg is not None:
        raise InputError(f"{alex} and {vgg} are two trunks of one distance: name one of them")
    if files.lpips_vgg is None:
        network, trunk, public = LPIPS(), alex, (_ALEX, _ALEX_LIN)
        state = _state(alex, files.lpips_alex, _ALEX)
    else:
        features = load_vgg(COMPARED_OF_VGG16, files.lpips_vgg, vgg, network="vgg16")
        network, trunk, public = LPIPS("vgg16", features.origin), vgg, (_VGG16, _VGG16_LIN)
        state = features.state_dict()
    try:
        network.load(state, _state(lin, files.lpips_lin, public[1]))
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        wanted = " and ".join(each.what for each in public)
        raise InputError(f"{trunk}, {lin}: {_line(error)}. Wanted are {wanted}") from error
    _check_finite(network, f"{trunk}, {lin}:")
    return network


def _named(option: str, path: Path | None, public: _Public) -> Path:
    if path is None:
        raise InputError(f"{option} is needed: {public.what}, or auto, which fetches it")
    return path


def _state(option: str, path: Path | None, public: _Public) -> Any:
    path = _named(option, path, public)
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
