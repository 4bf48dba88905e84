"""Operands of a case in every dtype and memory layout, from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srkernels._spec import Case

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
LAYOUTS = ("contiguous", "channels_last", "sliced", "strided", "expanded", "permuted")


def random(shape: Sequence[int], dtype: torch.dtype, seed: int, device: str = "cpu", low: float = -0.25) -> Tensor:
    """Uniform in [low, 1): mostly positive like images and maps, but with signs that matter.

    Drawn in fp32 and rounded, so that every dtype, fp64 too, sees values that fp32 also holds.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(tuple(shape)).uniform_(low, 1, generator=generator).to(device, dtype)


def arranged(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` in a memory layout; under "expanded", those of its first sample for the whole batch."""
    if x.dim() == 1 and layout == "strided":
        return x.new_full((2 * len(x) + 1,), torch.nan)[1::2].copy_(x)
    if x.dim() < 4 or layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        if x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        # (N, C, bands, h, w): channels_last of the image that its two channel axes flatten to
        flat = x.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        return flat.unflatten(1, x.shape[1:3])
    if layout == "sliced":  # rows dense, gaps between rows and between planes, a storage offset
        room = x.new_full((*x.shape[:-2], x.shape[-2] + 2, x.shape[-1] + 3), torch.nan)
        return room[..., 1:-1, 2:-1].copy_(x)
    if layout == "strided":  # no two neighbours adjacent
        room = x.new_full((x.shape[0], 2 * x.shape[1], *x.shape[2:-1], 2 * x.shape[-1] + 1), torch.nan)
        return room[:, ::2, ..., 1::2].copy_(x)
    if layout == "expanded":
        return x[:1].contiguous().expand(x.shape) if x.shape[0] else x.contiguous()
    if layout == "permuted":  # dense, in the reverse order of axes
        axes = tuple(reversed(range(x.dim())))
        return x.permute(axes).contiguous().permute(axes)
    raise ValueError(layout)


def operands(
    case: Case, dtype: torch.dtype, layout: str = "contiguous", seed: int = 0, device: str = "cpu"
) -> list[Tensor | None]:
    """One draw of a case's operands; an operand that the case leaves out is None."""
    return [
        None
        if shape is None
        else arranged(random(shape, dtype, 1000 * seed + i, device, -1 if i in case.centred else -0.25), layout)
        for i, shape in enumerate(case.shapes)
    ]


def cotangents(outputs: Sequence[Tensor], layout: str = "contiguous", seed: int = 0) -> list[Tensor]:
    """Random gradients of the outputs, in their dtype and in a memory layout of their own.

    A scalar's scales every gradient of its draw, so it stays within a factor of two.
    """
    result = []
    for i, y in enumerate(outputs):
        g = random(y.shape, y.dtype, 1000 * seed + 500 + i, y.device.type)
        result.append(arranged(g, layout) if y.dim() else (0.6 * g + 0.65).to(y.dtype))
    return result
