"""The weighted loss kernels to compile ahead of time: images in either layout and every element type, and the rest."""

from __future__ import annotations

from typing import Any

import torch

from ..._spec import AotCase
from ..._triton import aot_case
from .arguments import BILINEAR, CHARBONNIER, HUBER, L1, MEAN, MSE, NEAREST, NONE, Operands, Saved, Settings

_MEAN = Settings(MEAN, False, BILINEAR, False)
_EVERY = True, True, True
_ELEMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Found:
    """Cases, by the calls that launch their kernels."""

    def __init__(self) -> None:
        """Imports triton."""
        from .triton import launch

        self.launch = launch
        self.cases: list[AotCase] = []

    def add(self, id: str, kernel: str, *arguments: Any, wide: tuple[int, int] = (0, 0)) -> None:
        run = self.launch.backward if "gradient" in kernel else self.launch.forward
        self.cases.append(aot_case(id, self.launch, kernel, lambda: run(*arguments), *wide))

    def loss(
        self, id: str, kernel: str, operands: Any, settings: Settings = _MEAN, wide: tuple[int, int] = (0, 0)
    ) -> None:
        self.add(id, kernel, Operands(*operands), settings, False, wide=wide)

    def gradient(
        self, id: str, grad: Any, operands: Any, statistics: Any = None, *, settings: Settings = _MEAN,
        needs: Any = (True, False, False), wide: tuple[int, int] = (0, 0),
    ) -> None:  # fmt: skip
        input, target, weight = operands
        arguments = grad, Saved(input, target, weight, statistics, None), settings, list(needs)
        if any(needs[:2]):
            self.add(id, "image_gradients", *arguments, wide=wide)
        if needs[2]:
            self.add(f"{id}-of-the-map", "map_gradient", *arguments)


def cases() -> tuple[AotCase, ...]:
    """Of the weighted L1."""
    found = _Found()
    for name, dtype in _ELEMENTS.items():
        grad = torch.empty((), dtype=dtype)
        u = torch.empty(1, 1, 2, 8, dtype=dtype)
        # An image's three channels are read with the same weights, three vectors of each operand per thread.
        x = torch.empty(1, 3, 16, 64, dtype=dtype)
        found.loss(f"mean-nchw-{name}", "loss_total", (x, x, u), wide=(6, 0))
        found.gradient(f"gradient-nchw-{name}", grad, (x, x, u), wide=(6, 3))
        if name == "fp16":
            continue  # as bf16
        x = torch.empty(1, 64, 16, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
        found.loss(f"mean-channels_last-{name}", "loss_total", (x, x, u), wide=(2, 0))
        found.loss(
            f"map-channels_last-{name}", "loss_map", (x, x, u), settings=_MEAN._replace(reduction=NONE), wide=(2, 1)
        )
        found.gradient(f"gradient-channels_last-{name}", grad, (x, x, u), wide=(2, 1))

    x, u, grad, statistics = torch.empty(1, 3, 16, 64), torch.empty(1, 1, 2, 8), torch.empty(()), torch.empty(2)
    found.loss("mean-by-weight-fp32", "loss_total", (x, x, u), settings=_MEAN._replace(by_weight=True), wide=(6, 0))
    found.gradient("gradient-all-fp32", grad, (x, x, u), statistics=statistics, needs=_EVERY, wide=(6, 6))
    x, u, grad = torch.empty(1, 3, 9, 11), torch.empty(1, 3, 4, 5), torch.empty(())
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    found.loss("mean-strided-fp32", "loss_total", (x, strided, u), wide=(0, 0))
    found.gradient("gradient-strided-fp32", grad, (x, strided, u), needs=_EVERY)
    x = torch.empty(1, 3, 64, 64)
    found.loss("mean-no-map-fp32", "loss_total", (x, x, None), wide=(2, 0))
    u = torch.empty(1, 1, 1, 1)
    found.gradient("gradient-of-one-cell-fp32", grad, (x, x, u), needs=(False, False, True))
    return tuple(found.cases)


def other_cases() -> tuple[AotCase, ...]:
    """Of the other kinds and of nearest interpolation."""
    found = _Found()
    image, grad = (torch.empty(shape, dtype=torch.bfloat16) for shape in ((1, 3, 16, 64), ()))
    operands = image, image, torch.empty(1, 1, 2, 8, dtype=torch.bfloat16)
    for name, resize, kind, parameter in (
        ("charbonnier", BILINEAR, CHARBONNIER, 1e-6),
        ("mse", BILINEAR, MSE, 0.0),
        ("huber", BILINEAR, HUBER, 1.0),
        ("nearest", NEAREST, L1, 0.0),
    ):
        settings = Settings(MEAN, False, resize, False, kind, parameter)
        found.loss(f"{name}-bf16", "loss_total", operands, settings, wide=(6, 0))
        found.gradient(f"{name}-gradient-bf16", grad, operands, settings=settings, needs=_EVERY, wide=(6, 6))
    found.loss("charbonnier-map-bf16", "loss_map", operands, Settings(NONE, False, BILINEAR, False, CHARBONNIER, 1e-6))
    return tuple(found.cases)
