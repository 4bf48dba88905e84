"""What a result's operands can give: sums of absolute products, by running an oracle with every term made positive.

Rounding errors of a sum grow with the sum S of its terms' absolute values and not with its value. Evaluated on absolute
operands, with subtractions as additions and no mask of an activation, an oracle and its gradients are that S, whatever
is composed of whatever: a product of sums is the sum over all paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srkernels._spec import Case, OpSpec

from .calls import gradients, values

_aten = torch.ops.aten
_Number = Tensor | float


def _magnitude(x: _Number) -> _Number:
    return x if isinstance(x, Tensor) else abs(x)


def _at_least_one(slope: _Number) -> _Number:
    return slope.clamp_min(1) if isinstance(slope, Tensor) else max(1.0, abs(slope))


_RULES: dict[Any, Callable[..., Any]] = {
    _aten.sub.Tensor: lambda a, b, alpha=1: a + abs(alpha) * _magnitude(b),
    _aten.mul.Tensor: lambda a, b: a * _magnitude(b),
    _aten.neg.default: torch.clone,
    _aten.abs.default: torch.clone,
    _aten.sgn.default: torch.ones_like,
    _aten.relu.default: torch.clone,
    _aten.threshold_backward.default: lambda grad, x, threshold: grad.clone(),
    _aten.leaky_relu.default: lambda x, slope=0.01: x * _at_least_one(slope),
    _aten.leaky_relu_backward.default: lambda grad, x, slope, is_result: grad * _at_least_one(slope),
    _aten._prelu_kernel.default: lambda x, slope: x * _at_least_one(slope),
    _aten._prelu_kernel_backward.default: lambda x, slope, grad: (grad * _at_least_one(slope), grad * x),
}


def _terms(func: Any, args: tuple[Any, ...], result: Any) -> int:
    """How many terms the longest sum in this operation has."""
    if func is _aten.convolution.default:
        return args[1][0].numel()
    if func is _aten.convolution_backward.default:
        grad, _, weight, *_ = args
        return max(weight[:, :1].numel(), grad[:, :1].numel())
    if isinstance(result, Tensor) and func.overloadpacket in (
        _aten.sum,
        _aten.mean,
        _aten.upsample_bilinear2d_backward,
    ):
        # A sample of a resized map goes to four cells.
        return 4 * args[0].numel() // max(1, result.numel())
    return 4  # the cells of a Haar transform, the samples that a bilinear one is made of


class _Absolute(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.longest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = _RULES.get(func, func)(*args, **(kwargs or {}))
        self.longest = max(self.longest, _terms(func, args, result))
        return result


def sums_of_magnitudes(
    spec: OpSpec, case: Case, operands: Sequence[Tensor | None], cotangents: Sequence[Tensor], wanted: Sequence[int]
) -> tuple[list[Tensor], list[Tensor], int]:
    """S of every output, S of every gradient, and the number of terms of the longest sum among them."""
    xs = [None if x is None else x.double().abs().contiguous() for x in operands]
    cots = [c.double().abs().contiguous() for c in cotangents]
    with _Absolute() as mode:
        of_values, of_gradients = values(spec.oracle, case, xs), gradients(spec.oracle, case, xs, cots, wanted)
    return of_values, of_gradients, mode.longest
