"""Argument checks shared by the ops; each failure is one sentence: the op, the argument, the expectation, what came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ._dispatch import FLOAT_DTYPES

_T = TypeVar("_T")


def choice(op: str, argument: str, value: Any, table: Mapping[str, _T]) -> _T:
    """``table[value]``; ValueError with the allowed names if there is no such entry."""
    try:
        return table[value]
    except (KeyError, TypeError):  # TypeError: not even hashable
        raise ValueError(f"{op}: {argument} must be one of {', '.join(table)}, got {value!r}") from None


def describe(value: Any) -> str:
    """Shape, dtype and device of a tensor, the type name of anything else."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} on {value.device}"
    return type(value).__name__


def check_image(op: str, argument: str, x: Any, axes: str = "(N, C, H, W)", dims: int = 4) -> None:
    """``x`` is a dense floating-point tensor of ``dims`` dimensions whose last two sizes are at least 1."""
    if isinstance(x, Tensor) and x.dtype in FLOAT_DTYPES and x.layout is torch.strided and x.dim() == dims:
        shape = x.shape
        if shape[-2] >= 1 and shape[-1] >= 1:
            return
    _refuse_image(op, argument, x, axes, dims)


def _refuse_image(op: str, argument: str, x: Any, axes: str, dims: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {argument} must be a tensor {axes}, got {type(x).__name__}")
    if x.dim() != dims:
        raise ValueError(f"{op}: {argument} must be {dims}-D {axes}, got shape {tuple(x.shape)}")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: {argument} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.layout is not torch.strided:
        raise TypeError(f"{op}: {argument} must be a dense tensor, got layout {x.layout}")
    raise ValueError(f"{op}: {argument} must have height and width of at least 1, got shape {tuple(x.shape)}")
