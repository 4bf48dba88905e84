"""Registration of the weighted loss operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..._modes import records
from ..._op import Backend, Gradient, fused_op
from . import allocate, reference
from .arguments import L1, NONE, Operands, Saved, Settings


def _save(operands: Operands, outputs: Sequence[Tensor], settings: Settings, needs: Sequence[bool]) -> Saved:
    statistics = outputs[1] if settings.by_weight else None
    signs = outputs[-1] if len(outputs) > 1 + settings.by_weight else None
    return Saved(*operands, statistics, signs)


def _strides(operands: Operands, settings: Settings) -> tuple[int, ...] | None:
    return None if torch.compiler.is_compiling() else operands.input.stride()  # a traced call keeps no signs


def _finish(
    backward: Callable[..., list[Tensor]],
    grad: Tensor,
    saved: Saved,
    settings: Settings,
    needs: list[bool],
    strides: tuple[int, ...] | None,
) -> list[Tensor]:
    if saved.signs is not None and saved.input.stride() != strides:
        saved = saved._replace(signs=None)  # a hook on saved tensors changed their memory layout from the signs'
    return backward(grad, saved, settings, needs)


def _differentiable(grad: Tensor, saved: Saved, settings: Settings, needs: Sequence[bool]) -> list[Tensor]:
    if saved.statistics is not None:
        # The saved sums carry no gradient; recomputed, they do.
        saved = saved._replace(statistics=reference.mean_by_weight(saved.operands, settings))
    return reference.backward(grad, saved, settings, needs)


def _keeps_signs(operands: Operands, settings: Settings) -> bool:
    """Signs save L1's backward pass reading both images; a gradient of the weight needs the images anyway. A traced
    call keeps none, so that dynamic sizes are not specialised on their divisibility.
    """
    if settings.kind != L1 or settings.reduction == NONE:
        return False
    for_weight, tracing = records(operands.weight), torch.compiler.is_compiling()
    return not for_weight and not tracing and allocate.can_keep_signs(operands)


weighted_loss = fused_op(
    "weighted_loss",
    Operands,
    Settings,
    backend=Backend(__package__),
    fake=allocate.loss,
    gradient=Gradient(
        saved=Saved,
        save=_save,
        fake=lambda grad, saved, settings, needs: allocate.gradients(saved, needs),
        differentiable=_differentiable,
        finish=_finish,
        note=_strides,
        keeps=_keeps_signs,
    ),
)
