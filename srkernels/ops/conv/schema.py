"""Registration of the convolution ops. Imports torch alone, so the schemas exist before any trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._dispatch import implementation
from ..._eager import in_forward_mode, map_one_by_one, records, short_apply, transforms_active, unwatched
from ..._layout import in_layout, is_channels_last, laid_out, share_layout
from . import allocate, reference
from .activation import NONE
from .support import detail, refuses

_library = torch.library.Library("srkernels", "FRAGMENT")
_library.define(
    "conv2d_act_forward(Tensor x, Tensor weight, Tensor? bias, Tensor? slope, Tensor? residual, int activation, "
    "float negative_slope, float scale, bool keep, str backend) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "conv2d_act_backward(Tensor grad, Tensor? x, Tensor weight, Tensor? slope, Tensor? kept, int activation, "
    "float negative_slope, float scale, bool need_x, bool need_weight, bool need_bias, bool need_slope, "
    "str backend) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)

_library.define(
    "residual_block_forward(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, Tensor? slope, "
    "int activation, float negative_slope, float res_scale, bool keep, str backend) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "residual_block_backward(Tensor grad, Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? slope, "
    "Tensor? kept, int activation, float negative_slope, float res_scale, bool need_x, bool need_weight1, "
    "bool need_bias1, bool need_weight2, bool need_bias2, bool need_slope, str backend) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)

_WEIGHTS = ", ".join(f"Tensor weight{k}" for k in range(1, 6))
_BIASES = ", ".join(f"Tensor? bias{k}" for k in range(1, 6))
_library.define(
    f"dense_block_forward(Tensor x, {_WEIGHTS}, {_BIASES}, float slope, float res_scale, bool keep, str backend) "
    "-> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    f"dense_block_backward(Tensor grad, Tensor? x, Tensor? features, {_WEIGHTS}, {_BIASES}, float slope, "
    "float res_scale, bool[] needs, str backend) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _forward(x: Tensor, weight: Tensor, *arguments: Any) -> list[Tensor]:
    *arguments, backend = arguments  # type: ignore[assignment]
    module = implementation(__package__, backend, x, refuses, detail(x, weight))
    return module.forward(x, weight, *arguments)


def _backward(grad: Tensor, x: Tensor | None, weight: Tensor, *arguments: Any) -> list[Tensor]:
    *arguments, backend = arguments  # type: ignore[assignment]
    like = grad if x is None else x
    module = implementation(__package__, backend, like, refuses, detail(like, weight))
    return module.backward(grad, x, weight, *arguments)


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    activation: int,
    negative_slope: float,
    scale: float,
    keep: bool,
    backend: str,
) -> list[Tensor]:
    return allocate.forward(x, weight, residual, keep)


def _backward_fake(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor,
    slope: Tensor | None,
    kept: Tensor | None,
    activation: int,
    negative_slope: float,
    scale: float,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    need_slope: bool,
    backend: str,
) -> list[Tensor]:
    return allocate.gradients(grad, x, weight, slope, need_x, need_weight, need_bias, need_slope)


def _block_forward(x: Tensor, weight1: Tensor, *arguments: Any) -> list[Tensor]:
    *arguments, backend = arguments  # type: ignore[assignment]
    module = implementation(__package__, backend, x, refuses, detail(x, weight1))
    return module.block_forward(x, weight1, *arguments)


def _block_backward(grad: Tensor, x: Tensor, weight1: Tensor, *arguments: Any) -> list[Tensor]:
    *arguments, backend = arguments  # type: ignore[assignment]
    module = implementation(__package__, backend, x, refuses, detail(x, weight1))
    return module.block_backward(grad, x, weight1, *arguments)


def _block_forward_fake(x: Tensor, weight1: Tensor, *arguments: Any) -> list[Tensor]:
    *_, keep, _ = arguments
    return allocate.block_forward(x, weight1, keep)


def _block_backward_fake(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    slope: Tensor | None,
    kept: Tensor | None,
    activation: int,
    negative_slope: float,
    res_scale: float,
    *needs_and_backend: Any,
) -> list[Tensor]:
    return allocate.block_gradients(x, weight1, weight2, slope, *needs_and_backend[:-1])


def _dense_forward(x: Tensor, *arguments: Any) -> list[Tensor]:
    weights, biases, (*rest, backend) = arguments[:5], arguments[5:10], arguments[10:]
    module = implementation(__package__, backend, x, refuses, detail(x, weights[0]))
    return module.dense_forward(x, weights, biases, *rest)


def _dense_backward(grad: Tensor, x: Tensor | None, features: Tensor | None, *arguments: Any) -> list[Tensor]:
    weights, biases, (*rest, backend) = arguments[:5], arguments[5:10], arguments[10:]
    module = implementation(__package__, backend, grad, refuses, detail(grad, weights[0]))
    return module.dense_backward(grad, x, features, weights, biases, *rest)


def _dense_forward_fake(x: Tensor, weight1: Tensor, *arguments: Any) -> list[Tensor]:
    *_, keep, _ = arguments
    return allocate.dense_forward(x, weight1, keep)


def _dense_backward_fake(grad: Tensor, x: Tensor | None, features: Tensor | None, *arguments: Any) -> list[Tensor]:
    *_, needs, _ = arguments
    like = features if x is None else x
    assert like is not None
    return allocate.dense_gradients(like, arguments[:5], needs)


for _name, _run, _fake in (
    ("conv2d_act_forward", _forward, _forward_fake),
    ("conv2d_act_backward", _backward, _backward_fake),
    ("residual_block_forward", _block_forward, _block_forward_fake),
    ("residual_block_backward", _block_backward, _block_backward_fake),
    ("dense_block_forward", _dense_forward, _dense_forward_fake),
    ("dense_block_backward", _dense_backward, _dense_backward_fake),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"srkernels::{_name}", _fake, lib=_library)
    _op = getattr(torch.ops.srkernels, _name).default
    torch.library.register_vmap(_op, map_one_by_one(_op), lib=_library)

_forward_op = torch.ops.srkernels.conv2d_act_forward.default
_backward_op = torch.ops.srkernels.conv2d_act_backward.default
_block_forward_op = torch.ops.srkernels.residual_block_forward.default
_block_backward_op = torch.ops.srkernels.residual_block_backward.default
_dense_forward_op = torch.ops.srkernels.dense_block_forward.default
_dense_backward_op = torch.ops.srkernels.dense_block_backward.default


def _chooses_eager(backend: str, x: Tensor, filters: Sequence[Tensor], residual: Tensor | None = None) -> bool:
    """Whether nobody asked for a backend and eager PyTorch is the choice: the plain formula runs, with its autograd.

    A traced call takes the registered op, in which the choice is made on real tensors; so do images in a layout that
    PyTorch's own operations would not keep, among operands of others.
    """
    if backend or torch.compiler.is_compiling():
        return False
    turned = () if is_channels_last(x) else filters  # any filters follow a channels_last image
    return (
        share_layout(x, residual, *turned)
        and implementation(__package__, "", x, refuses, detail(x, filters[0])) is reference
    )


class _OwnLayout(torch.autograd.Function):
    """Filters whose gradient comes back in their layout, where PyTorch's own has that of a channels_last image."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.channels_last = is_channels_last(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return in_layout(grad, ctx.channels_last)


_apply_own_layout = short_apply(_OwnLayout)


def _beside(x: Tensor, weight: Tensor) -> Tensor:
    """``weight`` for PyTorch's own operations on ``x``."""
    weight = laid_out(weight, weight)  # PyTorch's convolution of halves takes no odd strides
    plain = share_layout(x, weight) or not records(weight) or in_forward_mode()
    return weight if plain else _apply_own_layout(weight)


def _run_forward(*arguments: Any) -> tuple[Tensor, ...]:
    run = _forward if unwatched(*arguments[:5]) else _forward_op
    return tuple(run(*arguments))


class _Conv2dAct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        slope: Tensor | None,
        residual: Tensor | None,
        activation: int,
        negative_slope: float,
        scale: float,
        keep: bool,
        backend: str,
    ) -> tuple[Tensor, ...]:
        return _run_forward(x, weight, bias, slope, residual, activation, negative_slope, scale, keep, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, slope, residual, activation, negative_slope, scale, keep, ctx.backend = inputs
        ctx.epilogue = activation, negative_slope, scale
        ctx.residual_dtype = None if residual is None else residual.dtype
        if keep:
            ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        kept = None if activation == NONE else output[-1]
        # Of frozen filters the backward pass reads no image but the kept one; slopes need it for a second derivative.
        _, need_weight, _, need_slope, *_ = ctx.needs_input_grad
        reads = need_weight or need_slope
        ctx.channels_last = is_channels_last(x)
        ctx.save_for_backward(x if reads else None, weight, bias, slope, kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 10
        x, weight, bias, slope, kept = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        to_residual = grad.to(ctx.residual_dtype) if ctx.needs_input_grad[4] else None
        if x is None:
            grad = in_layout(grad.to(weight.dtype), ctx.channels_last)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph: a second derivative must see through the backward pass, so it runs on eager operations.
            z = kept if kept is None or x is None else reference.convolution(x, weight, bias)
            grads = iter(reference.backward(grad, x, weight, slope, z, *ctx.epilogue, *needs))
        else:
            run: Any = _backward if unwatched(grad, x, weight, slope) else _backward_op
            grads = iter(run(grad, x, weight, slope, kept, *ctx.epilogue, *needs, ctx.backend))
        by_input = [next(grads) if need else None for need in needs]
        if x is None and by_input[0] is not None:  # of one channel out, ``grad`` does not tell the layout
            by_input[0] = in_layout(by_input[0], ctx.channels_last)
        return *by_input, to_residual, None, None, None, None, None


_apply = short_apply(_Conv2dAct)


def conv2d_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    activation: int,
    negative_slope: float,
    scale: float,
    backend: str,
) -> Tensor:
    """Differentiable convolution with its epilogue."""
    operands = (x, weight, bias, slope, residual)
    arguments = (*operands, activation, negative_slope, scale)
    if _chooses_eager(backend, x, [weight], residual):
        return laid_out(reference.block(x, _beside(x, weight), *arguments[2:]), x)
    if records(*operands) or in_forward_mode():
        keep = allocate.keeps_preactivation(activation, negative_slope, scale, residual is not None)
        return _apply(*arguments, keep, backend)[0]
    return _run_forward(*arguments, False, backend)[0]


def _run_block_forward(*arguments: Any) -> tuple[Tensor, ...]:
    run = _block_forward if unwatched(*arguments[:6]) else _block_forward_op
    return tuple(run(*arguments))


class _ResidualBlock(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
        slope: Tensor | None,
        activation: int,
        negative_slope: float,
        res_scale: float,
        keep: bool,
        backend: str,
    ) -> tuple[Tensor, ...]:
        operands = (x, weight1, bias1, weight2, bias2, slope)
        return _run_block_forward(*operands, activation, negative_slope, res_scale, keep, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight1, bias1, weight2, _, slope, activation, negative_slope, res_scale, keep, ctx.backend = inputs
        ctx.epilogue = activation, negative_slope, res_scale
        if keep:
            ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight1, bias1, weight2, slope, output[1] if keep else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 11
        x, weight1, bias1, weight2, slope, kept = ctx.saved_tensors
        needs = ctx.needs_input_grad[:6]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph: what was kept carries no gradient; computed again, it does.
            operands = (grad, x, weight1, bias1, weight2, slope, None)
            grads = iter(reference.block_backward(*operands, *ctx.epilogue, *needs))
        else:
            run: Any = _block_backward if unwatched(grad, x, weight1, weight2) else _block_backward_op
            grads = iter(run(grad, x, weight1, bias1, weight2, slope, kept, *ctx.epilogue, *needs, ctx.backend))
        return *(next(grads) if need else None for need in needs), None, None, None, None, None


_apply_block = short_apply(_ResidualBlock)


def residual_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    slope: Tensor | None,
    activation: int,
    negative_slope: float,
    res_scale: float,
    keep: bool,
    backend: str,
) -> Tensor:
    """Differentiable residual block; ``keep``: whether the backward pass finds the first convolution's result."""
    operands = (x, weight1, bias1, weight2, bias2, slope)
    arguments = (*operands, activation, negative_slope, res_scale)
    if keep and _chooses_eager(backend, x, [weight1, weight2]):
        y = reference.two_convolutions(x, _beside(x, weight1), bias1, _beside(x, weight2), *arguments[4:])
        return laid_out(y, x)
    if records(*operands) or in_forward_mode():
        return _apply_block(*arguments, keep, backend)[0]
    return _run_block_forward(*arguments, False, backend)[0]


def _run_dense_forward(*arguments: Any) -> tuple[Tensor, ...]:
    run = _dense_forward if unwatched(*arguments[:11]) else _dense_forward_op
    return tuple(run(*arguments))


class _Link(torch.autograd.Function):
    """Of the shape of ``x`` and one element of memory, never read: a way back to ``x`` that does not keep it."""

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
    """``values``, whose derivative goes where that of ``link`` does."""

    generate_vmap_rule = True

    @staticmethod
    def forward(link: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _DenseBlock(torch.autograd.Function):
    """Inputs: x, five weights, five biases, slope, res_scale, keep, backend, a ``_Link`` of x or None."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _run_dense_forward(*inputs[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        # The link is no saved tensor: a hook that moves those would fill it.
        *operands, slope, res_scale, keep, ctx.backend, ctx.link = inputs
        ctx.epilogue = slope, res_scale
        if keep:
            ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        x, *parameters = operands
        # The features begin with x: it is not kept besides.
        ctx.save_for_backward(None if keep else x, output[1] if keep else None, *parameters)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 16
        x, features, *parameters = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:11])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph: the features kept carry no gradient; computed again from x, they do.
            slope, res_scale = ctx.epilogue
            weights, biases = parameters[:5], parameters[5:]
            if x is None:
                x = features[:, : weights[4].shape[0]]
                x = x if ctx.link is None else _Linked.apply(ctx.link, x)
            grads = iter(reference.dense_backward(grad, x, None, weights, biases, slope, res_scale, needs))
        else:
            run: Any = _dense_backward if unwatched(grad, *parameters) else _dense_backward_op
            grads = iter(run(grad, x, features, *parameters, *ctx.epilogue, needs, ctx.backend))
        return *(next(grads) if need else None for need in needs), None, None, None, None, None


_apply_link = short_apply(_Link)
_apply_dense = short_apply(_DenseBlock)


def dense_block(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    slope: float,
    res_scale: float,
    keep: bool,
    backend: str,
) -> Tensor:
    """Differentiable dense block; ``keep``: whether the backward pass finds its features."""
    operands = (x, *weights, *biases)
    if keep and _chooses_eager(backend, x, weights):
        y = reference.five_convolutions(x, [_beside(x, w) for w in weights], biases, slope, res_scale)
        return laid_out(y, x)
    if records(*operands) or in_forward_mode():
        keep = keep and not transforms_active()  # torch.func always asks for a second derivative too
        # A traced call has no second derivative.
        link = _apply_link(x) if keep and x.requires_grad and not torch.compiler.is_compiling() else None
        return _apply_dense(*operands, slope, res_scale, keep, backend, link)[0]
    return _run_dense_forward(*operands, slope, res_scale, False, backend)[0]
