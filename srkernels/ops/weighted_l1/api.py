"""L1 loss weighted by a map of any resolution: public function."""

from __future__ import annotations

from torch import Tensor

from ..._dispatch import autocasts
from ..._validate import boolean, check_image, choice, describe
from .allocate import MEAN, REDUCTIONS
from .arguments import Operands, Settings
from .op import weighted_l1

_OP = "weighted_l1_loss"
NORMALIZE = {"numel": False, "weight_sum": True}


def weighted_l1_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    normalize: str = "numel",
    align_corners: bool = False,
) -> Tensor:
    """``w * |input - target|``, summed up, with ``w`` the weight map resized bilinearly inside the kernel.

    Equals ``(F.interpolate(weight, (H, W), mode="bilinear", align_corners=...) * (input - target).abs()).mean()``,
    DASR's weighted content loss (eq. 4), without ever writing the map at full size.

    Args:
        input, target: (N, C, H, W) images or features, fp16, bf16, fp32 or fp64, any strides.
        weight: (N or 1, 1 or C, h, w) at any h, w >= 1; negative values are allowed; None is a weight of one.
        reduction: "mean", "sum" or "none" (N, C, H, W).
        normalize: what "mean" divides by: "numel" N*C*H*W (DASR, LDL) or "weight_sum" the sum of the resized map
            over all elements (BasicSR's weighted mean). Without a weight they are the same.
        align_corners: of the resize, as in ``F.interpolate``.

    Returns:
        A 0-dim tensor (or the map for "none") in PyTorch's promotion of the operands' dtypes, at least fp32 under
        autocast. Summed in fp32 lanes and fp64 totals (fp64 throughout for fp64); operands of different dtypes are
        read as they are. A mean over nothing is NaN, a sum 0, NaN and inf propagate: all as in PyTorch.

    Differentiable in ``input``, ``target`` and ``weight``, each only if it requires it, with sign(0) = 0; second
    derivatives are exact, by eager operations. Saves references to its operands and, for dense CPU images, the
    signs of their difference at two bits an element, so that the backward pass only writes.
    Bitwise deterministic.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was passed.
    """
    code = choice(_OP, "reduction", reduction, REDUCTIONS)
    by_weight = choice(_OP, "normalize", normalize, NORMALIZE) and weight is not None and code == MEAN
    corners = boolean(_OP, "align_corners", align_corners)
    _check(input, target, weight)
    return weighted_l1(Operands(input, target, weight), Settings(code, by_weight, corners, autocasts(input)))[0]


def _check(input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    shape, device = check_image(_OP, "input", input), input.device
    if check_image(_OP, "target", target) != shape:
        raise ValueError(f"{_OP}: target must have input's shape {tuple(shape)}, got {tuple(target.shape)}")
    if target.device != device:
        raise ValueError(f"{_OP}: target must be on input's device {device}, got {describe(target)}")
    if weight is None:
        return
    wn, wc, _, _ = check_image(_OP, "weight", weight, "(N or 1, 1 or C, h, w)")
    n, c, _, _ = shape
    if (wn != n and wn != 1) or (wc != c and wc != 1):
        raise ValueError(
            f"{_OP}: weight must be (N or 1, 1 or C, h, w) with N={n} and C={c}, got {tuple(weight.shape)}"
        )
    if weight.device != device:
        raise ValueError(f"{_OP}: weight must be on input's device {device}, got {describe(weight)}")
