"""What autograd keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def saved_storages(call: Callable[[], Any]) -> tuple[Any, dict[int, int]]:
    """The result of ``call``, and what its graph keeps for the backward pass: address -> bytes of each storage."""
    found: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        return call(), found


def saved_bytes(call: Callable[[], Any], besides: Iterable[Tensor | None] = ()) -> int:
    """Bytes that the graph of ``call`` keeps, not counting ``besides`` (operands, parameters)."""
    _, found = saved_storages(call)
    for x in besides:
        if x is not None:
            found.pop(x.untyped_storage().data_ptr(), None)
    return sum(found.values())
