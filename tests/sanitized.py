"""Runs every case of every op on the native core, for a build under sanitizers; test_habits.py starts it."""

from __future__ import annotations

from pathlib import Path

import torch

import srkernels
from srkernels import _native
from srkernels.ops import specs


def main() -> None:
    core = _native.extension("cpu")
    assert "lib" in Path(core.__file__).parts, core.__file__
    for isa in {core.isa(), "baseline"}:
        core.set_isa(isa)
        for spec in specs():
            for case in spec.cases:
                for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                    for memory_format in (torch.contiguous_format, torch.channels_last):
                        operands = [
                            None
                            if shape is None
                            else torch.rand(shape).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
                            if len(shape) == 4
                            else torch.rand(shape).to(dtype).requires_grad_()
                            for shape in case.shapes
                        ]
                        with srkernels.use_backend("native"):
                            out = spec.op(*operands, **case.kwargs)
                            flat = [out] if isinstance(out, torch.Tensor) else [y for y in out if y is not None]
                            flat = [y for part in flat for y in (part if isinstance(part, tuple) else (part,))]
                            sum(y.double().sum() for y in flat).backward()
        _pixels_at_the_end_of_memory()
    print("clean")


def _pixels_at_the_end_of_memory() -> None:
    """Three channels are read as four: of pixels that are one, and where the last ends with its memory."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        one = torch.rand(3).to(dtype).as_strided((1, 3, 2, 4), (3, 1, 0, 0))
        last = torch.rand(1, 5, 4, 6).to(dtype).contiguous(memory_format=torch.channels_last)[:, 2:]
        high = torch.rand(9).to(dtype).as_strided((1, 3, 3, 2, 4), (9, 1, 3, 0, 0))
        with srkernels.use_backend("native"):
            for x in (one, last):
                srkernels.haar_idwt2d(*srkernels.haar_dwt2d(x))
            srkernels.haar_idwt2d(None, high)


main()
