"""Haar wavelet transform: public functions."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from ..._dispatch import without_autocast
from ..._layout import is_channels_last
from ..._validate import check_image, choice, describe, integer, shown
from .allocate import cells
from .arguments import Analysis, Bands, Image, Synthesis
from .conventions import BANDS, CONVENTIONS, HIGH, LOW, PADS, plan_id
from .op import analysis, synthesis

PAD_CODES = {name: code for code, name in enumerate(PADS)}
_ZERO, _FLOOR = PAD_CODES["zero"], PAD_CODES["floor"]
_ANALYSES = {name: (plan_id(name), c.layout == "tuple") for name, c in CONVENTIONS.items()}

HighBands = Tensor | tuple[Tensor, Tensor, Tensor]
HighLevels = list[HighBands | None]


@without_autocast  # autocast does not stack halves of the dtype it does not cast to
def _stack(*bands: Tensor) -> Tensor:
    """(3, N, C, h, w), each in the layout of the first."""
    if is_channels_last(bands[0]):
        return torch.stack([band.permute(0, 2, 3, 1) for band in bands]).permute(0, 1, 4, 2, 3)
    return torch.stack(bands)


@overload
def haar_dwt2d(
    x: Tensor, convention: str = ..., *, levels: Literal[1] = ..., bands: str = ..., pad: str = ...
) -> tuple[Tensor | None, HighBands | None]: ...
@overload
def haar_dwt2d(
    x: Tensor, convention: str = ..., *, levels: int, bands: str = ..., pad: str = ...
) -> tuple[Tensor | None, HighBands | HighLevels | None]: ...
def haar_dwt2d(
    x: Tensor, convention: str = "orthonormal", *, levels: int = 1, bands: str = "both", pad: str = "reflect"
) -> tuple[Tensor | None, HighBands | HighLevels | None]:
    """The 2-D Haar wavelet transform, in any of the conventions that published code uses.

    For each 2x2 cell ``a b / c d``: S = a+b+c+d, V = a+b-c-d, H = a-b+c-d, D = a-b-c+d; ``low`` is a multiple of S,
    ``high`` holds multiples of V, H, D in the convention's order, plus its shift (see ``CONVENTIONS``).

    Args:
        x: (N, C, H, W), fp16, bf16, fp32 or fp64, contiguous or channels_last (others are copied).
            N or C may be 0; H and W are at least 1.
        convention: "orthonormal" (as pytorch_wavelets), "dasr", "dasr_sum", "mwcnn", "irn", "wct2", "wavesnet" or
            "wtconv".
        levels: how often; each level transforms the low band of the one before, padded by itself.
        bands: "both", "low" or "high"; only what is requested is computed, the other is returned as None.
        pad: what odd sizes append, with x[n-1] the last sample: "reflect" x[n-2] (DASR), "zero" 0 (WTConv),
            "symmetric" x[n-1], "periodization" x[n-1] (as PyWavelets does before it wraps), "periodic" x[0]
            (PyWavelets, ptwt). "floor" appends nothing and drops the last row and column, as a convolution of stride
            2 does (IRN, WCT2); H and W are at least 2. Even sizes never pad.

    Returns:
        ``(low, high)``: low (N, C, h, w) with h = ceil(H/2), w = ceil(W/2), or rounded down by "floor"; high by the
        convention's layout: (N, C, 3, h, w) "orthonormal", "wtconv"; (N, 3C, h, w) band-major "dasr", "mwcnn", "irn";
        (N, C, h, w) "dasr_sum"; three tensors (N, C, h, w) "wct2", "wavesnet". Of several levels, the last one's low
        and the list of all levels' high, finest first, as ``DWTForward(J=levels)`` of pytorch_wavelets returns them
        (``wavedec2`` of PyWavelets and ptwt: coarsest first); a level that was not computed is None.
        Dtype of ``x`` (also under autocast), computed in fp32 registers (fp64 for fp64); channels_last in,
        channels_last out.

    Differentiable in ``x`` to any order: the backward pass is the exact adjoint, padding included; a row that "floor"
    drops gets zeros. Deterministic.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was passed.
    """
    op = "haar_dwt2d"
    plan, in_tuple = choice(op, "convention", convention, _ANALYSES)
    wanted = choice(op, "bands", bands, BANDS)
    code = choice(op, "pad", pad, PAD_CODES)
    levels = integer(op, "levels", levels, least=1)
    check_image(op, "x", x)
    low, high = x, []
    for level in range(levels):
        _check_size(op, low, code, level)
        out = analysis(Image(low), Analysis(plan, code, wanted | LOW if level < levels - 1 else wanted))
        low = out[0]
        high.append(None if wanted == LOW else out[-1].unbind(0) if in_tuple else out[-1])
    return None if wanted == HIGH else low, high if levels > 1 else high[0]  # type: ignore[return-value]


def _check_size(op: str, x: Tensor, pad: int, level: int) -> None:
    """There is a cell in ``x``, and after ``level`` levels still something to transform."""
    if level == 0 and pad != _FLOOR:
        return
    rows, columns = x.shape[-2:]
    if (min if pad == _FLOOR else max)(rows, columns) >= 2:
        return
    if level == 0:
        raise ValueError(
            f"{op}: x must have height and width of at least 2 for pad='floor', got shape {tuple(x.shape)}"
        )
    raise ValueError(f"{op}: levels must be at most {level} here, where the low band is {rows}x{columns}")


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
    _check_size("haar_highpass", x, code, 0)
    (high,) = analysis(Image(x), Analysis(plan, code, HIGH))
    return high.unbind(0) if in_tuple else high  # type: ignore[return-value]


def haar_idwt2d(
    low: Tensor | None,
    high: HighBands | HighLevels | None,
    convention: str = "orthonormal",
    *,
    output_size: tuple[int, int] | None = None,
) -> Tensor:
    """Inverse of ``haar_dwt2d``: takes what it returned; exact up to rounding, for odd sizes too, whatever the padding.

    Args:
        low, high: as ``haar_dwt2d`` returns them, ``high`` of several levels as a list, finest first. ``low``, ``high``
            or a level in the list may be None and then counts as zeros.
        convention: the one they were made with; "dasr_sum" has no inverse.
        output_size: (H, W) of the image, (2h, 2w) if None. For h x w bands, the finest ones, 2h or 2h-1 by 2w or 2w-1;
            or 2h or 2h+1 by 2w or 2w+1 where pad="floor" dropped the last row or column: it comes back as zeros.
            Between two levels the finer bands say the size.

    Returns:
        (N, C, H, W), dtype and layout of the bands. Differentiable in all bands to any order; gradients of
        a tuple's three tensors have the layout of the first.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was passed.
    """
    op = "haar_idwt2d"
    layout = choice(op, "convention", convention, CONVENTIONS).layout
    if layout == "sum":
        raise ValueError(f"{op}: convention 'dasr_sum' adds the high bands up and has no inverse")
    if low is not None:
        check_image(op, "low", low)
    names, levels = ["high"], [high]
    if isinstance(high, list) and not (layout == "tuple" and any(isinstance(band, Tensor) for band in high)):
        if not high:
            raise ValueError(f"{op}: high must hold at least one level, got []")
        names, levels = [f"high[{j}]" for j in range(len(high))], high  # type: ignore[assignment]
    size = None if output_size is None else _two_integers(op, "output_size", output_size)
    stacked, sizes = [], []
    for name, level in zip(names, levels, strict=True):
        bands = None if level is None else _one_tensor(op, name, level, convention)
        stacked.append(bands)
        sizes.append(size)
        if bands is not None:
            size = bands.shape[-2], bands.shape[-1]
        elif size is not None:
            size = (size[0] + 1) // 2, (size[1] + 1) // 2
    for j in reversed(range(len(stacked))):
        sized = "output_size" if j == 0 else f"the size of {names[j - 1]}"
        low = _one_level(op, (names[j], sized), Bands(low, stacked[j]), convention, sizes[j])
    assert low is not None
    return low


def _one_tensor(op: str, name: str, high: Any, convention: str) -> Tensor:
    """The high bands of one level, checked, a tuple's as (3, N, C, h, w)."""
    layout = CONVENTIONS[convention].layout
    if isinstance(high, (tuple, list)) != (layout == "tuple"):
        expected = "a tuple of three (N, C, h, w) tensors" if layout == "tuple" else "one tensor"
        raise TypeError(f"{op}: {name} must be {expected} for convention {convention!r}, got {describe(high)}")
    if layout == "tuple":
        if len(high) != 3:
            raise ValueError(f"{op}: {name} must hold three tensors, got {len(high)}")
        for i, band in enumerate(high):
            check_image(op, f"{name}[{i}]", band)
            if band.shape != high[0].shape or band.dtype != high[0].dtype or band.device != high[0].device:
                raise ValueError(f"{op}: {name}[{i}] must match {name}[0] ({describe(high[0])}), got {describe(band)}")
        return _stack(*high)
    if layout == "band_major":
        check_image(op, name, high)
        if high.shape[1] % 3:
            raise ValueError(f"{op}: {name} must be (N, 3C, h, w), got {tuple(high.shape)}")
    elif not isinstance(high, Tensor) or high.dim() != 5 or (not high.is_nested and high.shape[2] != 3):
        raise ValueError(f"{op}: {name} must be (N, C, 3, h, w), got {describe(high)}")
    else:
        check_image(op, name, high, "(N, C, 3, h, w)", 5)
    return high


def _one_level(op: str, names: tuple[str, str], bands: Bands, convention: str, size: tuple[int, int] | None) -> Tensor:
    """The image of this size with these bands; ``names`` are those of the high bands and of the size."""
    (low, high), (name, sized) = bands, names
    if low is None and high is None:
        raise ValueError(f"{op}: low and {name} are both None")
    if low is not None and high is not None:
        n, c, h, w = low.shape
        layout = CONVENTIONS[convention].layout
        expected = {"band_major": (n, 3 * c, h, w), "channel_major": (n, c, 3, h, w), "tuple": (3, n, c, h, w)}[layout]
        if tuple(high.shape) != expected:
            raise ValueError(f"{op}: {name} must be {expected} for low {tuple(low.shape)}, got {tuple(high.shape)}")
        if low.dtype != high.dtype or low.device != high.device:
            raise ValueError(
                f"{op}: {name} must match low ({low.dtype}, {low.device}), got {high.dtype}, {high.device}"
            )
    one = low if low is not None else high
    assert one is not None
    h, w = one.shape[-2:]
    rows, columns = size or (2 * h, 2 * w)
    pad = _FLOOR if rows > 2 * h or columns > 2 * w else _ZERO
    if cells(rows, pad) != h or cells(columns, pad) != w:
        raise ValueError(
            f"{op}: {sized} must be ({2 * h - 1} or {2 * h}, {2 * w - 1} or {2 * w}) for {h}x{w} bands, or "
            f"({2 * h} or {2 * h + 1}, {2 * w} or {2 * w + 1}) after pad='floor', got ({rows}, {columns})"
        )
    return synthesis(bands, Synthesis(rows, columns, plan_id(convention, inverse=True), pad))[0]


def _two_integers(op: str, argument: str, value: Any) -> tuple[int, int]:
    try:
        if isinstance(value, (tuple, list)):
            height, width = (integer(op, argument, size) for size in value)
            return height, width
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{op}: {argument} must be two integers, got {shown(value)}")
