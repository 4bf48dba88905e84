"""Weights of a first convolution, carried from one Haar convention to another."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from ..._validate import check_image, check_vector, choice
from .conventions import BANDS, CONVENTIONS, Convention


@overload
def convert_haar_weight(weight: Tensor, source: str, target: str, *, bands: str = ...) -> Tensor: ...
@overload
def convert_haar_weight(
    weight: Tensor, source: str, target: str, *, bias: Tensor, bands: str = ...
) -> tuple[Tensor, Tensor]: ...
def convert_haar_weight(
    weight: Tensor, source: str, target: str, *, bias: Tensor | None = None, bands: str = "high"
) -> Tensor | tuple[Tensor, Tensor]:
    """Convert the weights of a first convolution from the Haar input of one convention to that of another.

    The returned convolution gives on ``target`` bands what the given one gives on ``source`` bands. Input channels
    are numbered as each package stacks them: band-major [all C of a band, next band, ...] ("dasr", "mwcnn", "irn",
    and "wct2", "wavesnet" whose tuples are concatenated), channel-major [all bands of a channel, next channel, ...]
    ("orthonormal", "wtconv"), C sums ("dasr_sum", as a source only).

    Args:
        weight: (O, I, kh, kw) with I = 3C ("high", C for "dasr_sum"), 4C ("both", low first) or C ("low").
        bias: (O,), needed where the conventions differ in their constant shift ("dasr" adds 0.5): the constant
            moves into it. Exact wherever the kernel does not overlap zero padding; where it does, pad the target
            input with the image of the source's zero instead.
        bands: which bands the convolution takes: "high", "both" or "low".

    Returns:
        The weight, same dtype, or ``(weight, bias)`` if a bias was given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was passed; "dasr_sum" as a target.
    """
    op = "convert_haar_weight"
    src, dst = choice(op, "source", source, CONVENTIONS), choice(op, "target", target, CONVENTIONS)
    choice(op, "bands", bands, BANDS)
    check_image(op, "weight", weight)
    out_channels, in_channels = weight.shape[:2]
    if bias is not None:
        check_vector(op, "bias", bias, (out_channels,), weight.device)
    n_low = int(bands != "high")
    n_high = 0 if bands == "low" else 3
    if n_high and dst.layout == "sum" and src.layout != "sum":
        raise ValueError(f"{op}: target 'dasr_sum' adds the bands up and cannot carry weights that tell them apart")
    if n_high and src.shift != dst.shift and bias is None:
        raise ValueError(
            f"{op}: {source!r} adds {src.shift} to the high bands and {target!r} adds {dst.shift}; the difference "
            f"goes into the bias, so pass bias= (zeros({out_channels}) if the convolution has none)"
        )
    per_image = n_low + (1 if n_high and src.layout == "sum" else n_high)
    if in_channels % per_image:
        raise ValueError(f"{op}: weight must have {per_image}C input channels for bands={bands!r}, got {in_channels}")
    if src == dst:
        return weight.clone() if bias is None else (weight.clone(), bias.clone())

    by_band = _split_bands(weight.double(), src, n_low, n_high)
    constant = torch.zeros((), dtype=torch.float64, device=weight.device)
    converted = {}
    if n_low:
        converted["S"] = by_band["S"] * (src.low / dst.low)
    if n_high:
        for band in "VHD":
            converted[band] = by_band[band] * (src.factor(band) / dst.factor(band))
        # source input = ratio * (target input - target shift) + source shift, band by band
        share = src.shift / 3 if src.layout == "sum" else src.shift
        for band in "VHD":
            constant = constant + (share * by_band[band] - dst.shift * converted[band]).sum(dim=(1, 2, 3))
    result = _join_bands(converted, dst, n_low, n_high).to(weight.dtype)
    if bias is None:
        return result
    return result, (bias.double() + constant).to(bias.dtype)


def _band_order(c: Convention, n_low: int, n_high: int) -> list[str]:
    return ["S"] * n_low + ([b for b, _ in c.high] if n_high else [])


def _split_bands(weight: Tensor, c: Convention, n_low: int, n_high: int) -> dict[str, Tensor]:
    """Weights (O, C, kh, kw) of each band out of the convention's stacking."""
    if n_high and c.layout == "sum":
        low, high = weight.chunk(2, dim=1) if n_low else (None, weight)
        return {**({"S": low} if low is not None else {}), "V": high, "H": high, "D": high}
    order = _band_order(c, n_low, n_high)
    if c.layout == "channel_major":
        return dict(zip(order, weight.unflatten(1, (-1, len(order))).unbind(2), strict=True))
    return dict(zip(order, weight.chunk(len(order), dim=1), strict=True))


def _join_bands(by_band: dict[str, Tensor], c: Convention, n_low: int, n_high: int) -> Tensor:
    parts = [by_band[b] for b in _band_order(c, n_low, n_high)]
    return torch.stack(parts, dim=2).flatten(1, 2) if c.layout == "channel_major" else torch.cat(parts, dim=1)
