"""The weighted L1 kernels to compile ahead of time: images in either layout and every element type, and the rest."""

from __future__ import annotations

from typing import Any

import torch

from ..._spec import AotCase
from ..._triton import aot_case
from .allocate import MEAN, NONE

_ELEMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cases() -> tuple[AotCase, ...]:
    """Imports triton."""
    from . import triton_kernels as kernels

    found = []

    def add(id: str, kernel: str, *arguments: Any, wide: tuple[int, int] = (0, 0)) -> None:
        run = kernels.backward if kernel == "gradients" else kernels.forward
        found.append(aot_case(id, kernels, kernel, lambda: run(*arguments), *wide))

    for name, dtype in _ELEMENTS.items():
        grad = torch.empty((), dtype=dtype)
        u = torch.empty(1, 1, 2, 8, dtype=dtype)
        # An image's three channels are read with the same weights, three vectors of each operand per thread.
        x = torch.empty(1, 3, 16, 64, dtype=dtype)
        add(f"mean-nchw-{name}", "loss_total", x, x, u, MEAN, False, False, False, wide=(6, 0))
        add(f"gradient-nchw-{name}", "gradients", grad, x, x, u, None, MEAN, False, True, False, False, wide=(6, 3))
        if name == "fp16":
            continue  # as bf16
        x = torch.empty(1, 64, 16, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
        add(f"mean-channels_last-{name}", "loss_total", x, x, u, MEAN, False, False, False, wide=(2, 0))
        add(f"map-channels_last-{name}", "loss_map", x, x, u, NONE, False, False, False, wide=(2, 1))
        add(
            f"gradient-channels_last-{name}", "gradients",
            grad, x, x, u, None, MEAN, False, True, False, False, wide=(2, 1),
        )  # fmt: skip

    x, u, grad, statistics = torch.empty(1, 3, 16, 64), torch.empty(1, 1, 2, 8), torch.empty(()), torch.empty(2)
    add("mean-by-weight-fp32", "loss_total", x, x, u, MEAN, True, False, False, wide=(6, 0))
    add("gradient-all-fp32", "gradients", grad, x, x, u, statistics, MEAN, False, True, True, True, wide=(6, 6))
    x, u, grad = torch.empty(1, 3, 9, 11), torch.empty(1, 3, 4, 5), torch.empty(())
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    add("mean-strided-fp32", "loss_total", x, strided, u, MEAN, False, False, False)
    add("gradient-strided-fp32", "gradients", grad, x, strided, u, None, MEAN, False, True, True, True)
    x = torch.empty(1, 3, 64, 64)
    add("mean-no-map-fp32", "loss_total", x, x, None, MEAN, False, False, False, wide=(2, 0))
    u = torch.empty(1, 1, 1, 1)
    add("gradient-of-one-cell-fp32", "gradients", grad, x, x, u, None, MEAN, False, False, False, True)
    return tuple(found)
