"""The Haar conventions in use, as data.

For each 2x2 cell ``a b / c d`` (rows / columns) every convention is a choice of sign, scale, order, shift and
layout of the same four sums:

    S = a + b + c + d        low pass
    V = a + b - c - d        vertical difference, top minus bottom
    H = a - b + c - d        horizontal difference, left minus right
    D = a - b - c + d        diagonal difference

The names LH and HL mean opposite things in different packages and are therefore not used.
"""

from __future__ import annotations

from dataclasses import dataclass

PADS = ("reflect", "zero", "symmetric", "periodization", "periodic", "floor")

LOW, HIGH, BOTH = 1, 2, 3
BANDS = {"low": LOW, "high": HIGH, "both": BOTH}


@dataclass(frozen=True)
class Convention:
    """One package's Haar transform.

    Attributes:
        low: factor of S.
        high: (band, factor) in the package's order; band is "V", "H" or "D".
        shift: constant added to every high band.
        layout: of ``high`` for input (N, C, H, W) and h, w = ceil(H/2), ceil(W/2):
            "channel_major" (N, C, 3, h, w), "band_major" (N, 3C, h, w), "tuple" three tensors (N, C, h, w),
            "sum" one tensor (N, C, h, w) that holds the sum of the bands.
    """

    name: str
    low: float
    high: tuple[tuple[str, float], tuple[str, float], tuple[str, float]]
    shift: float
    layout: str

    @property
    def used_by(self) -> str:
        return "; ".join(USED_BY[self.name])

    def factor(self, band: str) -> float:
        return dict(self.high)[band]

    def slot(self, band: str) -> int:
        """Position of ``band`` among the high bands; all share slot 0 where they are summed."""
        return 0 if self.layout == "sum" else [b for b, _ in self.high].index(band)


def _bands(order: str, *factors: float) -> tuple[tuple[str, float], tuple[str, float], tuple[str, float]]:
    (f0, f1, f2) = factors if len(factors) == 3 else factors * 3
    return ((order[0], f0), (order[1], f1), (order[2], f2))


CONVENTIONS: dict[str, Convention] = {
    c.name: c
    for c in (
        Convention("orthonormal", 0.5, _bands("VHD", 0.5), 0.0, "channel_major"),
        Convention("dasr", 0.25, _bands("VHD", 0.25), 0.5, "band_major"),
        Convention("dasr_sum", 0.25, _bands("VHD", 1 / 12), 0.5, "sum"),
        Convention("mwcnn", 0.5, _bands("HVD", -0.5, -0.5, 0.5), 0.0, "band_major"),
        Convention("irn", 0.25, _bands("HVD", 0.25), 0.0, "band_major"),
        Convention("wct2", 0.5, _bands("HVD", -0.5, -0.5, 0.5), 0.0, "tuple"),
        Convention("wavesnet", 0.5, _bands("HVD", 0.5), 0.0, "tuple"),
        Convention("wtconv", 0.5, _bands("VHD", 0.5), 0.0, "channel_major"),
    )
}

# Whose transform it is for even sizes, with the settings that select it.
USED_BY: dict[str, tuple[str, ...]] = {
    "orthonormal": ("pytorch_wavelets", "PyWavelets (three arrays)", "ptwt (three tensors)"),
    "dasr": ("DASR's SRN (norm=true)", "DASR's DSN (cat_or_sum=cat)"),
    "dasr_sum": ("DASR's DSN (cat_or_sum=sum)",),
    "mwcnn": ("MWCNN (PyTorch)", "HWMNet", "DiffLL (bands along N)"),
    "irn": ("IRN", "FrEIA (order_by_wavelet=True, rebalance=0.5)"),
    "wct2": ("WCT2",),
    "wavesnet": ("WaveSNet", "WaveDiff (DWT_2D)"),
    "wtconv": ("WTConv",),
}


@dataclass(frozen=True)
class Plan:
    """What a kernel needs from a convention: factors of S, V, H, D, slots of V, H, D, the shift and the layout."""

    low: float
    v: float
    h: float
    d: float
    slot_v: int
    slot_h: int
    slot_d: int
    shift: float
    layout: str


def _plan(c: Convention, inverse: bool, affine: bool) -> Plan:
    # The 4x4 matrix of (S, V, H, D) is symmetric and its square is 4 I, so the inverse transform is the adjoint
    # with every factor k replaced by 1 / (4 k).
    def factor(k: float) -> float:
        return 0.25 / k if inverse else k

    v, h, d = (factor(c.factor(band)) for band in "VHD")
    slot_v, slot_h, slot_d = (c.slot(band) for band in "VHD")
    return Plan(factor(c.low), v, h, d, slot_v, slot_h, slot_d, c.shift if affine else 0.0, c.layout)


# Ops carry a plan as one small integer; bit 0 is "with the shift", bit 1 "inverse factors".
PLANS: tuple[Plan, ...] = tuple(
    _plan(c, inverse, affine) for c in CONVENTIONS.values() for inverse in (False, True) for affine in (False, True)
)
_FIRST_PLAN = {name: 4 * i for i, name in enumerate(CONVENTIONS)}
AFFINE, INVERSE = 1, 2


def plan_id(convention: str, inverse: bool = False) -> int:
    return _FIRST_PLAN[convention] + AFFINE + (INVERSE if inverse else 0)


def linear(plan: int) -> int:
    """The plan of the linear part: what derivatives use."""
    return plan & ~AFFINE
