"""Haar wavelet transform as modules."""

from __future__ import annotations

from torch import Tensor, nn

from ..._validate import choice
from .api import PAD_CODES, HighBands, convention_of, haar_dwt2d, haar_highpass
from .conventions import BANDS


class HaarDWT2d(nn.Module):
    """Module form of ``haar_dwt2d``: ``module(x) -> (low, high)``. No parameters, no buffers, no state-dict keys."""

    def __init__(self, convention: str = "orthonormal", *, bands: str = "both", pad: str = "reflect") -> None:
        super().__init__()
        convention_of("HaarDWT2d", convention)
        choice("HaarDWT2d", "pad", pad, PAD_CODES)
        self.convention = convention
        choice("HaarDWT2d", "bands", bands, BANDS)
        self.bands = bands
        self.pad = pad

    def forward(self, x: Tensor) -> tuple[Tensor | None, HighBands | None]:
        return haar_dwt2d(x, self.convention, bands=self.bands, pad=self.pad)

    def extra_repr(self) -> str:
        return f"{self.convention!r}, bands={self.bands!r}, pad={self.pad!r}"


class HaarHighPass(nn.Module):
    """Module form of ``haar_highpass``: DASR's discriminator input. No parameters, no buffers, no state-dict keys."""

    def __init__(self, convention: str = "dasr", *, pad: str = "reflect") -> None:
        super().__init__()
        convention_of("HaarHighPass", convention)
        choice("HaarHighPass", "pad", pad, PAD_CODES)
        self.convention = convention
        self.pad = pad

    def forward(self, x: Tensor) -> HighBands:
        return haar_highpass(x, self.convention, pad=self.pad)

    def extra_repr(self) -> str:
        return f"{self.convention!r}, pad={self.pad!r}"
