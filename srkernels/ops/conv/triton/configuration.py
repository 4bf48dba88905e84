"""Configurations of the Triton kernels: other blocks than those that ``launch`` chooses, by name.

``triton[shift pixels=64, weight stages=2]`` convolves, forward and in the data gradient, with ``shift`` in blocks of 64
pixels and takes the weight's gradient in two stages. What it does not name, and what does not fit a call (a dense block
has convolutions of several sizes), is as chosen. None was timed on a GPU; ``tuned.measure`` tries the first of a list.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...._layout import is_channels_last
from ..activation import CONVOLUTION, Epilogue
from . import launch
from .launch import NO_TENSORS, Blocks, EpilogueTensors, Shares, choose, choose_shares, gathers, stored_last, usual

Sizes = Mapping[str, Any]


def _named(*found: tuple[str, Sizes]) -> dict[str, tuple[str, Sizes]]:
    return {" ".join([kernel, *(f"{k}={v}" for k, v in sizes.items())]): (kernel, sizes) for kernel, sizes in found}


# Fields of ``Blocks`` in place of the kernel's usual ones.
_CONVOLUTIONS = _named(
    ("gather", {}),
    ("stream", {}),
    ("shift", {}),
    ("shift", {"pixels": 64}),
    ("gather", {"stages": 4}),
    ("stream", {"outputs": 32}),
    ("stream", {"pixels": 128}),
    ("gather", {"pixels": 64}),
    ("gather", {"pixels": 256}),
    ("stream", {"stages": 2}),
    ("shift", {"stages": 2}),
    ("gather", {"stages": 2}),
)
# Fields of ``Shares`` in place of the chosen ones.
_WEIGHTS = {
    name: sizes
    for name, (_, sizes) in _named(
        ("weight", {}),
        ("weight", {"stages": 4}),
        ("weight", {"pixels": 32}),
        ("weight", {"pixels": 64}),
        ("weight", {"outputs": 32}),
        ("weight", {"nine": False, "outputs": 64}),
        ("weight", {"outputs": 64}),
        ("weight", {"stages": 2}),
        ("weight", {"pixels": 16}),
    ).items()
}


@functools.lru_cache(maxsize=1024)
def _sized(name: str, channels: int, out: int, dtype: torch.dtype, last: bool) -> Blocks | None:
    kernel, sizes = _CONVOLUTIONS[name]
    how = usual(kernel, channels, out, dtype, last)
    if how is None:
        return None
    changed = how._replace(**sizes)
    return changed._replace(outputs=min(changed.outputs, how.outputs))  # few channels need no more


def _blocks(name: str, x: Tensor, out: int, last: bool, residual: Tensor | None = None) -> Blocks | None:
    """None: this kernel does not fit here; PyTorch's precision of fp32 may have changed since a choice was made."""
    if gathers(x, residual) and _CONVOLUTIONS[name][0] != "gather":
        return None
    return _sized(name, x.shape[1], out, x.dtype, last)


def _shares(name: str, x: Tensor, out: int) -> Shares | None:
    """None: it does not fit here."""
    chosen = choose_shares(x, out)
    how = chosen._replace(**_WEIGHTS[name])
    if x.dtype is torch.float64 and how._replace(stages=chosen.stages) != chosen:  # whose blocks are the least
        return None
    return how if chosen.pixels <= 2 * how.pixels <= 4 * chosen.pixels else None


def _distinct(named: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are there, each under its first name."""
    names = {how: name for name, how in reversed(list(named.items()))}
    return {name: how for name, how in named.items() if how is not None and names[how] == name}


def configurations(x: Tensor, out: int, last: bool = True, residual: Tensor | None = None) -> dict[str, Blocks]:
    """What may convolve ``x`` to ``out`` channels, channels_last if ``last``, by name, the chosen one first."""
    found = _distinct({name: _blocks(name, x, out, last, residual) for name in _CONVOLUTIONS})
    chosen = choose(x, out, last, residual)
    return dict(sorted(found.items(), key=lambda item: item[1] != chosen))


def configurations_of_shares(x: Tensor, out: int) -> dict[str, Shares]:
    """What may take the weight's gradient, by name, the chosen one first."""
    return _distinct({name: _shares(name, x, out) for name in _WEIGHTS})


def names(x: Tensor, weights: Sequence[Tensor], residual: Tensor | None) -> list[list[str]]:
    """Names of what may run the convolutions, then of what may take the weight's gradient; the chosen ones first.

    They are those of an op's last convolution, a dense block's largest, whose input has the size of ``x``.
    """
    if x.numel() == 0:
        return []
    out, channels = weights[-1].shape[:2]
    last = len(weights) > 1 or is_channels_last(x)  # a block's own images are, whatever surrounds it
    x = x[:, :1].expand(-1, channels, -1, -1)
    found = [list(configurations(x, out, last, residual))]
    return [*found, list(configurations_of_shares(x, out))] if any(w.requires_grad for w in weights) else found


class Configured:
    """The launches of ``launch`` in the blocks of these configurations."""

    OURS = launch.OURS
    sums_biases = staticmethod(launch.sums_biases)

    def __init__(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in _CONVOLUTIONS and name not in _WEIGHTS]
        if unknown:
            known = ", ".join((*_CONVOLUTIONS, *_WEIGHTS))
            raise ValueError(f"the Triton kernels have no configuration {unknown[0]!r}; there are: {known}")
        self._convolution = next((name for name in names if name in _CONVOLUTIONS), "")
        self._weight = next((name for name in names if name in _WEIGHTS), "")

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        y: Tensor,
        epilogue: Epilogue = CONVOLUTION,
        tensors: EpilogueTensors = NO_TENSORS,
        *,
        adjoint: bool = False,
    ) -> Tensor:
        how = None
        if self._convolution:
            how = _blocks(self._convolution, x, y.shape[1], stored_last(y), tensors.residual)
        return launch.convolve(x, weight, y, epilogue, tensors, adjoint=adjoint, how=how)

    def _how(self, x: Tensor, grad_z: Tensor) -> Shares | None:
        return _shares(self._weight, x, grad_z.shape[1]) if self._weight else None

    def gradient_of_weight(
        self, x: Tensor, grad_z: Tensor, grad_weight: Tensor, grad_bias: Tensor | None = None, scale: float = 1.0
    ) -> None:
        launch.gradient_of_weight(x, grad_z, grad_weight, grad_bias, scale, self._how(x, grad_z))

    def gradients_of_weights(
        self, features: Tensor, gradients: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
    ) -> None:
        launch.gradients_of_weights(features, gradients, weights, biases, self._how(features, gradients))
