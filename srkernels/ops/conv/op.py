"""Registration of the convolution operators, and where eager PyTorch runs instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._dispatch import without_autocast
from ..._layout import in_layout, is_channels_last, laid_out, share_layout
from ..._modes import in_forward_mode, records, transforms_active
from ..._op import Backend, Gradient, fused_op, short_apply
from . import allocate, reference
from .activation import NONE, Epilogue
from .arguments import (
    Block,
    Convolution,
    ConvolutionSettings,
    Dense,
    DenseSettings,
    SavedBlock,
    SavedConvolution,
    SavedDense,
)
from .library import convolution
from .support import detail, detail_of_convolution, pays_in_a_trace, refuses, refuses_dense


class _OwnLayout(torch.autograd.Function):
    """A tensor whose gradient comes back in its layout, where PyTorch's own operations choose another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.channels_last = is_channels_last(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return in_layout(grad, ctx.channels_last)


_apply_own_layout = short_apply(_OwnLayout)


@without_autocast  # which on CPU pads in fp32
def padded(x: Tensor, amounts: Sequence[int], mode: str) -> Tensor:
    """``F.pad``, whose result and gradient need not have the layout of ``x``."""
    own = _apply_own_layout(x) if records(x) and not in_forward_mode() else x
    return laid_out(F.pad(own, amounts, mode), x)


def _beside(x: Tensor, weight: Tensor) -> Tensor:
    """``weight`` for PyTorch's own operations on ``x``."""
    weight = laid_out(weight, weight)  # PyTorch's convolution of halves takes no irregular strides
    plain = share_layout(x, weight) or not records(weight) or in_forward_mode()
    return weight if plain else _apply_own_layout(weight)


def _all_plain(*images: Tensor | None) -> bool:
    """The common case in which PyTorch's own operations keep the layout and there is nothing to arrange: contiguous,
    and along axes of size 1 too, whose strides PyTorch's convolution reads as channels_last.
    """
    for x in images:
        if x is not None:
            _, c, h, w = x.shape
            if x.stride() != (c * h * w, h * w, w, 1):
                return False
    return True


def _keep_layouts(x: Tensor, residual: Tensor | None, *filters: Tensor) -> bool:
    """Whether PyTorch's own operations give their result the layout of ``x``, among these operands."""
    return share_layout(x, residual, *(() if is_channels_last(x) else filters))  # any follow a channels_last image


# conv2d_act


def _save_convolution(
    operands: Convolution, outputs: Sequence[Tensor], settings: ConvolutionSettings, needs: Sequence[bool]
) -> SavedConvolution:
    x, weight, bias, slope, _ = operands
    # With frozen filters the backward pass reads only the kept image; slopes need x for a second derivative.
    reads_x = needs[1] or needs[3]
    kept = None if settings.activation == NONE else outputs[-1]
    return SavedConvolution(x if reads_x else None, weight, bias, slope, kept)


def _differentiable_convolution(
    grad: Tensor, saved: SavedConvolution, settings: ConvolutionSettings, needs: Sequence[bool]
) -> list[Tensor]:
    if saved.kept is not None and saved.x is not None:
        saved = saved._replace(kept=convolution(saved.x, saved.weight, saved.bias, settings.geometry))
    return reference.backward(grad, saved, settings, needs)


def _finish_convolution(
    backward: Callable[..., list[Tensor]],
    grad: Tensor,
    saved: SavedConvolution,
    settings: ConvolutionSettings,
    needs: list[bool],
    channels_last: bool,
) -> list[Tensor]:
    to_residual = [grad] if needs[4] else []  # autograd casts it to the residual's dtype
    if saved.x is None:
        grad = in_layout(grad.to(saved.weight.dtype), channels_last)
    found = backward(grad, saved, settings, needs[:4])
    if needs[0] and saved.x is None:  # with one output channel ``grad`` does not tell the layout
        found = [in_layout(found[0], channels_last), *found[1:]]  # Dynamo assigns to no element
    return found + to_residual


def _eager_convolution(operands: Convolution, settings: ConvolutionSettings) -> Tensor | None:
    x, weight, _, _, residual = operands
    if _all_plain(x, weight, residual):
        return reference.block(operands, settings)
    if not _keep_layouts(x, residual, weight):
        return None
    return laid_out(reference.block(operands._replace(weight=_beside(x, weight)), settings), x)


conv2d_act = fused_op(
    "conv2d_act",
    Convolution,
    ConvolutionSettings,
    backend=Backend(__package__, "forward", "backward", refuses, detail_of_convolution, ("weight", "bias", "slope")),
    fake=lambda operands, settings, keep: allocate.forward(operands, keep, settings.geometry),
    gradient=Gradient(
        saved=SavedConvolution,
        save=_save_convolution,
        fake=lambda grad, saved, settings, needs: allocate.gradients(grad, saved, needs, settings.geometry),
        differentiable=_differentiable_convolution,
        finish=_finish_convolution,
        note=lambda operands, settings: is_channels_last(operands.x),
        keeps=lambda operands, settings: allocate.keeps_preactivation(settings, operands.residual is not None),
    ),
    eager=_eager_convolution,
    pays=lambda operands, settings: pays_in_a_trace(operands.x, operands.weight, settings.geometry),
)


# residual_block


def _eager_block(operands: Block, epilogue: Epilogue) -> Tensor | None:
    x, weight1, _, weight2, *_ = operands
    if _all_plain(x, weight1, weight2):
        return reference.two_convolutions(operands, epilogue)
    if not _keep_layouts(x, None, weight1, weight2):
        return None
    beside = operands._replace(weight1=_beside(x, weight1), weight2=_beside(x, weight2))
    return laid_out(reference.two_convolutions(beside, epilogue), x)


def _save_block(operands: Block, outputs: Sequence[Tensor], epilogue: Epilogue, needs: Sequence[bool]) -> SavedBlock:
    x, weight1, bias1, weight2, _, slope = operands
    return SavedBlock(x, weight1, bias1, weight2, slope, outputs[1] if len(outputs) > 1 else None)


residual_block = fused_op(
    "residual_block",
    Block,
    Epilogue,
    backend=Backend(__package__, "block_forward", "block_backward", refuses, detail, Block._fields[1:]),
    fake=lambda operands, epilogue, keep: allocate.block_forward(operands.x, operands.weight1, keep),
    gradient=Gradient(
        saved=SavedBlock,
        save=_save_block,
        fake=lambda grad, saved, epilogue, needs: allocate.block_gradients(saved, needs),
        # What was kept carries no gradient; recomputed, it does.
        differentiable=lambda grad, saved, epilogue, needs: reference.block_backward(
            grad, saved._replace(kept=None), epilogue, needs
        ),
        keeps=lambda operands, epilogue: True,
    ),
    eager=_eager_block,
    pays=lambda operands, settings: pays_in_a_trace(operands.x, operands.weight1),
)


# dense_block


class _Link(torch.autograd.Function):
    """Has the shape of ``x`` but one element of memory, never read: a way back to ``x`` that does not keep it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.new_empty_strided(x.shape, (0,) * x.dim())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Linked(torch.autograd.Function):
    """``values``, whose derivative flows where that of ``link`` does."""

    generate_vmap_rule = True

    @staticmethod
    def forward(link: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


_apply_link = short_apply(_Link)


def _link(operands: Dense) -> Tensor | None:
    """A link where a second derivative may be requested: never for a traced call."""
    # Not a saved tensor: a hook that moves those would materialise it.
    return _apply_link(operands.x) if operands.x.requires_grad and not torch.compiler.is_compiling() else None


def _save_dense(
    operands: Dense, outputs: Sequence[Tensor], settings: DenseSettings, needs: Sequence[bool]
) -> SavedDense:
    features = outputs[1] if len(outputs) > 1 else None
    x = operands.x if features is None else None  # the features begin with x
    return SavedDense(x, *operands[1:], features)


def _finish_dense(
    backward: Callable[..., list[Tensor]],
    grad: Tensor,
    saved: SavedDense,
    settings: DenseSettings,
    needs: list[bool],
    link: Tensor | None,
) -> list[Tensor]:
    if saved.features is not None and backward is reference.dense_backward:
        # create_graph: the kept features carry no gradient; recomputed from x, they do.
        x = saved.features[:, : grad.shape[1]]
        saved = saved._replace(x=x if link is None else _Linked.apply(link, x), features=None)
    return backward(grad, saved, settings, needs)


def _eager_dense(operands: Dense, settings: DenseSettings) -> Tensor | None:
    x, weights = operands.x, operands.weights
    if _all_plain(x, *weights):
        return reference.five_convolutions(operands, settings)
    if not _keep_layouts(x, None, *weights):
        return None
    beside = Dense(x, *(_beside(x, w) for w in weights), *operands.biases)
    return laid_out(reference.five_convolutions(beside, settings), x)


dense_block = fused_op(
    "dense_block",
    Dense,
    DenseSettings,
    backend=Backend(__package__, "dense_forward", "dense_backward", refuses_dense, detail, Dense._fields[1:]),
    fake=lambda operands, settings, keep: allocate.dense_forward(operands.x, operands.weight1, keep),
    gradient=Gradient(
        saved=SavedDense,
        save=_save_dense,
        fake=lambda grad, saved, settings, needs: allocate.dense_gradients(saved, needs),
        differentiable=reference.dense_backward,
        finish=_finish_dense,
        keeps=lambda operands, settings: not transforms_active(),  # which always request a second derivative too
        link=_link,
    ),
    eager=_eager_dense,
    pays=lambda operands, settings: pays_in_a_trace(operands.x, operands.weight1),
)
