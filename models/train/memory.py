"""The memory that a training step needs at its peak, counted rather than measured: no GPU is needed.

Every operation of the step passes through a dispatch mode that follows the storages it creates until the last tensor on
them is gone: what autograd saves, what lies between two operations, and what an operation of `srkernels` allocates
inside. Tensors can be real ones, or fake ones (`imagined`), which have a shape and a dtype but no memory and run
through the same code, autograd's and autocast's included.

On a CPU the count is what torch's allocator hands out. On a GPU it should be what `torch.cuda.max_memory_allocated`
reports, apart from cuDNN's workspaces, which no GPU has confirmed yet; neither includes the CUDA context or what the
allocator loses between blocks.
"""

from __future__ import annotations

import copy
import functools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from models.train.players import Batch, Step


@dataclass(frozen=True)
class MemoryCount:
    """Bytes alive at the moment when a step needs the most; they add up to `peak`.

    Attributes:
        networks: parameters and buffers.
        gradients: those that parameters have at that moment.
        optimizer: the optimisers' states.
        activations: all else: the batch, what autograd keeps, what is being computed.
    """

    networks: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def peak(self) -> int:
        return self.networks + self.gradients + self.optimizer + self.activations


def count_step(
    step: Callable[[Batch], object],
    batch: Batch,
    networks: Sequence[nn.Module],
    optimizers: Sequence[Optimizer],
) -> MemoryCount:
    """Runs one step on a batch of CPU tensors, real or fake, and counts its memory.

    It counts a step in the middle of training: if an optimiser has no state yet, another step is run first.
    """
    if not all(optimizer.state for optimizer in optimizers):
        step(batch)
    live = _Live()
    parameters = [parameter for network in networks for parameter in network.parameters()]
    live.hold(parameters, "networks")
    for network in networks:
        live.hold(network.buffers(), "networks")
    for optimizer in optimizers:
        states = (value for state in optimizer.state.values() for value in state.values())
        live.hold((value for value in states if isinstance(value, Tensor)), "optimizer")
    live.hold((parameter.grad for parameter in parameters if parameter.grad is not None), "gradients")
    live.hold(batch.values(), "activations")
    hooks = [
        parameter.register_post_accumulate_grad_hook(live.hold_gradient)
        for parameter in parameters
        if parameter.requires_grad
    ]
    try:
        with live:
            step(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return live.most


def largest_batch(count: Callable[[int], MemoryCount], limit: float, near: int) -> int:
    """The largest batch whose peak is within `limit` bytes, 0 if not even a single one is.

    Memory grows by about the same amount with every item, so the search starts where a line through the counts of
    `near` and of one other batch meets the limit.
    """
    count = functools.cache(count)

    def meets(each: float) -> int:
        return max(0, near + math.floor((limit - count(near).peak) / each))

    other = max(1, meets(count(near).activations / near))
    if other == near:
        other += 1
    found = meets((count(other).peak - count(near).peak) / (other - near))
    while found > 0 and count(found).peak > limit:
        found -= 1
    while count(found + 1).peak <= limit:
        found += 1
    return found


def kept_networks(step: Step, *, average: bool) -> list[nn.Module]:
    """All networks that a run of this step has in memory, those of its losses and an average of the generator too."""
    players = step.players
    found = [players.generator, players.discriminator]
    for value in vars(step).values():
        owner = getattr(value, "__self__", value)  # of a network's method
        if isinstance(owner, nn.Module):
            found.append(owner)
    return list(dict.fromkeys(found)) + ([copy.deepcopy(players.generator)] if average else [])


def empty_batch(shapes: Mapping[str, Sequence[int]], layout: torch.memory_format) -> Batch:
    """An uninitialised batch."""
    return {name: torch.empty(*shape).contiguous(memory_format=layout) for name, shape in shapes.items()}


@contextmanager
def imagined() -> Iterator[None]:
    """Tensors created inside are fake: on the CPU, without memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def imagine(networks: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
    """Prepares networks on the meta device, and their optimisers, for `imagined`, inside which it must be called.

    Meta tensors themselves will not do: autocast does not know their device.
    """
    fake: dict[Tensor, Tensor] = {}
    for network in networks:
        before = list(network.parameters())
        network.to_empty(device="cpu")
        fake.update(zip(before, network.parameters(), strict=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [fake[parameter] for parameter in group["params"]]


_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def _copied_bytes(x: Tensor) -> int:
    """Bytes of the copy that a convolution makes of an operand that is a slice of channels."""
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return 0 if dense else x.numel() * x.element_size()


class _Live(TorchDispatchMode):
    """Follows live storages.

    Attributes:
        most: what was alive at the peak.
    """

    def __init__(self) -> None:
        super().__init__()
        # By the id of a storage, which is unique for as long as the storage lives.
        self._kinds: dict[int, tuple[weakref.ref[Any], str]] = {}
        self._bytes = {"networks": 0, "gradients": 0, "optimizer": 0, "activations": 0}
        self.most = MemoryCount()

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Counts the storages of tensors as being of a kind, whatever they were counted as before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            before = self._kinds.get(key)
            if before is None:
                gone = weakref.ref(storage, lambda _, key=key, size=size: self._drop(key, size))  # type: ignore[misc]
            else:
                gone = before[0]
                self._bytes[before[1]] -= size
            self._kinds[key] = gone, kind
            self._bytes[kind] += size

    def hold_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.hold([parameter.grad], "gradients")

    def _drop(self, key: int, size: int) -> None:
        _, kind = self._kinds.pop(key)
        self._bytes[kind] -= size

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = self._run_open(func, args) if func.namespace == "srkernels" else func(*args, **(kwargs or {}))
        made = (x for x in (output if isinstance(output, (tuple, list)) else [output]) if isinstance(x, Tensor))
        self.hold((x for x in made if id(x.untyped_storage()) not in self._kinds), "activations")
        copies = sum(_copied_bytes(x) for x in args if isinstance(x, Tensor)) if func in _CONVOLUTIONS else 0
        if sum(self._bytes.values()) + copies > self.most.peak:
            self.most = replace(MemoryCount(**self._bytes), activations=self._bytes["activations"] + copies)
        return output

    def _run_open(self, func: Any, args: Sequence[Any]) -> Any:
        """Runs an operation of the library in eager PyTorch, whose tensors can be seen; its kernels need no more.

        What it saves for the backward pass was decided before, by the backend that was requested or chosen.
        """
        (at,) = (n for n, argument in enumerate(func._schema.arguments) if argument.name == "backend")
        args = [*args[:at], "reference", *args[at + 1 :]]
        with self:
            return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args)
