"""Argument checks shared by the ops; a failure is one sentence: op, argument, what was expected, what was passed."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_T = TypeVar("_T")


def choice(op: str, argument: str, value: Any, table: Mapping[str, _T]) -> _T:
    """``table[value]``; ValueError with the allowed names if there is no such entry."""
    try:
        return table[value]
    except (KeyError, TypeError):  # TypeError: not even hashable
        raise ValueError(f"{op}: {argument} must be one of {', '.join(table)}, got {shown(value)}") from None


def describe(value: Any) -> str:
    """Shape, dtype and device of a tensor, the type name of anything else."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_nested:
        return f"nested {value.dtype} on {value.device}"
    return f"{tuple(value.shape)} {value.dtype} on {value.device}"


def shown(value: Any) -> str:
    """A setting as it was passed, if that is short; ``describe`` of it otherwise."""
    if not isinstance(value, (str, bytes, bool, int, float, complex, list, tuple, type(None))):
        return describe(value)
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else describe(value)


def number(op: str, argument: str, value: Any) -> float:
    """``value`` as a float: a real number, NumPy's too, but not a bool or a tensor."""
    if type(value) is float:
        return value
    if isinstance(value, (Real, torch.SymFloat, torch.SymInt)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{op}: {argument} must be a number in the range of a float, got {shown(value)}") from None
    raise TypeError(f"{op}: {argument} must be a number, got {shown(value)}")


def integer(op: str, argument: str, value: Any, least: int | None = None) -> int:
    """``value`` as an int, NumPy's too; at least ``least``."""
    if not isinstance(value, (Integral, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{op}: {argument} must be an integer, got {shown(value)}")
    size: Any = value if isinstance(value, torch.SymInt) else int(value)
    if least is not None and not least <= size < 2**31:
        raise ValueError(f"{op}: {argument} must be at least {least} and below 2**31, got {shown(value)}")
    return size


def boolean(op: str, argument: str, value: Any) -> bool:
    """``value`` if it is True or False, NumPy's too."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{op}: {argument} must be True or False, got {shown(value)}")


def check_image(op: str, argument: str, x: Any, axes: str = "(N, C, H, W)", dims: int = 4) -> torch.Size:
    """``x`` is a dense floating-point tensor of ``dims`` dimensions whose last two sizes are at least 1; its shape."""
    if (
        isinstance(x, Tensor)
        and x.dtype in FLOAT_DTYPES
        and x.layout is torch.strided
        and x.dim() == dims
        and not x.is_nested
    ):
        shape = x.shape
        if shape[-2] >= 1 and shape[-1] >= 1:
            return shape
    _refuse_image(op, argument, x, axes, dims)


def _refuse_image(op: str, argument: str, x: Any, axes: str, dims: int) -> NoReturn:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {argument} must be a tensor {axes}, got {type(x).__name__}")
    if x.is_nested:
        raise TypeError(f"{op}: {argument} must be a dense tensor, got {_layout(x)}")
    if x.dim() != dims:
        raise ValueError(f"{op}: {argument} must be {dims}-D {axes}, got shape {tuple(x.shape)}")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: {argument} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.layout is not torch.strided:
        raise TypeError(f"{op}: {argument} must be a dense tensor, got {_layout(x)}")
    raise ValueError(f"{op}: {argument} must have height and width of at least 1, got shape {tuple(x.shape)}")


def check_vector(op: str, argument: str, x: Any, sizes: tuple[int, ...], device: torch.device) -> None:
    """``x`` is a dense floating-point vector of one of ``sizes`` on ``device``."""
    dense = isinstance(x, Tensor) and x.layout is torch.strided and not x.is_nested
    if dense and x.dtype in FLOAT_DTYPES and x.dim() == 1 and x.shape[0] in sizes and x.device == device:
        return
    _refuse_vector(op, argument, x, " or ".join(f"({size},)" for size in dict.fromkeys(sizes)), device)


def _refuse_vector(op: str, argument: str, x: Any, expected: str, device: torch.device) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {argument} must be a tensor {expected}, got {type(x).__name__}")
    if x.is_nested or x.layout is not torch.strided:
        raise TypeError(f"{op}: {argument} must be a dense tensor, got {_layout(x)}")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: {argument} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    raise ValueError(f"{op}: {argument} must be {expected} on {device}, got {describe(x)}")


def _layout(x: Tensor) -> str:
    return "a nested one" if x.is_nested else f"layout {x.layout}"
