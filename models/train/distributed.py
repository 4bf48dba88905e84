"""Data parallelism under torchrun: every rank trains on its share of the global batch, gradients are averaged.

Gradients are averaged here and not by DistributedDataParallel, because a step takes the gradients of two players from
one shared forward pass and never computes those that it would discard.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from models.train.watch import Watch

# A group on the CPU for what only hosts need to agree on.
_flags: dist.ProcessGroup | None = None
_watch: Watch | None = None
_alone = False

# Ranks may wait that long for the one that validates, as long as it gets on: the watch sees to that.
_LONGEST = timedelta(hours=6)


class LostRank(Exception):
    """Another rank is gone, and with it the run; why is said there."""


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
def process_group(device: torch.device, minutes: float) -> Iterator[torch.device]:
    """Joins the group that torchrun started, if it did: gloo on the CPU, NCCL on GPUs. Yields this rank's device.

    A rank that does not get on for so many minutes ends the run, by its name.
    """
    if "RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    global _flags, _watch
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_LONGEST)
    _flags = dist.new_group(backend="gloo", timeout=_LONGEST)
    # A connection of its own: a call in the main thread may hold the group's.
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    _watch = Watch(store, rank(), world_size(), minutes)
    _watch.start()
    try:
        yield device
    finally:
        _watch.close()
        _flags = _watch = None
        dist.destroy_process_group()


def get_on() -> None:
    """Says that this rank gets on with work that the others wait for."""
    if _watch is not None:
        _watch.moves += 1


@contextmanager
def _together() -> Iterator[None]:
    """Around what all ranks do together. Raises LostRank if one of them is gone."""
    get_on()
    if _watch is not None:
        _watch.waiting = True
    try:
        yield
    except RuntimeError as error:
        first, *_ = str(error).splitlines() or [""]
        raise LostRank(f"rank {rank()} ends because another one did: {first[:120]}") from error
    finally:
        if _watch is not None:
            _watch.waiting = False
        get_on()


def barrier() -> None:
    if _joined():
        with _together():
            dist.barrier()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set anywhere. Waits for the other ranks' hosts, and for no device."""
    if not _joined():
        return flag
    value = torch.tensor([float(flag)])
    with _together():
        dist.all_reduce(value, dist.ReduceOp.MAX, group=_flags)
    return bool(value.item())


def on_main(action: Callable[[], None]) -> None:
    """Runs `action` on the main rank while the others wait for it; if it fails there, they leave without a word."""
    if not is_main():
        if any_rank(False):
            raise SystemExit(2)
        return
    try:
        action()
    except BaseException:
        any_rank(True)
        raise
    any_rank(False)


def broadcast_weights(networks: Iterable[nn.Module]) -> None:
    """Copies the main rank's weights and buffers to every rank."""
    if _joined():
        with _together():
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
    with _together():
        dist.all_reduce(message)
    parts = message.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))
