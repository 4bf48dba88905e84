"""Haar wavelet transform: public functions."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from ..._dispatch import without_autocast
from ..._layout import is_channels_last
from ..._validate import check_image, check_vector, choice, describe, integer, shown
from .arguments import Analysis, Bands, Image, Synthesis
from .conventions import BANDS, CONVENTIONS, HIGH, PADS, Convention, plan_id
from .op import analysis, synthesis

PAD_CODES = {name: code for code, name in enumerate(PADS)}
_ZERO = PAD_CODES["zero"]
_ANALYSES = {name: (plan_id(name), c.layout == "tuple") for name, c in CONVENTIONS.items()}

HighBands = Tensor | tuple[Tensor, Tensor, Tensor]


@without_autocast  # autocast does not stack halves of the dtype it does not cast to
def _stack(*bands: Tensor) -> Tensor:
    """(3, N, C, h, w), each in the layout of the first."""
    if is_channels_last(bands[0]):
        return torch.stack([band.permute(0, 2, 3, 1) for band in bands]).permute(0, 1, 4, 2, 3)
    return torch.stack(bands)


def convention_of(op: str, name: str, argument: str = "convention") -> Convention:
    return choice(op, argument, name, CONVENTIONS)


def haar_dwt2d(
    x: Tensor, convention: str = "orthonormal", *, bands: str = "both", pad: str = "reflect"
) -> tuple[Tensor | None, HighBands | None]:
    """One level of the 2-D Haar wavelet transform, in any of the conventions that published code uses.

    For each 2x2 cell ``a b / c d``: S = a+b+c+d, V = a+b-c-d, H = a-b+c-d, D = a-b-c+d; ``low`` is a multiple of S,
    ``high`` holds multiples of V, H, D in the convention's order, plus its shift (see ``CONVENTIONS``).

    Args:
        x: (N, C, H, W), fp16, bf16, fp32 or fp64, contiguous or channels_last (others are copied).
            N or C may be 0; H and W are at least 1.
        convention: "orthonormal" (as pytorch_wavelets), "dasr", "dasr_sum", "mwcnn", "irn", "wct2", "wavesnet" or
            "wtconv".
        bands: "both", "low" or "high"; only what is requested is computed, the other is returned as None.
        pad: what odd sizes append, with x[n-1] the last sample: "reflect" x[n-2] (DASR), "zero" 0 (WTConv),
            "symmetric" x[n-1], "periodization" x[n-1] (as PyWavelets does before it wraps). Even sizes never pad.

    Returns:
        ``(low, high)``: low (N, C, h, w) with h = ceil(H/2), w = ceil(W/2); high by the convention's layout:
        (N, C, 3, h, w) "orthonormal", "wtconv"; (N, 3C, h, w) band-major "dasr", "mwcnn", "irn"; (N, C, h, w)
        "dasr_sum"; three tensors (N, C, h, w) "wct2", "wavesnet". Dtype of ``x`` (also under autocast), computed
        in fp32 registers (fp64 for fp64); channels_last in, channels_last out.

    Differentiable in ``x`` to any order: the backward pass is the exact adjoint, padding included. Deterministic.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was passed.
    """
    plan, in_tuple = choice("haar_dwt2d", "convention", convention, _ANALYSES)
    wanted = choice("haar_dwt2d", "bands", bands, BANDS)
    code = choice("haar_dwt2d", "pad", pad, PAD_CODES)
    check_image("haar_dwt2d", "x", x)
    out = analysis(Image(x), Analysis(plan, code, wanted))
    low = out[0] if wanted != HIGH else None
    if bands == "low":
        return low, None
    high = out[-1]
    return low, (high.unbind(0) if in_tuple else high)  # type: ignore[return-value]


@overload
def haar_highpass(  # type: ignore[overload-overlap]
    x: Tensor, convention: Literal["wct2", "wavesnet"], *, pad: str = ...
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def haar_highpass(x: Tensor, convention: str = ..., *, pad: str = ...) -> Tensor: ...
def haar_highpass(x: Tensor, convention: str = "dasr", *, pad: str = "reflect") -> HighBands:
    """The high bands of ``haar_dwt2d`` alone: with "dasr", the input of DASR's wavelet discriminators.

    "dasr" (pytorch_wavelets ``DWTForward(J=1, wave="haar", mode="reflect")``, then x0.5 + 0.5, then concatenation):
    9 channels [V_rgb, H_rgb, D_rgb] in [0, 1] for RGB images in [0, 1]. Arguments, layouts and errors are those of
    ``haar_dwt2d``.
    """
    plan, in_tuple = choice("haar_highpass", "convention", convention, _ANALYSES)
    code = choice("haar_highpass", "pad", pad, PAD_CODES)
    check_image("haar_highpass", "x", x)
    (high,) = analysis(Image(x), Analysis(plan, code, HIGH))
    return high.unbind(0) if in_tuple else high  # type: ignore[return-value]


def haar_idwt2d(
    low: Tensor | None,
    high: HighBands | None,
    convention: str = "orthonormal",
    *,
    output_size: tuple[int, int] | None = None,
) -> Tensor:
    """Inverse of ``haar_dwt2d``: exact up to rounding, for odd sizes too, whatever the padding was.

    Args:
        low, high: as ``haar_dwt2d`` returns them; either may be None and then counts as zeros.
        convention: the one they were made with; "dasr_sum" has no inverse.
        output_size: (H, W) of the image, 2h or 2h-1 by 2w or 2w-1; (2h, 2w) if None.

    Returns:
        (N, C, H, W), dtype and layout of the bands. Differentiable in both bands to any order; gradients of
        a tuple's three tensors have the layout of the first.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was passed.
    """
    op = "haar_idwt2d"
    layout = convention_of(op, convention).layout
    if layout == "sum":
        raise ValueError(f"{op}: convention 'dasr_sum' adds the high bands up and has no inverse")
    if low is None and high is None:
        raise ValueError(f"{op}: low and high are both None")
    if low is not None:
        check_image(op, "low", low)
    if isinstance(high, (tuple, list)) != (layout == "tuple") and high is not None:
        expected = "a tuple of three (N, C, h, w) tensors" if layout == "tuple" else "one tensor"
        raise TypeError(f"{op}: high must be {expected} for convention {convention!r}, got {describe(high)}")
    if isinstance(high, (tuple, list)):
        if len(high) != 3:
            raise ValueError(f"{op}: high must hold three tensors, got {len(high)}")
        for i, band in enumerate(high):
            check_image(op, f"high[{i}]", band)
            if band.shape != high[0].shape or band.dtype != high[0].dtype or band.device != high[0].device:
                raise ValueError(f"{op}: high[{i}] must match high[0] ({describe(high[0])}), got {describe(band)}")
        stacked = _stack(*high)
    elif high is not None:
        stacked = high
        if layout == "band_major":
            check_image(op, "high", stacked)
            if stacked.shape[1] % 3:
                raise ValueError(f"{op}: high must be (N, 3C, h, w), got {tuple(stacked.shape)}")
        elif not isinstance(stacked, Tensor) or stacked.dim() != 5 or (not stacked.is_nested and stacked.shape[2] != 3):
            raise ValueError(f"{op}: high must be (N, C, 3, h, w), got {describe(stacked)}")
        else:
            check_image(op, "high", stacked, "(N, C, 3, h, w)", 5)
    else:
        stacked = None
    if low is not None and stacked is not None:
        n, c, h, w = low.shape
        expected_shape = {"band_major": (n, 3 * c, h, w), "channel_major": (n, c, 3, h, w), "tuple": (3, n, c, h, w)}[
            layout
        ]
        if tuple(stacked.shape) != expected_shape:
            raise ValueError(
                f"{op}: high must be {expected_shape} for low {tuple(low.shape)}, got {tuple(stacked.shape)}"
            )
        if low.dtype != stacked.dtype or low.device != stacked.device:
            raise ValueError(
                f"{op}: high must match low ({low.dtype}, {low.device}), got {stacked.dtype}, {stacked.device}"
            )
    one = low if low is not None else stacked
    assert one is not None
    h, w = one.shape[-2:]
    rows, columns = (2 * h, 2 * w) if output_size is None else _two_integers(op, "output_size", output_size)
    if (rows + 1) // 2 != h or (columns + 1) // 2 != w:
        raise ValueError(
            f"{op}: output_size must be ({2 * h - 1} or {2 * h}, {2 * w - 1} or {2 * w}) for {h}x{w} bands, "
            f"got ({rows}, {columns})"
        )
    settings = Synthesis(rows, columns, plan_id(convention, inverse=True), _ZERO)
    return synthesis(Bands(low, stacked), settings)[0]


def _two_integers(op: str, argument: str, value: Any) -> tuple[int, int]:
    try:
        if isinstance(value, (tuple, list)):
            height, width = (integer(op, argument, size) for size in value)
            return height, width
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{op}: {argument} must be two integers, got {shown(value)}")


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
    src, dst = convention_of(op, source, "source"), convention_of(op, target, "target")
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
