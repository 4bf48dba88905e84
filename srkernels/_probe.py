"""A kernel that does nothing. Imports triton."""

from __future__ import annotations

import triton


@triton.jit
def nothing():  # type: ignore[no-untyped-def]
    return
