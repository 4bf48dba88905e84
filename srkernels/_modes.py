"""What surrounds a call: whether it is traced, transformed or differentiated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active


def in_forward_mode() -> bool:
    """Whether tangents may be carried forward: our Functions have no jvp and raise, a bare operator would drop them."""
    return forward_ad._current_level >= 0


def capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def records(*tensors: Tensor | None) -> bool:
    """Whether a call on these records anything for a derivative."""
    if not torch.is_grad_enabled():
        return False
    # Inside torch.func a tensor does not tell that a transform outside it is taking its derivative.
    if not is_compiling() and transforms_active():
        return True
    # Not any(...): its generator alone takes a third of a microsecond.
    for x in tensors:  # noqa: SIM110
        if x is not None and x.requires_grad:
            return True
    return False
