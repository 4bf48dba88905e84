"""Specs of the Haar ops: shapes to test, figures to bench, algebra that must hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._parity import flat
from ..._spec import BenchCase, Case, OpSpec
from . import allocate, aot, oracle, reference
from .api import HighBands, haar_dwt2d, haar_highpass, haar_idwt2d
from .arguments import Analysis, Bands, Image, Synthesis
from .conventions import BANDS, CONVENTIONS, HIGH, PADS, plan_id

_SHAPES = {
    "even": (2, 3, 8, 12),
    "odd": (2, 3, 7, 5),
    "prime-63x127": (1, 2, 63, 127),
    "1-wide": (2, 2, 9, 1),
    "1-high": (1, 3, 1, 6),
    "1x1": (1, 1, 1, 1),
    "deep": (1, 37, 6, 34),
    "vector-channels": (2, 16, 8, 12),
    "one-channel": (3, 1, 34, 66),
    "no-batch": (0, 3, 4, 4),
    "no-channel": (2, 0, 5, 4),
}


def _half(n: int) -> int:
    return (n + 1) // 2


# haar_dwt2d


def eager_dwt2d(
    x: Tensor, convention: str = "orthonormal", *, levels: int = 1, bands: str = "both", pad: str = "reflect"
) -> Any:
    """``haar_dwt2d`` by strided slices and eager arithmetic."""
    return oracle.over_levels(lambda x, bands: _eager_level(x, convention, bands, pad), x, levels, bands)


def _eager_level(x: Tensor, convention: str, bands: str, pad: str) -> tuple[Tensor | None, HighBands | None]:
    wanted = BANDS[bands]
    out = reference.analysis(Image(x), Analysis(plan_id(convention), PADS.index(pad), wanted))
    low = out[0] if wanted != HIGH else None
    high: Any = out[-1] if bands != "low" else None
    if high is not None and CONVENTIONS[convention].layout == "tuple":
        high = high.unbind(0)
    return low, high


def eager_highpass(x: Tensor, convention: str = "dasr", *, pad: str = "reflect") -> HighBands:
    high = _eager_level(x, convention, "high", pad)[1]
    assert high is not None
    return high


_DWT_CASES = (
    *(Case(f"{c}-{s}", (_SHAPES[s],), {"convention": c}) for c in CONVENTIONS for s in ("even", "odd")),
    *(
        Case(f"{pad}-{s}", (_SHAPES[s],), {"convention": "dasr", "pad": pad})
        for pad in PADS
        for s in ("odd", *(("1-wide", "1-high", "1x1") if pad != "floor" else ()))
    ),
    *(Case(f"orthonormal-{s}", (_SHAPES[s],)) for s in _SHAPES if s not in ("even", "odd")),
    *(
        Case(f"{c}-{bands}-only", (_SHAPES["odd"],), {"convention": c, "bands": bands})
        for c in ("orthonormal", "mwcnn")
        for bands in ("low", "high")
    ),
    Case("levels", (_SHAPES["prime-63x127"],), {"levels": 3, "pad": "periodic"}),
    Case("levels-floor", (_SHAPES["deep"],), {"convention": "wct2", "levels": 2, "bands": "high", "pad": "floor"}),
)
_DWT_SMALL = (
    *(
        Case(f"{c}-{pad}", ((1, 2, 3, 4),), {"convention": c, "pad": pad})
        for c, pad in zip(CONVENTIONS, itertools.cycle(PADS), strict=False)
    ),
    Case("levels", ((1, 1, 5, 3),), {"levels": 2}),
)


def _cells(case: Case) -> list[int]:
    """Of each level."""
    assert case.shapes[0] is not None
    n, c, h, w = case.shapes[0]
    pad = PADS.index(case.kwargs.get("pad", "reflect"))
    found = []
    for _ in range(case.kwargs.get("levels", 1)):
        h, w = allocate.cells(h, pad), allocate.cells(w, pad)
        found.append(n * c * h * w)
    return found


def _dwt_bytes(case: Case, itemsize: int, passes: str) -> int:
    """The image once, and of each level's bands those that are returned."""
    bands = case.kwargs.get("bands", "both")
    layout = CONVENTIONS[case.kwargs.get("convention", "orthonormal")].layout
    planes = 0 if bands == "low" else 1 if layout == "sum" else 3
    cells = _cells(case)
    assert case.shapes[0] is not None
    values = math.prod(case.shapes[0]) + planes * sum(cells) + (cells[-1] if bands != "high" else 0)
    return itemsize * values * (2 if passes == "forward+backward" else 1)


def _dwt_flops(case: Case, passes: str) -> int:
    return 12 * sum(_cells(case)) * (2 if passes == "forward+backward" else 1)


def published_highpass(x: Tensor, convention: str = "dasr", *, pad: str = "reflect") -> Tensor:
    """DASR's discriminator input as published: two grouped convolutions per axis, rescale, slices, concatenation.

    Only for even sizes, "dasr" and "reflect": what the training code runs.
    """
    n, c, h, w = x.shape
    step = torch.tensor([1.0, 1.0], dtype=x.dtype, device=x.device) / 2**0.5
    edge = torch.tensor([1.0, -1.0], dtype=x.dtype, device=x.device) / 2**0.5
    filters = torch.stack((step, edge)).repeat(c, 1).view(2 * c, 1, 2)
    rows = F.conv2d(x, filters.unsqueeze(2), stride=(1, 2), groups=c)
    filters = torch.stack((step, edge)).repeat(2 * c, 1).view(4 * c, 1, 2)
    both = F.conv2d(rows, filters.unsqueeze(3), stride=(2, 1), groups=2 * c).view(n, c, 2, 2, h // 2, w // 2)
    high = torch.stack((both[:, :, 0, 1], both[:, :, 1, 0], both[:, :, 1, 1]), dim=2)
    v, hor, d = (high[:, :, i] * 0.5 + 0.5 for i in range(3))
    return torch.cat((v, hor, d), dim=1)


def _levels_pytorch_wavelets() -> Callable[..., Any]:
    from pytorch_wavelets import DWTForward

    transform = DWTForward(J=_LEVELS.kwargs["levels"], wave="haar", mode="reflect")
    return lambda x, **_: transform.to(x.device)(x)


def _levels_ptwt() -> Callable[..., Any]:
    import ptwt

    def transform(x: Tensor, levels: int, **_: Any) -> Any:
        low, *details = ptwt.wavedec2(x, "haar", mode="reflect", level=levels)
        return low, [torch.stack(tuple(level), 2) for level in reversed(details)]

    return transform


def _pytorch_wavelets() -> Callable[..., Any]:
    from pytorch_wavelets import DWTForward

    transform = DWTForward(J=1, wave="haar", mode="reflect")

    def highpass(x: Tensor, **_: Any) -> Tensor:
        bands = transform.to(x.device)(x)[1][0] * 0.5 + 0.5
        return torch.cat((bands[:, :, 0], bands[:, :, 1], bands[:, :, 2]), dim=1)

    return highpass


def _ptwt() -> Callable[..., Any]:
    import ptwt

    def highpass(x: Tensor, **_: Any) -> Tensor:
        _, details = ptwt.wavedec2(x, "haar", mode="reflect", level=1)
        return torch.cat([band * 0.5 + 0.5 for band in details], dim=1)

    return highpass


_LEVELS = Case("levels3-8x3x512x512", ((8, 3, 512, 512),), {"levels": 3})


def _bench(passes: str, targets: dict[str, float]) -> tuple[BenchCase, ...]:
    operand = ("x",) if passes == "forward+backward" else ()
    shapes = ((16, 3, 192, 192), (8, 3, 512, 512))
    cases = [Case("x".join(map(str, s)), (s,), {"convention": "dasr"}) for s in shapes]
    extra = [
        BenchCase(cases[1], passes, "bfloat16", False, operand),
        BenchCase(cases[1], passes, "float32", True, operand),
    ]
    return (*(BenchCase(c, passes, differentiable=operand, targets=targets) for c in cases), *extra)


# haar_idwt2d


def _high_shape(convention: str, n: int, c: int, h: int, w: int) -> tuple[int, ...]:
    return (n, c, 3, h, w) if CONVENTIONS[convention].layout == "channel_major" else (n, 3 * c, h, w)


def idwt2d(low: Tensor, high: Tensor, convention: str = "orthonormal", **kwargs: Any) -> Tensor:
    """``haar_idwt2d`` with "tuple" conventions taking their three bands as one (N, 3C, h, w) operand."""
    bands: Any = high.chunk(3, dim=1) if CONVENTIONS[convention].layout == "tuple" else high
    return haar_idwt2d(low, bands, convention, **kwargs)


def eager_idwt2d(
    low: Tensor, high: Tensor, convention: str = "orthonormal", *, output_size: tuple[int, int] | None = None
) -> Tensor:
    bands = torch.stack(high.chunk(3, dim=1)) if CONVENTIONS[convention].layout == "tuple" else high
    rows, columns = output_size or (2 * low.shape[2], 2 * low.shape[3])
    pad = "floor" if rows > 2 * low.shape[2] or columns > 2 * low.shape[3] else "zero"
    settings = Synthesis(rows, columns, plan_id(convention, inverse=True), PADS.index(pad))
    return reference.synthesis(Bands(low, bands), settings)[0]


def _idwt_case(convention: str, shape: str) -> Case:
    n, c, rows, columns = _SHAPES[shape]
    h, w = _half(rows), _half(columns)
    shapes = ((n, c, h, w), _high_shape(convention, n, c, h, w))
    return Case(f"{convention}-{shape}", shapes, {"convention": convention, "output_size": (rows, columns)})


_INVERTIBLE = tuple(c for c in CONVENTIONS if CONVENTIONS[c].layout != "sum")
_IDWT_CASES = (
    *(_idwt_case(c, s) for c in _INVERTIBLE for s in ("even", "odd")),
    *(_idwt_case("orthonormal", s) for s in _SHAPES if s not in ("even", "odd")),
    Case("floor", ((2, 3, 3, 2), (2, 9, 3, 2)), {"convention": "irn", "output_size": (7, 5)}),
)
_IDWT_SMALL = tuple(
    Case(c, ((1, 2, 2, 2), _high_shape(c, 1, 2, 2, 2)), {"convention": c, "output_size": (3, 4)}) for c in _INVERTIBLE
)


def _idwt_bytes(case: Case, itemsize: int, passes: str) -> int:
    assert case.shapes[0] is not None
    n, c, h, w = case.shapes[0]
    rows, columns = case.kwargs.get("output_size") or (2 * h, 2 * w)
    return itemsize * n * c * (4 * h * w + rows * columns) * (2 if passes == "forward+backward" else 1)


# algebra


def _random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(20201)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _perfect_reconstruction() -> None:
    for name in _INVERTIBLE:
        for pad in PADS:
            x = _random(2, 3, 7, 10)
            low, high = haar_dwt2d(x, name, pad=pad)
            again = haar_idwt2d(low, high, name, output_size=(7, 10))
            if pad == "floor":
                assert not again[:, :, 6:].any()
                again, x = again[:, :, :6], x[:, :, :6]
            torch.testing.assert_close(again, x, rtol=0, atol=1e-15)


def _levels_undone() -> None:
    for name in _INVERTIBLE:
        for pad in PADS:
            x = _random(2, 3, 21, 10)
            low, high = haar_dwt2d(x, name, levels=3, pad=pad)
            again = haar_idwt2d(low, high, name, output_size=(21, 10))
            if pad == "floor":  # what was dropped is not known, but every band is that of what comes back
                bands = haar_dwt2d(again, name, levels=3, pad=pad)
                for one, other in zip(flat(bands), flat((low, high)), strict=True):
                    torch.testing.assert_close(one, other, rtol=0, atol=4e-15)
            else:
                torch.testing.assert_close(again, x, rtol=0, atol=4e-15)
                alone = (haar_dwt2d(x, name, levels=3, bands=bands, pad=pad) for bands in ("low", "high"))
                parts = [haar_idwt2d(*bands, name, output_size=(21, 10)) for bands in alone]
                torch.testing.assert_close(sum(parts), x, rtol=0, atol=4e-15)


def _parseval() -> None:
    x = _random(2, 3, 8, 10)
    low, high = haar_dwt2d(x)
    assert low is not None and isinstance(high, Tensor)
    torch.testing.assert_close(low.square().sum() + high.square().sum(), x.square().sum(), rtol=1e-14, atol=0)


def _adjointness() -> None:
    # Small integers: both inner products are exact, so they must be equal to the last bit.
    generator = torch.Generator().manual_seed(7)
    for pad in PADS:
        x = torch.randint(-8, 8, (2, 3, 7, 5), generator=generator).double().requires_grad_()
        low, high = haar_dwt2d(x, pad=pad)
        assert low is not None and isinstance(high, Tensor)
        y_low = torch.randint(-8, 8, low.shape, generator=generator).double()
        y_high = torch.randint(-8, 8, high.shape, generator=generator).double()
        (adjoint,) = torch.autograd.grad((low, high), x, (y_low, y_high))
        assert (low * y_low).sum() + (high * y_high).sum() == (x * adjoint).sum(), pad


def _constant_image() -> None:
    high = haar_highpass(torch.full((1, 3, 9, 6), 0.7, dtype=torch.float64), "dasr")
    assert isinstance(high, Tensor) and bool((high == 0.5).all()), "a flat image must give 0.5 in every dasr band"


HAAR_DWT2D = OpSpec(
    name="haar_dwt2d",
    package=__package__,
    op=haar_dwt2d,
    oracle=oracle.dwt2d,
    eager=eager_dwt2d,
    operands=("x",),
    cases=_DWT_CASES,
    small=_DWT_SMALL,
    bench=(BenchCase(_LEVELS, "forward"), BenchCase(_LEVELS, "forward+backward", differentiable=("x",))),
    bytes_moved=_dwt_bytes,
    flops=_dwt_flops,
    published=eager_dwt2d,
    peers={"pytorch_wavelets": _levels_pytorch_wavelets, "ptwt": _levels_ptwt},
    invariants={
        "perfect reconstruction": _perfect_reconstruction,
        "levels undone": _levels_undone,
        "Parseval": _parseval,
        "adjointness": _adjointness,
    },
    aot=aot.cases,
)
HAAR_HIGHPASS = OpSpec(
    name="haar_highpass",
    package=__package__,
    op=haar_highpass,
    oracle=oracle.highpass,
    eager=eager_highpass,
    operands=("x",),
    cases=tuple(Case(f"dasr-{s}", (_SHAPES[s],), {"convention": "dasr"}) for s in _SHAPES),
    small=(Case("dasr", ((1, 2, 3, 4),)),),
    bench=(
        *_bench("forward", {"eager": 8.0, "compile": 1.8}),
        *_bench("forward+backward", {"eager": 8.0, "compile": 3.0}),
    ),
    bytes_moved=lambda case, itemsize, passes: _dwt_bytes(
        Case(case.id, case.shapes, {"convention": "dasr", **case.kwargs, "bands": "high"}), itemsize, passes
    ),
    flops=_dwt_flops,
    published=published_highpass,
    peers={"pytorch_wavelets": _pytorch_wavelets, "ptwt": _ptwt},
    invariants={"constant image": _constant_image},
)
HAAR_IDWT2D = OpSpec(
    name="haar_idwt2d",
    package=__package__,
    op=idwt2d,
    oracle=oracle.idwt2d,
    eager=eager_idwt2d,
    operands=("low", "high"),
    cases=_IDWT_CASES,
    small=_IDWT_SMALL,
    bench=(),
    bytes_moved=_idwt_bytes,
    flops=_dwt_flops,
    published=eager_idwt2d,
)

SPECS = (HAAR_DWT2D, HAAR_HIGHPASS, HAAR_IDWT2D)
