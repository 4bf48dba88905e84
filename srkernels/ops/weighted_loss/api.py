"""Losses weighted by a map of any resolution: public functions."""

from __future__ import annotations

from math import nan
from numbers import Real
from typing import Any

from torch import Tensor

from ..._dispatch import autocasts
from ..._validate import choice, number
from .allocate import result_dtype
from .arguments import MEAN, REDUCTIONS, Operands, Settings
from .checks import NORMALIZE, as_map, check_images, form_of
from .op import weighted_loss as _op


def weighted_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | float | None = None,
    *,
    kind: str = "l1",
    eps: float = 1e-12,
    delta: float = 1.0,
    reduction: str = "mean",
    normalize: str = "numel",
    interpolation: str = "bilinear",
    align_corners: bool = False,
) -> Tensor:
    """``w * rho(input - target)``, summed up, with ``w`` the weight map resized to the images inside the kernel.

    Equals ``(F.interpolate(weight, (H, W), mode=interpolation) * rho(input - target)).mean()`` without ever writing the
    map at full size: with "l1", DASR's weighted content loss (eq. 4).

    Args:
        input, target: (N, C, H, W) images or features, fp16, bf16, fp32 or fp64, any strides.
        weight: (N or 1, 1 or C, h, w) at any h, w >= 1; negative values are allowed; None is a weight of one. Fewer
            dimensions where their meaning is plain: (h, w) for all, (1, h, w), (N, h, w) or (C, h, w) and (N,) or (C,)
            where N and C differ, 0-dim or a number for everything. Bool and integer masks are read in input's dtype.
        kind: rho(d): "l1" |d|, "charbonnier" sqrt(d^2 + eps), "mse" d^2, or "huber" d^2 / 2 where |d| <= delta and
            delta (|d| - delta / 2) beyond, as ``F.huber_loss``.
        eps: of "charbonnier", inside the root as in BasicSR; where a paper writes sqrt(d^2 + e^2), pass e * e.
        delta: of "huber". ``F.smooth_l1_loss`` is "huber" with delta = beta, over beta.
        reduction: "mean", "sum" or "none" (N, C, H, W).
        normalize: what "mean" divides by: "numel" N*C*H*W (DASR, LDL) or "weight_sum" the sum of the resized map
            over all elements (BasicSR's weighted mean). Without a weight they are the same.
        interpolation: of the map, "bilinear" or "nearest", as in ``F.interpolate``.
        align_corners: of "bilinear", as in ``F.interpolate``.

    Returns:
        A 0-dim tensor (or the map for "none") in PyTorch's promotion of the operands' dtypes, at least fp32 under
        autocast. Summed in fp32 lanes and fp64 totals (fp64 throughout for fp64); operands of different dtypes are
        read as they are. A mean over nothing is NaN, a sum 0, NaN and inf propagate: all as in PyTorch.

    Differentiable in ``input``, ``target`` and ``weight``, each only if it requires it, with sign(0) = 0; second
    derivatives are exact, by eager operations. Saves references to its operands and, of "l1" and dense CPU images, the
    signs of their difference at two bits an element, so that the backward pass only writes.
    Bitwise deterministic.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was passed.
    """
    name = "weighted_loss"
    form = form_of(name, kind, eps, delta, interpolation, align_corners)
    return _loss(name, (input, target, weight), reduction, normalize, form)


def weighted_l1_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | float | None = None,
    *,
    reduction: str = "mean",
    normalize: str = "numel",
    align_corners: bool = False,
) -> Tensor:
    """``w * |input - target|``, summed up: ``weighted_loss`` of the kind "l1", with a bilinear resize."""
    name = "weighted_l1_loss"
    return _loss(name, (input, target, weight), reduction, normalize, form_of(name, align_corners=align_corners))


def _loss(
    name: str, operands: tuple[Any, Any, Any], reduction: str, normalize: str, form: tuple[int, int, float]
) -> Tensor:
    input, target, weight = operands
    code = choice(name, "reduction", reduction, REDUCTIONS)
    by_weight = choice(name, "normalize", normalize, NORMALIZE) and code == MEAN
    check_images(name, input, target)
    factor = None
    if not isinstance(weight, Tensor) and isinstance(weight, Real) and not isinstance(weight, bool):
        factor, weight = number(name, "weight", weight), None
        if by_weight:  # it cancels
            factor = factor / factor if factor else nan
    elif weight is not None:
        weight = as_map(name, weight, input)
    by_weight = by_weight and weight is not None
    resize, kind, parameter = form
    operands, fp32 = Operands(input, target, weight), autocasts(input)
    if factor is None:
        return _op(operands, Settings(code, by_weight, resize, fp32, kind, parameter))[0]
    loss = _op(operands, Settings(code, by_weight, resize, True, kind, parameter))[0]  # fp16 may hold only the product
    return (factor * loss).to(result_dtype(operands, fp32))
