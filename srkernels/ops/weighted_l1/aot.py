"""The weighted L1 kernels to compile ahead of time: images in either layout and every element type, and the rest."""

from __future__ import annotations

from typing import Any

import torch

from ..._spec import AotCase
from ..._triton import aot_case
from .allocate import MEAN, NONE
from .arguments import Operands, Saved, Settings

_ELEMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cases() -> tuple[AotCase, ...]:
    """Imports triton."""
    from .triton import launch as kernels

    found = []

    def add(id: str, kernel: str, *arguments: Any, wide: tuple[int, int] = (0, 0)) -> None:
        run = kernels.backward if "gradient" in kernel else kernels.forward
        found.append(aot_case(id, kernels, kernel, lambda: run(*arguments), *wide))

    def loss(id: str, kernel: str, *operands: Any, reduction: int = MEAN, by_weight: bool = False, wide: Any) -> None:
        add(id, kernel, Operands(*operands), Settings(reduction, by_weight, False, False), False, wide=wide)

    def gradient(
        id: str, grad: Any, input: Any, target: Any, weight: Any, statistics: Any = None,
        needs: Any = (True, False, False), wide: Any = (0, 0),
    ) -> None:  # fmt: skip
        saved = Saved(input, target, weight, statistics, None)
        arguments = grad, saved, Settings(MEAN, False, False, False), list(needs)
        if any(needs[:2]):
            add(id, "image_gradients", *arguments, wide=wide)
        if needs[2]:
            add(f"{id}-of-the-map", "map_gradient", *arguments)

    every = True, True, True
    for name, dtype in _ELEMENTS.items():
        grad = torch.empty((), dtype=dtype)
        u = torch.empty(1, 1, 2, 8, dtype=dtype)
        # An image's three channels are read with the same weights, three vectors of each operand per thread.
        x = torch.empty(1, 3, 16, 64, dtype=dtype)
        loss(f"mean-nchw-{name}", "loss_total", x, x, u, wide=(6, 0))
        gradient(f"gradient-nchw-{name}", grad, x, x, u, wide=(6, 3))
        if name == "fp16":
            continue  # as bf16
        x = torch.empty(1, 64, 16, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
        loss(f"mean-channels_last-{name}", "loss_total", x, x, u, wide=(2, 0))
        loss(f"map-channels_last-{name}", "loss_map", x, x, u, reduction=NONE, wide=(2, 1))
        gradient(f"gradient-channels_last-{name}", grad, x, x, u, wide=(2, 1))

    x, u, grad, statistics = torch.empty(1, 3, 16, 64), torch.empty(1, 1, 2, 8), torch.empty(()), torch.empty(2)
    loss("mean-by-weight-fp32", "loss_total", x, x, u, by_weight=True, wide=(6, 0))
    gradient("gradient-all-fp32", grad, x, x, u, statistics=statistics, needs=every, wide=(6, 6))
    x, u, grad = torch.empty(1, 3, 9, 11), torch.empty(1, 3, 4, 5), torch.empty(())
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    loss("mean-strided-fp32", "loss_total", x, strided, u, wide=(0, 0))
    gradient("gradient-strided-fp32", grad, x, strided, u, needs=every)
    x = torch.empty(1, 3, 64, 64)
    loss("mean-no-map-fp32", "loss_total", x, x, None, wide=(2, 0))
    u = torch.empty(1, 1, 1, 1)
    gradient("gradient-of-one-cell-fp32", grad, x, x, u, needs=(False, False, True))
    return tuple(found)
