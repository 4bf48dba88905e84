"""Data parallelism under torchrun: every rank trains on its share of the global batch, gradients are averaged.

Gradients are averaged here and not by DistributedDataParallel, because a step takes the gradients of two players from
one shared forward pass and never computes those that it would discard.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

# A group on the CPU for what only hosts need to agree on.
_flags: dist.ProcessGroup | None = None
_alone = False


def _joined() -> bool:
    return dist.is_initialized() and not _alone


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is the only rank: nothing is sent."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    return rank() == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the group that torchrun started, if it did: gloo on the CPU, NCCL on GPUs. Yields this rank's device."""
    if "RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Ranks wait for the one that validates or writes maps, which takes long on full-size photographs.
    global _flags
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=6))
    _flags = dist.new_group(backend="gloo")
    try:
        yield device
    finally:
        _flags = None
        dist.destroy_process_group()


def barrier() -> None:
    if _joined():
        dist.barrier()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set anywhere. Waits for the other ranks' hosts, and for no device."""
    if not _joined():
        return flag
    value = torch.tensor([float(flag)])
    dist.all_reduce(value, dist.ReduceOp.MAX, group=_flags)
    return bool(value.item())


def broadcast_weights(networks: Iterable[nn.Module]) -> None:
    """Copies the main rank's weights and buffers to every rank."""
    if _joined():
        for network in networks:
            for value in (*network.parameters(), *network.buffers()):
                dist.broadcast(value.data, 0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the ranks, in one message; nothing happens without a group.

    With losses that are means over a rank's share, this is the gradient of the mean over the global batch.
    """
    if not _joined():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    message = torch.cat([gradient.reshape(-1) for gradient in gradients]).div_(world_size())
    dist.all_reduce(message)
    parts = message.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))
