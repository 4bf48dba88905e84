"""Shared by the scripts that run under sanitizers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from helpers.calls import why_not
from torch import Tensor

from srkernels import _native
from srkernels._parity import flat
from srkernels._spec import Case, OpSpec


def levels() -> Iterator[str]:
    """Every instruction set of this machine, the smallest first, each in use while it is yielded."""
    core = _native.extension("cpu")
    assert "lib" in Path(core.__file__).parts, f"{core.__file__} is not the build under the sanitizer"
    best = core.isa()
    for isa in ("baseline", "avx2", "avx512"):
        core.set_isa(isa)
        yield isa
        if isa == best:
            return


def of_the_core(spec: OpSpec, cases: Sequence[Case]) -> list[Case]:
    """Those that the core runs."""
    return [case for case in cases if why_not(spec, case, "native") is None]


def both_passes(
    spec: OpSpec,
    case: Case,
    operands: Sequence[Tensor | None],
    needs: Collection[int],
    *,
    dense: bool = True,
    autocast: bool = False,
) -> None:
    """A call, and the gradients of the operands ``needs``; the others require none.

    ``dense``: cotangents of ones in memory, or one value expanded.
    """
    leaves = [None if x is None else x.detach().requires_grad_(i in needs) for i, x in enumerate(operands)]
    with torch.autocast("cpu", enabled=autocast):
        outputs = flat(spec.op(*leaves, **case.kwargs))
    if needs:
        ones = [torch.ones_like(y) if dense else y.new_ones(()).expand_as(y) for y in outputs]
        torch.autograd.grad(outputs, [leaves[i] for i in needs], ones)
