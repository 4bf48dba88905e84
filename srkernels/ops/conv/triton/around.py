"""Launches around PyTorch's own convolution: what follows it in one pass over its result, what precedes it in another.

As ``launch`` has them, with cuDNN (MIOpen) in place of our kernels. By count a residual block of E elements, forward
and backward, passes 12 times over E outside the convolutions, where eager PyTorch passes 21 times (17 unscaled).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ...._triton import WARPS_128
from .. import library
from ..activation import CONVOLUTION, NONE, Epilogue
from ..geometry import PLAIN
from .convolution import pointwise
from .launch import NO_TENSORS, POINTWISE, EpilogueTensors, block, channels_last, pitch, stored_last, sums_in

# A derivative takes a pass of its own, and one that also sums up the bias's gradient costs no more.
OURS = False


def sums_biases(dtype: torch.dtype) -> bool:
    """Whether a weight's gradient brings the bias's."""
    return False


def convolve(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    epilogue: Epilogue = CONVOLUTION,
    tensors: EpilogueTensors = NO_TENSORS,
    *,
    adjoint: bool = False,
    geometry: Sequence[int] = PLAIN,
) -> Tensor:
    """As ``launch.convolve``, of any ``geometry``; where nothing follows, the result is not ``y`` but new."""
    if adjoint and epilogue.activation == NONE and epilogue.scale != 1:
        weight, epilogue = weight * epilogue.scale, CONVOLUTION  # the small operand
    product = library.transposed(x, weight, geometry) if adjoint else library.convolution(x, weight, None, geometry)
    bias, slope, kept, residual, z = tensors
    if epilogue[:3] == CONVOLUTION and bias is slope is kept is residual is z is None:
        return product if product.stride() == y.stride() and product.dtype is y.dtype else y.copy_(product)
    bias, slope = (None if vector is None else vector.contiguous() for vector in (bias, slope))
    images, out, height, width = y.shape
    last = stored_last(y)
    pixels, n = images * height * width, block(out, 64)
    pointwise[(triton.cdiv(pixels, POINTWISE) * triton.cdiv(out, n),)](
        channels_last(product), bias, slope, kept, residual, y, z, height, width, pixels,
        out, *epilogue[:2], 0 if slope is None else slope.numel(), epilogue.scale, last,
        0 if kept is None else pitch(kept), pitch(y) if last else 0, sums_in(x.dtype), POINTWISE, n,
        num_warps=WARPS_128,
    )  # fmt: skip
    return y


def gradient_of_weight(
    x: Tensor,
    grad_z: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor | None = None,
    scale: float = 1.0,
    geometry: Sequence[int] = PLAIN,
) -> None:
    """As ``launch.gradient_of_weight``, without ``grad_bias``."""
    assert grad_bias is None, "sums_biases() is False"
    if scale != 1 and grad_z.dtype is torch.float16:  # unscaled sums may leave its range
        grad_z, scale = grad_z * scale, 1.0
    found = library.convolution_backward(grad_z, x, grad_weight, False, True, geometry)[1]
    assert found is not None
    if scale == 1:
        grad_weight.copy_(found)
    else:
        torch.mul(found, scale, out=grad_weight)


def gradients_of_weights(
    features: Tensor, gradients: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> None:
    """As ``launch.gradients_of_weights``, without ``biases``.

    One gradient over both buffers: blocks that belong to no filter are computed too, but nothing is copied.
    """
    assert not biases, "sums_biases() is False"
    channels, c, growth = features.shape[1], weights[4].shape[0], weights[0].shape[0]
    every = gradients.new_empty((channels, channels, *weights[0].shape[2:]))
    gradient_of_weight(features, gradients, every)
    for k, weight in enumerate(weights):
        first = 0 if k == 4 else c + (3 - k) * growth
        weight.copy_(every[first : first + weight.shape[0], : weight.shape[1]])
