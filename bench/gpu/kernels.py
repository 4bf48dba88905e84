"""Triton kernels that measure the machine and compute nothing. Imported only where Triton runs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def empty_kernel(x_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    pass


@triton.jit
def read_kernel(x_ptr, out_ptr, steps, n_blocks, BLOCK: tl.constexpr, UNROLL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each program reads ``steps * UNROLL`` blocks, cycling through the buffer, and keeps their sum.

    UNROLL loads are independent, so that several are in flight; .cg bypasses L1, so that L2 serves them.
    """
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        for u in tl.static_range(UNROLL):
            block = (pid + (step * UNROLL + u) * programs) % n_blocks
            total += tl.load(x_ptr + block.to(tl.int64) * BLOCK + offsets, cache_modifier=".cg")
    tl.store(out_ptr + pid.to(tl.int64) * BLOCK + offsets, total)
