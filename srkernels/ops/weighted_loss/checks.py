"""Arguments of the weighted losses: what is wrong with them, and weights brought to one form."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from ..._validate import boolean, check_image, choice, describe, number
from .arguments import BILINEAR, BILINEAR_CORNERS, CHARBONNIER, HUBER, KINDS, NEAREST

NORMALIZE = {"numel": False, "weight_sum": True}
_INTERPOLATIONS = {"bilinear": BILINEAR, "nearest": NEAREST}
_MASKS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_AXES = "(N or 1, 1 or C, h, w)"


def form_of(
    name: str,
    kind: str = "l1",
    eps: float = 1e-12,
    delta: float = 1.0,
    interpolation: str = "bilinear",
    align_corners: bool = False,
) -> tuple[int, int, float]:
    """(resize, kind, its parameter), as ``Settings`` has them."""
    code, parameter = choice(name, "kind", kind, KINDS), 0.0
    if code == CHARBONNIER:
        parameter = _positive(name, "eps", eps)
    elif code == HUBER:
        parameter = _positive(name, "delta", delta)
    resize = choice(name, "interpolation", interpolation, _INTERPOLATIONS)
    if boolean(name, "align_corners", align_corners):
        if resize == NEAREST:
            raise ValueError(f"{name}: align_corners is an option of bilinear interpolation, not of nearest")
        resize = BILINEAR_CORNERS
    return resize, code, parameter


def _positive(name: str, argument: str, value: Any) -> float:
    found = number(name, argument, value)
    if not 0 < found < inf:
        raise ValueError(f"{name}: {argument} must be positive and finite, got {value}")
    return found


def check_images(name: str, input: Tensor, target: Tensor) -> None:
    shape, device = check_image(name, "input", input), input.device
    if check_image(name, "target", target) != shape:
        raise ValueError(f"{name}: target must have input's shape {tuple(shape)}, got {tuple(target.shape)}")
    if target.device != device:
        raise ValueError(f"{name}: target must be on input's device {device}, got {describe(target)}")


def as_map(name: str, weight: Tensor, input: Tensor) -> Tensor:
    """``weight`` as (N or 1, 1 or C, h, w) in a floating-point dtype."""
    n, c, _, _ = input.shape
    if isinstance(weight, Tensor) and weight.layout is torch.strided and not weight.is_nested:
        if weight.dtype in _MASKS:
            weight = weight.to(input.dtype)
        if weight.dim() < 4:
            weight = _spread(name, weight, input.shape)
    wn, wc, _, _ = check_image(name, "weight", weight, _AXES)
    if (wn != n and wn != 1) or (wc != c and wc != 1):
        raise ValueError(f"{name}: weight must be {_AXES} with N={n} and C={c}, got {tuple(weight.shape)}")
    if weight.device != input.device:
        raise ValueError(f"{name}: weight must be on input's device {input.device}, got {describe(weight)}")
    return weight


def _spread(name: str, weight: Tensor, shape: torch.Size) -> Tensor:
    """0 to 3 dimensions, where one reading alone fits.

    Of three axes PyTorch's broadcasting takes the first for channels, masks of a batch have it for images; one axis may
    be a row as well. What a weight means must not change with the size of a batch.
    """
    n, c, _, width = shape
    if weight.dim() == 0:
        return weight.reshape(1, 1, 1, 1)
    if weight.dim() == 2:
        return weight[None, None]
    first, maps = weight.shape[0], weight if weight.dim() == 3 else weight[:, None, None]
    a_row = weight.dim() == 1 and first == width
    if first == 1 or (first == n and first != c and not a_row):
        return maps[:, None]
    if first == c and first != n and not a_row:
        return maps[None]
    raise ValueError(
        f"{name}: weight of shape {tuple(weight.shape)} has no plain meaning for images of shape {tuple(shape)}: "
        f"pass {_AXES}"
    )
