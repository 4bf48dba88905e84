"""Registration of the Haar operators, each the other's derivative."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..._layout import in_layout, is_channels_last
from ..._op import Adjoint, Backend, fused_op
from . import allocate
from .arguments import Analysis, Bands, Image, Synthesis
from .conventions import HIGH, LOW, linear

_Layouts = tuple[bool, bool]


def _adjoint_of_analysis(
    grads: Sequence[Tensor | None],
    settings: Analysis,
    needs: list[bool],
    backend: str,
    image: tuple[int, int, bool],
) -> Sequence[Tensor | None]:
    plan, pad, wanted = settings
    rows, columns, channels_last = image
    bands = Bands(grads[0] if wanted & LOW else None, grads[-1] if wanted & HIGH else None)
    if bands.low is None and bands.high is None:
        return (None,)
    (grad,) = synthesis(bands, Synthesis(rows, columns, linear(plan), pad), backend=backend)
    return (in_layout(grad, channels_last),)


def _image(operands: Image, settings: Analysis) -> tuple[int, int, bool]:
    (x,) = operands
    return x.shape[2], x.shape[3], is_channels_last(x)


def _adjoint_of_synthesis(
    grads: Sequence[Tensor | None], settings: Synthesis, needs: list[bool], backend: str, channels_last: _Layouts
) -> Sequence[Tensor | None]:
    _, _, plan, pad = settings
    grad, (need_low, need_high) = grads[0], needs
    if grad is None:
        return ()
    wanted = (LOW if need_low else 0) | (HIGH if need_high else 0)
    bands = analysis(Image(grad), Analysis(linear(plan), pad, wanted), backend=backend)
    low = [in_layout(bands[0], channels_last[0])] if need_low else []
    return low + ([allocate.in_layout_of_high(bands[-1], plan, channels_last[1])] if need_high else [])


def _layouts(bands: Bands, settings: Synthesis) -> _Layouts:
    low, high = bands
    return (
        low is not None and is_channels_last(low),
        high is not None and allocate.high_is_channels_last(high, settings.plan),
    )


analysis = fused_op(
    "haar_analysis",
    Image,
    Analysis,
    backend=Backend(__package__, "analysis"),
    fake=lambda image, settings: allocate.bands(image.x, settings),
    gradient=Adjoint(_adjoint_of_analysis, _image),
)
synthesis = fused_op(
    "haar_synthesis",
    Bands,
    Synthesis,
    backend=Backend(__package__, "synthesis"),
    fake=lambda bands, settings: [allocate.image(bands, settings)],
    gradient=Adjoint(_adjoint_of_synthesis, _layouts),
)
