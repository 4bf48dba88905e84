"""``patch(model)``: the fused ops inside someone else's network, without changing a key.

A block is recognised by its structure, not by the name of its class (``blocks``, made of ``layers``), and is taken only
after a proof: a copy of it in fp64, its parameters redrawn at random, does the same with the old and the new forward
(``proof``). Blocks that differ only in their parameters' values share one.

A taken module gets a subclass of its own class with another ``forward`` (``swap``). Nothing else changes: parameters,
buffers, keys, hooks, ``isinstance``, ``deepcopy``, pickling. On a call that the proof does not cover (a hook inside, a
layer replaced since, an unusual input) the old forward runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .._validate import choice
from .blocks import PLANS, Block, Plan, fingerprint, same
from .layers import is_sequence, original_class, why_left
from .proof import Disproof, prove
from .swap import install, plan_of, remove

__all__ = ["Line", "Report", "patch", "unpatch"]


@dataclass(frozen=True)
class Line:
    """One module of a report.

    Attributes:
        path: its name in the model ("" is the model itself).
        kind: the name of its class.
        op: what computes it now; None if it was left.
        note: what was recognised, or why it was left.
    """

    path: str
    kind: str
    op: str | None
    note: str


@dataclass(frozen=True)
class Report:
    """What ``patch`` took and left. Prints as a table."""

    lines: tuple[Line, ...]

    @property
    def taken(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.op is not None)

    @property
    def left(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.op is None)

    def __str__(self) -> str:
        rows = [("module", "class", "now", "note")]
        rows += [(x.path or "(the model)", x.kind, x.op or "left", x.note) for x in self.lines]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)) + "  " + row[3] for row in rows]
        text.insert(1, "-" * max(map(len, text)))
        return "\n".join([*text, f"{len(self.taken)} taken, {len(self.left)} left"])


def patch(model: nn.Module, *, save: str = "activations") -> Report:
    """Make the fused ops compute the blocks of ``model`` that they know, in place.

    Taken are: residual blocks of two 3x3 convolutions (BasicSR ``ResidualBlockNoBN``, EDSR ``ResBlock``, KAIR
    ``ResBlock`` in mode CRC, DASR's block with PReLU), the dense blocks of an RRDB with any of its three key families
    (``body.N.rdbK.convJ``, ``RRDB_trunk.N.RDBK.convJ``, ``model.1.sub.N.RDBK.convJ.0``), and pairs of a convolution, of
    any kind, and an activation in an ``nn.Sequential`` that is called whole (VGG, discriminators) and in BasicSR's
    ``SRVGGNetCompact`` and ``VGGFeatureExtractor``. All else stays as it is, and the report says why.

    Args:
        model: any module, in any mode, dtype and layout.
        save: what residual and dense blocks keep for the backward pass, "activations" or "recompute", as in
            ``residual_block`` and ``dense_block``.

    Returns:
        What was taken and what was left, with reasons. A second call takes what is new.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``save`` is neither.

    A network may be edited afterwards: a block whose layers, attributes or class are no longer as proven runs its own
    forward, as it does under ``torch.export``, ``torch.fx``, ``torch.func`` and ``torch.jit``.
    ``torch.jit.script`` puts unpatched blocks into the model that it is given: call ``patch`` again to use it further.
    Proofs use PyTorch's random generators and its number of threads, and restore both: nothing else should run.
    """
    _check("patch", model)
    choice("patch", "save", save, {"activations": True, "recompute": False})
    return Report(tuple(_Visit(save).lines(model, _Place(""))))


def unpatch(model: nn.Module) -> int:
    """Undo ``patch``, in place; returns the number of modules restored.

    Raises:
        TypeError: ``model`` is not a module.
    """
    _check("unpatch", model)
    return sum(map(remove, list(model.modules())))


def _check(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")


@dataclass(frozen=True)
class _Place:
    """Where a module is called."""

    path: str
    owner: nn.Module | None = None  # the nearest that has a forward
    then: nn.Module | None = None  # what is called next


class _Visit:
    """A walk over a model that visits each module once, from its outermost owner."""

    def __init__(self, save: str) -> None:
        self.save = save
        self.seen: set[nn.Module] = set()
        self.proven: list[tuple[Any, Plan]] = []

    def prove(self, module: nn.Module, plan: Plan) -> Plan:
        """``prove``, once for blocks that differ only in the values of their parameters."""
        if not isinstance(plan, Block):
            return prove(module, plan)
        found = fingerprint(module)
        for known, proven in self.proven:
            if same(known, found) and replace(proven, rounds=False) == plan:
                return proven
        self.proven.append((found, prove(module, plan)))
        return self.proven[-1][1]

    def lines(self, module: nn.Module, place: _Place) -> Iterator[Line]:
        if module in self.seen:
            return
        self.seen.add(module)
        name = original_class(module).__name__
        before = plan_of(module)
        if before is not None:
            yield Line(place.path, name, None, "patched before")
        reasons: list[str] = []
        parts = set() if before is None else set(before.parts())
        for kind in PLANS if before is None else ():
            plan = kind.match(module)
            if plan is None:
                continue
            try:
                if isinstance(plan, str):
                    raise Disproof(plan)
                plan = self.prove(module, replace(plan, save=self.save))
            except Disproof as disproof:
                reasons.append(str(disproof))
                continue
            install(module, plan)
            yield Line(place.path, name, plan.op, plan.describe())
            parts = set(plan.parts())
            reasons.clear()
            break
        inside = [(n, child) for n, child in module._modules.items() if child is not None]
        if before is None and not reasons and not inside and module._parameters:
            reasons = [why_left(module, place.owner, place.then)]
        if reasons:
            yield Line(place.path, name, None, "; ".join(dict.fromkeys(reasons)))
        called = isinstance(module, (nn.ModuleList, nn.ModuleDict))  # by its owner
        owner = place.owner if called else module
        following = [child for _, child in inside[1:]]
        for (n, child), then in itertools.zip_longest(inside, following):
            if n in parts:
                self.seen.update(child.modules())
            else:
                path = f"{place.path}.{n}" if place.path else n
                yield from self.lines(child, _Place(path, owner, then if is_sequence(module) else None))
