"""What surrounds a call: whether it is traced, transformed or differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, profiler
from torch.compiler import is_compiling

transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active


def in_forward_mode() -> bool:
    """Whether tangents may be carried forward: our Functions have no jvp and raise, a bare operator would drop them."""
    return forward_ad._current_level >= 0


def capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether these are real tensors, outside traces, transforms and forward mode. See ``is_memory``."""
    if transforms_active() or in_forward_mode() or torch._C._get_tracing_state() is not None:
        return False
    # Not all(...): its generator costs as much as what it asks.
    for x in tensors:  # noqa: SIM110
        if x is not None and type(x) is not Tensor and type(x) is not nn.Parameter:
            return False
    return True


def is_memory(x: Tensor) -> bool:
    """Whether the values of ``x`` are what stands in its memory: no batch of PyTorch's older vmap, nothing pending."""
    on_device = x.is_cpu or x.is_cuda
    # Zeros not yet written and wrappers of torch.func.functionalize have a storage, but at no address.
    return on_device and torch._C._has_storage(x) and x.data_ptr() != 0 and not x.is_neg()


def watched() -> bool:
    """Whether something sees what passes through PyTorch's dispatcher: a compiler, a mode, or a profiler."""
    if is_compiling() or torch._C._is_torch_function_mode_enabled():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or profiler._is_profiler_enabled


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
