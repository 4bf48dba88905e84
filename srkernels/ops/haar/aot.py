"""The Haar kernels to compile ahead of time: dense images of either layout in every element type, and the rest."""

from __future__ import annotations

import torch

from ..._spec import AotCase
from ..._triton import aot_case
from .conventions import BOTH, HIGH, PADS, plan_id

_ELEMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_REFLECT = PADS.index("reflect")


def cases() -> tuple[AotCase, ...]:
    """Imports triton."""
    from . import triton_kernels as kernels

    found = []
    for name, dtype in _ELEMENTS.items():
        for layout in ("nchw", "channels_last"):
            x = torch.empty(1, 64, 4, 64, dtype=dtype)
            if layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            plan = plan_id("dasr")
            bands = kernels.allocate.bands(x, plan, BOTH)
            # DASR's discriminators: the high bands alone, and their gradient.
            found += [
                aot_case(
                    f"analysis-{layout}-{name}",
                    kernels,
                    "analysis_even",
                    lambda x=x, plan=plan: kernels.analysis(x, plan, _REFLECT, HIGH),
                    wide_loads=4,
                    wide_stores=3,
                ),
                aot_case(
                    f"synthesis-{layout}-{name}",
                    kernels,
                    "synthesis_even",
                    lambda high=bands[1], plan=plan: kernels.synthesis(None, high, 4, 64, plan, _REFLECT),
                    wide_loads=3,
                    wide_stores=4,
                ),
            ]
        if name == "fp16":
            continue
        x = torch.empty(2, 3, 7, 5, dtype=dtype)
        plan = plan_id("orthonormal")
        low, high = kernels.allocate.bands(x, plan, BOTH)
        found += [
            aot_case(
                f"analysis-odd-{name}",
                kernels,
                "analysis_any",
                lambda x=x, plan=plan: kernels.analysis(x, plan, _REFLECT, BOTH),
            ),
            aot_case(
                f"synthesis-odd-{name}",
                kernels,
                "synthesis_any",
                lambda low=low, high=high, plan=plan: kernels.synthesis(low, high, 7, 5, plan, _REFLECT),
            ),
        ]
    return tuple(found)
