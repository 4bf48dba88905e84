"""The Haar transforms of published code, each by its own formula, and what of ours replaces them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from srkernels._parity import flat

from .operands import random

EPS = torch.finfo(torch.float64).eps
# PyWavelets' "haar" filters as a correlation applies them.
LOW, HIGH = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64) / 2**0.5


# Several levels of the small ones below, each on the low band before.
LEVELS = 3


def images(*shape: int) -> Tensor:
    return random(shape, torch.float64, 0)


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal up to a dozen roundings, half an eps each, of sums whose terms are below three in all."""
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=12 * EPS / 2 * 3)


def filtered(x: Tensor, filters: Tensor) -> Tensor:
    """Every channel through every filter (K, 2, 2), stride 2: (N, CK, h, w), the K of a channel side by side."""
    return F.conv2d(x, filters[:, None].repeat(x.shape[1], 1, 1, 1), stride=2, groups=x.shape[1])


def unfiltered(bands: Tensor, filters: Tensor) -> Tensor:
    """The transposed convolution."""
    channels = bands.shape[1] // len(filters)
    return F.conv_transpose2d(bands, filters[:, None].repeat(channels, 1, 1, 1), stride=2, groups=channels)


# pytorch_wavelets, dwt/lowlevel.py: one axis at a time, the width first.


def split(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    pairs = x.unflatten(dim, (-1, 2)).movedim(dim, -1)
    return pairs @ LOW, pairs @ HIGH


def merge(low: Tensor, high: Tensor, dim: int) -> Tensor:
    return (low[..., None] * LOW + high[..., None] * HIGH).movedim(-1, dim).flatten(dim - 1, dim)


def pytorch_wavelets(x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = split(x, -1)
    (ll, lh), (hl, hh) = split(low, -2), split(high, -2)
    return ll, torch.stack((lh, hl, hh), 2)


def pytorch_wavelets_inverse(bands: tuple[Tensor, Tensor]) -> Tensor:
    ll, (lh, hl, hh) = bands[0], bands[1].unbind(2)
    return merge(merge(ll, lh, -2), merge(hl, hh, -2), -1)


def pywavelets(x: Tensor) -> list[Tensor]:
    pywt = pytest.importorskip("pywt", reason="PyWavelets is not installed")
    low, high = pywt.dwt2(x.numpy(), "haar")
    return [torch.from_numpy(band) for band in (low, *high)]


def pywavelets_inverse(bands: list[Tensor]) -> Tensor:
    pywt = pytest.importorskip("pywt", reason="PyWavelets is not installed")
    low, *high = (band.numpy() for band in bands)
    return torch.from_numpy(pywt.idwt2((low, high), "haar"))


def ptwt_wavedec2(x: Tensor) -> list[Tensor]:
    ptwt = pytest.importorskip("ptwt", reason="ptwt is not installed")
    low, high = ptwt.wavedec2(x, "haar", level=1)
    return [low, high.horizontal, high.vertical, high.diagonal]


def ptwt_waverec2(bands: list[Tensor]) -> Tensor:
    ptwt = pytest.importorskip("ptwt", reason="ptwt is not installed")
    low, *high = bands
    return ptwt.waverec2((low, ptwt.constants.WaveletDetailTuple2d(*high)), "haar")


# DASR, on the bands of pytorch_wavelets: SRN/models/DASR_model.py has all, DSN/model.py the high, DSN/loss.py the low.


def dasr_srn(x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = pytorch_wavelets(x)
    return low * 0.5, torch.cat((high * 0.5 + 0.5).unbind(2), 1)


def dasr_dsn(x: Tensor, cat_or_sum: str) -> tuple[Tensor, Tensor]:
    low, high = pytorch_wavelets(x)
    lh, hl, hh = (band * 0.5 + 0.5 for band in high.unbind(2))
    return low * 0.5, torch.cat((lh, hl, hh), 1) if cat_or_sum == "cat" else (lh + hl + hh) / 3


# MWCNN in PyTorch, model/common.py: sums of the four phases, each halved, stacked as LL, HL, LH, HH.


def mwcnn(x: Tensor, dim: int = 1) -> Tensor:
    x1, x2, x3, x4 = (x[..., row::2, column::2] / 2 for column in (0, 1) for row in (0, 1))
    return torch.cat((x1 + x2 + x3 + x4, -x1 - x2 + x3 + x4, -x1 + x2 - x3 + x4, x1 - x2 - x3 + x4), dim)


def mwcnn_inverse(bands: Tensor, dim: int = 1) -> Tensor:
    ll, hl, lh, hh = (bands / 2).chunk(4, dim)
    x = bands.new_empty(*ll.shape[:2], 2 * ll.shape[2], 2 * ll.shape[3])
    x[..., ::2, ::2], x[..., 1::2, ::2] = ll - hl - lh + hh, ll - hl + lh - hh
    x[..., ::2, 1::2], x[..., 1::2, 1::2] = ll + hl - lh - hh, ll + hl + lh + hh
    return x


# IRN, models/modules/Inv_arch.py, and FrEIA, modules/reshapes.py: four filters of signs. IRN divides by 4 forward
# and by nothing in the inverse; FrEIA scales by rebalance / 2 and 1 / (2 rebalance), and permutes channels.

SIGNS = torch.tensor([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]).double()
REBALANCE = 0.5


def irn(x: Tensor) -> Tensor:
    return (filtered(x, SIGNS) / 4).unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)


def irn_inverse(bands: Tensor) -> Tensor:
    return unfiltered(bands.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), SIGNS)


def by_wavelet(channels: int) -> Tensor:
    return torch.tensor([band + 4 * channel for band in range(4) for channel in range(channels)])


def freia(x: Tensor) -> Tensor:
    return filtered(x, SIGNS)[:, by_wavelet(x.shape[1])] * (0.5 * REBALANCE)


def freia_inverse(bands: Tensor) -> Tensor:
    return unfiltered(bands[:, by_wavelet(bands.shape[1] // 4).argsort()] * (0.5 / REBALANCE), SIGNS)


# WCT2, model.py: a depthwise convolution per band, LL, LH, HL, HH; its high-pass filter subtracts the first sample from
# the second. The inverse is that of option_unpool="sum".

WCT2 = [torch.outer(column, row)[None] for column in (LOW, -HIGH) for row in (LOW, -HIGH)]


def wct2(x: Tensor) -> list[Tensor]:
    return [filtered(x, one) for one in WCT2]


def wct2_inverse(bands: list[Tensor]) -> Tensor:
    ll, lh, hl, hh = (unfiltered(band, one) for band, one in zip(bands, WCT2, strict=True))
    return ll + lh + hl + hh


# WaveSNet and WaveDiff, DWT_IDWT: matrices with a filter in every row, from the left along the height and from the
# right along the width; LL, LH, HL, HH.


def matrices(size: int) -> tuple[Tensor, Tensor]:
    eye = torch.eye(size // 2).double()
    return torch.kron(eye, LOW[None]), torch.kron(eye, HIGH[None])


def wavesnet(x: Tensor) -> list[Tensor]:
    return [left @ x @ right.T for left in matrices(x.shape[-2]) for right in matrices(x.shape[-1])]


def wavesnet_inverse(bands: list[Tensor]) -> Tensor:
    ll, lh, hl, hh = bands
    (low0, high0), (low1, high1) = matrices(2 * ll.shape[-2]), matrices(2 * ll.shape[-1])
    return low0.T @ (ll @ low1 + lh @ high1) + high0.T @ (hl @ low1 + hh @ high1)


# WTConv, util/wavelet.py: a grouped convolution with products of the filters, the bands on an axis after the channels.

WTCONV = torch.stack([torch.outer(column, row) for row in (LOW, HIGH) for column in (LOW, HIGH)])


def wtconv(x: Tensor) -> Tensor:
    return filtered(x, WTCONV).unflatten(1, (-1, 4))


def wtconv_inverse(bands: Tensor) -> Tensor:
    return unfiltered(bands.flatten(1, 2), WTCONV)


# Odd sizes and several levels. Padding as PyWavelets documents it: index i of n samples is read at i mod n by
# "periodic" and at 2 (n - 1) - i by "reflect"; a convolution of stride 2 leaves the last of an odd number out.


def padded(x: Tensor, mode: str) -> Tensor:
    for dim in (-2, -1):
        n = x.shape[dim]
        if n % 2:
            source = {"periodic": n % n, "reflect": 2 * (n - 1) - n}[mode]
            x = torch.cat((x, x.narrow(dim, source, 1)), dim)
    return x


def levels(x: Tensor, mode: str) -> tuple[Tensor, list[Tensor]]:
    """``DWTForward(J=LEVELS)`` of pytorch_wavelets: the last low band, high bands from the finest on."""
    high = []
    for _ in range(LEVELS):
        x, bands = pytorch_wavelets(padded(x, mode))
        high.append(bands)
    return x, high


def levels_undone(low: Tensor, high: list[Tensor]) -> Tensor:
    """``DWTInverse`` of pytorch_wavelets: what padding added to a low band is cut off before the next level."""
    for bands in reversed(high):
        low = pytorch_wavelets_inverse((low[..., : bands.shape[-2], : bands.shape[-1]], bands))
    return low


def coarsest_first(x: Tensor, mode: str) -> list[Any]:
    """``wavedec2`` of PyWavelets and ptwt: the low band, then a tuple of three for each level, the coarsest first."""
    low, high = levels(x, mode)
    return [low, *(bands.unbind(2) for bands in reversed(high))]


# What srkernels replaces at any size, by the row of the page's table.
AT_ANY_SIZE: dict[str, Callable[[Tensor], Any]] = {
    'pytorch_wavelets `DWTForward(J=3, wave="haar", mode="reflect")`': partial(levels, mode="reflect"),
    'pytorch_wavelets `DWTInverse(wave="haar")((low, high))`': lambda x: levels_undone(*levels(x, "reflect")),
    'PyWavelets, ptwt `wavedec2(x, "haar", mode="periodic", level=3)`': partial(coarsest_first, mode="periodic"),
    "IRN `HaarDownsampling`": irn,
    "WCT2 `WavePool`": wct2,
    "WTConv `wavelet_transform`, after its padding": lambda x: wtconv(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))),
}


class Published(NamedTuple):
    """A package's transform, its inverse if it has one, and the form in which it keeps what we call low and high."""

    convention: str
    analysis: Callable[[Tensor], Any]
    synthesis: Callable[[Any], Tensor] | None
    form: Callable[[Any, Any], Any]


def two(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low, high


def apart(low: Tensor, high: Any) -> list[Tensor]:
    return [low, *(high.unbind(2) if isinstance(high, Tensor) else high)]


def along_channels(low: Tensor, high: Tensor) -> Tensor:
    return torch.cat((low, high), 1)


def along_batch(low: Tensor, high: Tensor) -> Tensor:
    return torch.cat((low, *high.chunk(3, 1)), 0)


def after_channels(low: Tensor, high: Tensor) -> Tensor:
    return torch.cat((low[:, :, None], high), 2)


PUBLISHED = {
    "pytorch_wavelets": Published("orthonormal", pytorch_wavelets, pytorch_wavelets_inverse, two),
    "PyWavelets (three arrays)": Published("orthonormal", pywavelets, pywavelets_inverse, apart),
    "ptwt (three tensors)": Published("orthonormal", ptwt_wavedec2, ptwt_waverec2, apart),
    "DASR's SRN (norm=true)": Published("dasr", dasr_srn, None, two),
    "DASR's DSN (cat_or_sum=cat)": Published("dasr", partial(dasr_dsn, cat_or_sum="cat"), None, two),
    "DASR's DSN (cat_or_sum=sum)": Published("dasr_sum", partial(dasr_dsn, cat_or_sum="sum"), None, two),
    "MWCNN (PyTorch)": Published("mwcnn", mwcnn, mwcnn_inverse, along_channels),
    "HWMNet": Published("mwcnn", mwcnn, mwcnn_inverse, along_channels),
    "DiffLL (bands along N)": Published("mwcnn", partial(mwcnn, dim=0), partial(mwcnn_inverse, dim=0), along_batch),
    "IRN": Published("irn", irn, irn_inverse, along_channels),
    "FrEIA (order_by_wavelet=True, rebalance=0.5)": Published("irn", freia, freia_inverse, along_channels),
    "WCT2": Published("wct2", wct2, wct2_inverse, apart),
    "WaveSNet": Published("wavesnet", wavesnet, wavesnet_inverse, apart),
    "WaveDiff (DWT_2D)": Published("wavesnet", wavesnet, wavesnet_inverse, apart),
    "WTConv": Published("wtconv", wtconv, wtconv_inverse, after_channels),
}
