"""Convolution ops in Triton, each made of the launches of ``launch``.

A residual block takes two launches forward and six backward: the first data gradient applies the activation's
derivative in its epilogue, the second adds the skip's gradient in its own, and each weight gradient also sums up its
bias's, in shares that a second launch adds up.

A dense block has one buffer forward, x | x1 | x2 | x3 | x4, of which each convolution reads a prefix and writes the
next slice, and one backward, res_scale * grad | g4 | g3 | g2 | g1 with g_k the gradient ahead of activation k: that of
x_k is one convolution of all that came before it in this order, by the filters that read x_k, which are rows and
columns of all filters packed into one tensor. All weight gradients are one product of the two buffers. That is seven
launches forward, six with filters in channels_last, and nine backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...._triton import on_device
from .. import allocate
from ..activation import CONVOLUTION, LEAKY_RELU, NONE, PRELU, Epilogue, activate, sign_survives
from ..arguments import (
    Block,
    Convolution,
    ConvolutionSettings,
    Dense,
    DenseSettings,
    SavedBlock,
    SavedConvolution,
    SavedDense,
)
from .configuration import Configured
from .launch import EpilogueTensors, activation_gradient, channels_last, packed


def _like(x: Tensor, y: Tensor) -> Tensor:
    """``x`` in the layout of ``y``."""
    return x if x.stride() == y.stride() else torch.empty_like(y, dtype=x.dtype).copy_(x)


def _image(x: Tensor, channels: int) -> Tensor:
    """Uninitialised and channels_last, even where ``x`` has one channel and is contiguous as well."""
    n, _, h, w = x.shape
    return x.new_empty((n, h, w, channels)).permute(0, 3, 1, 2)


def _slots(buffer: Tensor, c: int, growth: int) -> Sequence[Tensor]:
    """The channels of a dense block's buffer: ``c`` and four times ``growth``."""
    return buffer.split_with_sizes((c, growth, growth, growth, growth), 1)


def _zeroed(out: list[Tensor]) -> list[Tensor]:
    for gradient in out:
        gradient.zero_()
    return out


class Blocks:
    """The ops, made of launches: those of ``launch``, whose products are ``OURS``, ``configured`` or of ``around``."""

    def __init__(self, launches: ModuleType | Configured) -> None:
        self._launches: Any = launches

    def _gradients_of_parameters(
        self,
        x: Tensor | None,
        grad_z: Tensor,
        grad_weight: Tensor | None,
        grad_bias: Tensor | None,
        scale: float = 1.0,
        **of_library: Any,
    ) -> None:
        """Fills in those that are there, times ``scale``; only the weight's reads ``x``."""
        if grad_bias is not None and (grad_weight is None or not self._launches.sums_biases(grad_z.dtype)):
            activation_gradient(channels_last(grad_z), None, None, Epilogue(scale=scale), False, grad_bias, None)
            grad_bias = None
        if grad_weight is not None:
            assert x is not None
            self._launches.gradient_of_weight(x, grad_z, grad_weight, grad_bias, scale, **of_library)

    def forward(self, operands: Convolution, settings: ConvolutionSettings, keep: bool) -> list[Tensor]:
        """As ``reference.forward``."""
        x, weight, bias, slope, residual = operands
        geometry = settings.geometry
        # Only PyTorch's convolution takes one.
        of_library: dict[str, Any] = {"geometry": geometry} if geometry else {}
        out = allocate.forward(operands, keep, geometry)
        y = out[0]
        if y.numel() == 0:
            return out
        residual = None if residual is None else _like(residual, y)
        tensors = EpilogueTensors(bias, slope, residual=residual, z=out[1] if keep else None)
        with on_device(x.device):
            y = self._launches.convolve(channels_last(x), weight, y, settings.epilogue, tensors, **of_library)
        return [y, *out[1:]]

    def backward(
        self, grad: Tensor, saved: SavedConvolution, settings: ConvolutionSettings, needs: Sequence[bool]
    ) -> list[Tensor]:
        """As ``reference.backward``."""
        x, weight, _, slope, kept = saved
        epilogue, geometry = settings.epilogue, settings.geometry
        of_library: dict[str, Any] = {"geometry": geometry} if geometry else {}
        out = allocate.gradients(grad, saved, needs, geometry)
        if grad.numel() == 0:
            return _zeroed(out)
        results = iter(out)
        grad_x, grad_weight, grad_bias, grad_slope = (next(results) if need else None for need in needs)
        with on_device(grad.device):
            grad_z = channels_last(grad.to(weight.dtype))
            if epilogue.activation != NONE or epilogue.scale != 1:
                need_grad_z = grad_x is not None or grad_weight is not None
                grad_z = activation_gradient(grad_z, kept, slope, epilogue, need_grad_z, grad_bias, grad_slope)
                grad_bias = None
            if grad_x is not None:
                out[0] = self._launches.convolve(grad_z, weight, grad_x, adjoint=True, **of_library)
            x = None if x is None else channels_last(x)
            self._gradients_of_parameters(x, grad_z, grad_weight, grad_bias, **of_library)
        return out

    def _first_convolution(self, block: Block, epilogue: Epilogue, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The activations h of a residual block, channels_last, and what is kept: h if that has its sign."""
        x, weight1, bias1, _, _, slope = block
        survives = epilogue.activation == NONE or sign_survives(epilogue)
        h = _image(x, weight1.shape[0]) if kept is None else kept if survives else torch.empty_like(kept)
        tensors = EpilogueTensors(bias1, slope, z=None if survives else kept)
        h = self._launches.convolve(channels_last(x), weight1, h, epilogue._replace(scale=1.0), tensors)
        return channels_last(h), h if survives and kept is not None else kept

    def block_forward(self, operands: Block, epilogue: Epilogue, keep: bool) -> list[Tensor]:
        """As ``reference.block_forward``."""
        x, weight1, _, weight2, bias2, _ = operands
        out = allocate.block_forward(x, weight1, keep)
        y = out[0]
        if y.numel() == 0:
            return out
        with on_device(x.device):
            h, kept = self._first_convolution(operands, epilogue, out[1] if keep else None)
            tensors = EpilogueTensors(bias2, residual=_like(x, y))
            self._launches.convolve(h, weight2, y, Epilogue(scale=epilogue.scale), tensors)
        return [y] if kept is None else [y, kept]

    def block_backward(
        self, grad: Tensor, saved: SavedBlock, epilogue: Epilogue, needs: Sequence[bool]
    ) -> list[Tensor]:
        """As ``reference.block_backward``."""
        x, weight1, bias1, weight2, slope, kept = saved
        out = allocate.block_gradients(saved, needs)
        if x.numel() == 0:
            return _zeroed(out)
        results = iter(out)
        grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2, grad_slope = (
            next(results) if need else None for need in needs
        )
        survives = epilogue.activation == NONE or sign_survives(epilogue)
        with on_device(x.device):
            dense, grad = channels_last(x), channels_last(grad)
            if kept is None:
                first = Block(dense, weight1, bias1, weight2, None, slope)
                h, kept = self._first_convolution(first, epilogue, _image(dense, weight1.shape[0]))
                assert kept is not None
            else:
                kept = channels_last(kept)
                h = kept if survives or grad_weight2 is None else activate(kept, epilogue, slope)
            if any(g is not None for g in (grad_x, grad_weight1, grad_bias1, grad_slope)):
                grad_z = torch.empty_like(kept)
                # The gradient of PReLU's slopes needs the value before the derivative.
                if epilogue.activation == PRELU or not self._launches.OURS:
                    scale = Epilogue(scale=epilogue.scale)
                    grad_z = self._launches.convolve(grad, weight2, grad_z, scale, adjoint=True)
                    need_grad_z = grad_x is not None or grad_weight1 is not None
                    unscaled = epilogue._replace(scale=1.0)
                    grad_z = activation_gradient(
                        grad_z, kept, slope, unscaled, need_grad_z, grad_bias1, grad_slope, in_place=True
                    )
                    grad_bias1 = None
                else:
                    tensors = EpilogueTensors(kept=None if epilogue.activation == NONE else kept)
                    self._launches.convolve(grad, weight2, grad_z, epilogue, tensors, adjoint=True)
                if grad_x is not None:
                    tensors = EpilogueTensors(residual=_like(grad, grad_x))
                    self._launches.convolve(grad_z, weight1, grad_x, CONVOLUTION, tensors, adjoint=True)
                self._gradients_of_parameters(dense, grad_z, grad_weight1, grad_bias1)
            self._gradients_of_parameters(h, grad, grad_weight2, grad_bias2, epilogue.scale)
        return out

    def _forward_filters(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """A dense block's filters as ``convolve`` reads them; ours are packed in one launch unless channels_last."""
        if not self._launches.OURS or all(w.is_contiguous(memory_format=torch.channels_last) for w in weights):
            return weights
        every, row = packed(weights), weights[4].shape[0]
        found = [every[:row]]
        for weight in reversed(weights[:4]):
            found.insert(0, every[row : row + weight.shape[0], : weight.shape[1]])
            row += weight.shape[0]
        return found

    def _dense_features(
        self, x: Tensor, filters: Sequence[Tensor], biases: Sequence[Tensor | None], slope: float
    ) -> Tensor:
        """x | x1 | x2 | x3 | x4, channels_last as ``x`` is."""
        c, growth, leaky = x.shape[1], filters[0].shape[0], Epilogue(LEAKY_RELU, slope)
        features = _image(x, c + 4 * growth)
        slots = _slots(features, c, growth)
        slots[0].copy_(x)
        for k in range(4):
            read = features[:, : c + k * growth] if k else x
            self._launches.convolve(read, filters[k], slots[k + 1], leaky, EpilogueTensors(biases[k]))
        return features

    def dense_forward(self, operands: Dense, settings: DenseSettings, keep: bool) -> list[Tensor]:
        """As ``reference.dense_forward``."""
        x, weights, biases = operands.x, operands.weights, operands.biases
        out = allocate.dense_forward(x, weights[0], keep)
        y = out[0]
        if y.numel() == 0:
            return out
        with on_device(x.device):
            filters = self._forward_filters(weights)
            features = self._dense_features(channels_last(x), filters, biases, settings.slope)
            tensors = EpilogueTensors(biases[4], residual=_like(x, y))
            self._launches.convolve(features, filters[4], y, Epilogue(scale=settings.res_scale), tensors)
        return [y, _like(features, out[1])] if keep else out

    def dense_backward(
        self, grad: Tensor, saved: SavedDense, settings: DenseSettings, needs: Sequence[bool]
    ) -> list[Tensor]:
        """As ``reference.dense_backward``."""
        features, weights = saved.features, saved.weights
        out = allocate.dense_gradients(saved, needs)
        if grad.numel() == 0:
            return _zeroed(out)
        results = iter(out)
        grad_x, *of_parameters = (next(results) if need else None for need in needs)
        c, growth = weights[4].shape[0], weights[0].shape[0]
        leaky = Epilogue(LEAKY_RELU, settings.slope)
        with on_device(grad.device):
            if features is None:
                x = channels_last(saved.like)
                features = self._dense_features(x, self._forward_filters(weights), saved.biases, settings.slope)
            features = channels_last(features)
            gradients = torch.empty_like(features)
            # x and x_1 to x_4; the result's gradient and g_4 to g_1; all filters, by what they read. Their rows are in
            # the order of ``gradients``, so that those that read x_k come first.
            of_features, of_gradients = _slots(features, c, growth), _slots(gradients, c, growth)
            torch.mul(grad, settings.res_scale, out=of_gradients[0])
            filters = _slots(packed(weights), c, growth)
            for k in (4, 3, 2, 1):
                end, tensors = c + (4 - k) * growth, EpilogueTensors(kept=of_features[k])
                read, found = gradients[:, :end], of_gradients[5 - k]
                self._launches.convolve(read, filters[k][:end], found, leaky, tensors, adjoint=True)
            if grad_x is not None:
                tensors = EpilogueTensors(residual=_like(grad, grad_x))
                self._launches.convolve(gradients, filters[0], grad_x, CONVOLUTION, tensors, adjoint=True)
            self._gradients_of_dense_parameters(features, gradients, weights, of_parameters[:5], of_parameters[5:])
        return out

    def _gradients_of_dense_parameters(
        self,
        features: Tensor,
        gradients: Tensor,
        weights: Sequence[Tensor],
        of_weights: Sequence[Tensor | None],
        of_biases: Sequence[Tensor | None],
    ) -> None:
        """Fills in those that are there; of the others nothing is kept."""
        biases = [torch.empty_like(w[:, 0, 0, 0]) if b is None else b for w, b in zip(weights, of_biases, strict=True)]
        wants_biases = any(b is not None for b in of_biases)
        by_weights = self._launches.sums_biases(gradients.dtype) and any(w is not None for w in of_weights)
        if wants_biases and not by_weights:
            every = gradients.new_empty(gradients.shape[1])
            activation_gradient(gradients, None, None, CONVOLUTION, False, every, None)
            for bias, found in zip(reversed(biases), every.split([len(b) for b in reversed(biases)]), strict=True):
                bias.copy_(found)
            wants_biases = False
        if all(w is None for w in of_weights):
            return
        last = all(w is None or w.is_contiguous(memory_format=torch.channels_last) for w in of_weights)
        layout = torch.channels_last if last else torch.contiguous_format
        found = [
            torch.empty_like(w, memory_format=layout) if g is None or not g.is_contiguous(memory_format=layout) else g
            for w, g in zip(weights, of_weights, strict=True)
        ]
        self._launches.gradients_of_weights(features, gradients, found, biases if wants_biases else [])
        for wanted, g in zip(of_weights, found, strict=True):
            if wanted is not None and wanted is not g:
                wanted.copy_(g)
