"""Haar wavelet transform as modules."""

from __future__ import annotations

from torch import Tensor, nn

from ..._validate import choice, integer
from .api import PAD_CODES, HighBands, HighLevels, haar_dwt2d, haar_highpass
from .conventions import BANDS, CONVENTIONS


class HaarDWT2d(nn.Module):
    """Module form of ``haar_dwt2d``: ``module(x) -> (low, high)``. No parameters, no buffers, no state-dict keys."""

    def __init__(
        self, convention: str = "orthonormal", *, levels: int = 1, bands: str = "both", pad: str = "reflect"
    ) -> None:
        super().__init__()
        choice("HaarDWT2d", "convention", convention, CONVENTIONS)
        choice("HaarDWT2d", "pad", pad, PAD_CODES)
        choice("HaarDWT2d", "bands", bands, BANDS)
        self.convention = convention
        self.levels = integer("HaarDWT2d", "levels", levels, least=1)
        self.bands = bands
        self.pad = pad

    def forward(self, x: Tensor) -> tuple[Tensor | None, HighBands | HighLevels | None]:
        return haar_dwt2d(x, self.convention, levels=self.levels, bands=self.bands, pad=self.pad)

    def extra_repr(self) -> str:
        levels = f"levels={self.levels}, " if self.levels > 1 else ""
        return f"{self.convention!r}, {levels}bands={self.bands!r}, pad={self.pad!r}"


class HaarHighPass(nn.Module):
    """Module form of ``haar_highpass``: DASR's discriminator input. No parameters, no buffers, no state-dict keys."""

    def __init__(self, convention: str = "dasr", *, pad: str = "reflect") -> None:
        super().__init__()
        choice("HaarHighPass", "convention", convention, CONVENTIONS)
        choice("HaarHighPass", "pad", pad, PAD_CODES)
        self.convention = convention
        self.pad = pad

    def forward(self, x: Tensor) -> HighBands:
        return haar_highpass(x, self.convention, pad=self.pad)

    def extra_repr(self) -> str:
        return f"{self.convention!r}, pad={self.pad!r}"
