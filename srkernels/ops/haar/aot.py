"""The Haar kernels to compile ahead of time: dense images in either layout and every element type, and the rest."""

from __future__ import annotations

from typing import Any

import torch

from ..._spec import AotCase
from ..._triton import aot_case
from . import allocate
from .arguments import Analysis, Bands, Image, Synthesis
from .conventions import BOTH, HIGH, PADS, plan_id

_ELEMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_REFLECT = PADS.index("reflect")


def cases() -> tuple[AotCase, ...]:
    """Imports triton."""
    from .triton import launch as kernels

    found = []

    def add(id: str, kernel: str, *arguments: Any, wide: tuple[int, int] = (0, 0)) -> None:
        run = kernels.analysis if kernel.startswith("analysis") else kernels.synthesis
        found.append(aot_case(id, kernels, kernel, lambda: run(*arguments), *wide))

    for name, dtype in _ELEMENTS.items():
        for layout in ("nchw", "channels_last"):
            if layout == "channels_last" and name == "fp16":
                continue  # as bf16
            x = torch.empty(1, 64, 4, 64, dtype=dtype)
            if layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            # DASR's discriminators: the high bands alone, and their gradient.
            plan = plan_id("dasr")
            forward = Analysis(plan, _REFLECT, HIGH)
            (high,) = allocate.bands(x, forward)
            add(f"analysis-{layout}-{name}", "analysis_even", Image(x), forward, wide=(4, 3))
            backward = Synthesis(4, 64, plan, _REFLECT)
            add(f"synthesis-{layout}-{name}", "synthesis_even", Bands(None, high), backward, wide=(3, 4))
    x = torch.empty(2, 3, 7, 5)
    plan = plan_id("orthonormal")
    forward = Analysis(plan, _REFLECT, BOTH)
    low, high = allocate.bands(x, forward)
    add("analysis-odd-fp32", "analysis_any", Image(x), forward)
    for name, pad in (("odd", _REFLECT), ("periodic", PADS.index("periodic"))):
        add(f"synthesis-{name}-fp32", "synthesis_any", Bands(low, high), Synthesis(7, 5, plan, pad))
    return tuple(found)
