"""The native core's 3x3 convolution and weight gradient on Intel AMX, in bf16 on channels_last images.

They read and write channel slices of wider images directly, where oneDNN copies, and the convolution has the whole
epilogue: bias, activation or its derivative, scale, residual, and the sums that are a bias's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._native import launch
from .activation import CONVOLUTION, Follows
from .support import AMX_CHANNELS, KERNEL_SIZE, amx_available


def _pixels(x: Tensor) -> bool:
    """Channels contiguous, pixels one after another, possibly with other channels between them."""
    n, c, h, w = x.stride()
    return c == 1 and h == x.shape[3] * w and n == x.shape[2] * h


def _takes(x: Tensor) -> bool:
    return x.dtype is torch.bfloat16 and x.shape[1] % 32 == 0 and amx_available() and _pixels(x)


def convolves(x: Tensor, weight: Tensor, *, adjoint: bool = False) -> bool:
    """Whether a convolution of ``x``, or a data gradient from it, runs here.

    Measured faster than oneDNN's on images of any size.
    """
    channels = weight.shape[1 if adjoint else 0]
    small = x.shape[1] * channels <= AMX_CHANNELS
    return weight.shape[2:] == KERNEL_SIZE and channels % 16 == 0 and small and _takes(x)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    epilogue: Follows = CONVOLUTION,
    *,
    adjoint: bool = False,
    kept: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """scale * act(conv(x) + bias) + residual; with ``kept``, scale * act'(kept) * conv(x) + residual.

    ``adjoint``: the data gradient of a convolution by ``weight``. ``sums``: filled with each channel's sum, in fp64.
    """
    if out is None:
        n, _, h, w = x.shape
        channels = weight.shape[1 if adjoint else 0]
        out = x.new_empty((n, h, w, channels)).permute(0, 3, 1, 2)
    weight = weight.contiguous() if 0 in weight.stride() else weight
    follows = epilogue.activation, epilogue.negative_slope, epilogue.scale
    launch(x, "amx_convolution", x, weight, adjoint, bias, out, *follows, kept, residual, sums)
    return out


def takes_weight_gradients(grad: Tensor, x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether ``weight_gradients`` runs for these.

    Where it was measured faster than oneDNN's: there are eight sets of sums, each of which must fit the L2 cache, and
    adding them up takes time.
    """
    if not all(w.shape[2:] == KERNEL_SIZE and w.shape[0] % 32 == 0 and w.shape[1] % 32 == 0 for w in weights):
        return False
    n, _, height, width = x.shape
    small = sum(w.shape[0] * w.shape[1] for w in weights) <= min(192 * 192, 12 * n * height * width)
    return small and _takes(grad) and _takes(x)


def weight_gradients(grad: Tensor, x: Tensor, weights: Sequence[Tensor], scales: Sequence[float]) -> list[Tensor]:
    """Gradients times ``scales``, contiguous, of filters whose outputs' gradients lie one after another in ``grad``.

    Each filter has read the first channels of ``x``.
    """
    found = [w.new_empty(size=w.shape) for w in weights]
    launch(x, "amx_weight_gradient", x, grad, found, list(scales))
    return found
