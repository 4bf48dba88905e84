"""The Haar ops by strided convolution with 2x2 filters, from the table of conventions, not the tested code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .conventions import CONVENTIONS

_FILTERS = {
    "S": ((1, 1), (1, 1)),
    "V": ((1, 1), (-1, -1)),
    "H": ((1, -1), (1, -1)),
    "D": ((1, -1), (-1, 1)),
}


def _filter(band: str, like: Tensor) -> Tensor:
    return torch.tensor(_FILTERS[band], dtype=like.dtype, device=like.device)[None, None]


_MODES = {"zero": "constant", "reflect": "reflect", "periodic": "circular"}


def _even(x: Tensor, pad: str) -> Tensor:
    """One more row or column where their number is odd; "floor": none, a strided convolution drops the last."""
    for dim, (right, below) in ((-1, (1, 0)), (-2, (0, 1))):
        size = x.shape[dim]
        if size % 2 and pad != "floor":
            mode = "replicate" if pad == "reflect" and size == 1 else _MODES.get(pad, "replicate")
            x = F.pad(x, (0, right, 0, below), mode)
    return x


def dwt2d(
    x: Tensor, convention: str = "orthonormal", *, levels: int = 1, bands: str = "both", pad: str = "reflect"
) -> Any:
    """As ``haar_dwt2d``."""
    return over_levels(lambda x, bands: _level(x, convention, bands, pad), x, levels, bands)


def over_levels(level: Callable[[Tensor, str], Any], x: Tensor, levels: int, bands: str) -> Any:
    """``level(x, bands)``, then on its low band, and so on; what ``haar_dwt2d`` returns of them all."""
    if levels == 1:
        return level(x, bands)
    inner, finest = level(x, "low" if bands == "low" else "both")
    low, high = over_levels(level, inner, levels - 1, bands)
    return low, [finest, *(high if levels > 2 else [high])]


def _level(x: Tensor, convention: str, bands: str, pad: str) -> Any:
    c = CONVENTIONS[convention]
    planes = _even(x.flatten(0, 1)[:, None], pad)

    def band(name: str) -> Tensor:
        return F.conv2d(planes, _filter(name, x), stride=2)[:, 0].unflatten(0, x.shape[:2])

    low = c.low * band("S") if bands != "high" else None
    if bands == "low":
        return low, None
    if c.layout == "sum":
        return low, sum(factor * band(name) for name, factor in c.high) + c.shift
    high = [factor * band(name) + c.shift for name, factor in c.high]
    if c.layout == "tuple":
        return low, tuple(high)
    return low, torch.cat(high, 1) if c.layout == "band_major" else torch.stack(high, 2)


def highpass(x: Tensor, convention: str = "dasr", *, pad: str = "reflect") -> Any:
    """As ``haar_highpass``."""
    return dwt2d(x, convention, bands="high", pad=pad)[1]


def idwt2d(
    low: Tensor, high: Tensor, convention: str = "orthonormal", *, output_size: tuple[int, int] | None = None
) -> Tensor:
    """As ``haar_idwt2d``, of bands in one tensor: a quarter of each sum goes back by its own filter."""
    c = CONVENTIONS[convention]
    bands = high.unbind(2) if c.layout == "channel_major" else high.chunk(3, 1)
    sums = {"S": low / c.low}
    sums |= {name: (band - c.shift) / factor for (name, factor), band in zip(c.high, bands, strict=True)}
    parts = [
        F.conv_transpose2d(value.flatten(0, 1)[:, None] / 4, _filter(name, low), stride=2)
        for name, value in sums.items()
    ]
    image = sum(parts)[:, 0].unflatten(0, low.shape[:2])  # type: ignore[index]
    rows, columns = output_size or image.shape[2:]
    return F.pad(image, (0, columns - image.shape[3], 0, rows - image.shape[2]))
