"""Who computes a case: the papers' code, the best eager form, torch.compile, other packages and each of our backends.

The parity gate lives here too. Nothing is timed before its values and gradients agree with the fp64 oracle.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from srkernels import _parity, use_backend
from srkernels._dispatch import BACKENDS, why_not
from srkernels._parity import flat
from srkernels._spec import BenchCase, OpSpec
from srkernels.ops import specs

from ..record import OURS

# Another formulation of the same sum rounds elsewhere (a convolution with rounded filters, say). This slack on the
# budget lets that pass and still catches a different convention, whose error is of the order of the values.
BASELINE_SLACK = 32.0


class ParityError(AssertionError):
    """Values or gradients are further from the fp64 oracle than the budget; such a case gets no figure."""


@dataclass(frozen=True)
class Provider:
    """``backend`` is passed to ``use_backend`` around every call; "" means that it does not matter."""

    name: str
    function: Callable[..., Any]
    backend: str | None = ""

    @property
    def ours(self) -> bool:
        return self.backend != ""

    def around(self) -> AbstractContextManager[Any]:
        return use_backend(self.backend) if self.ours else nullcontext()


@dataclass(frozen=True)
class Problem:
    """One set of random operands of a case and the cotangents of its outputs."""

    operands: tuple[Tensor | None, ...]
    kwargs: dict[str, Any]
    wanted: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...]

    @property
    def device(self) -> torch.device:
        return next(x.device for x in self.operands if x is not None)

    def forward(self, function: Callable[..., Any]) -> list[Tensor]:
        return flat(function(*self.operands, **self.kwargs))

    def call(self, function: Callable[..., Any]) -> Callable[[], Any]:
        """What is timed: the forward pass, or with differentiable operands their gradients."""
        operands, kwargs, wanted, cotangents = self.operands, self.kwargs, self.wanted, self.cotangents
        if not wanted:
            return lambda: function(*operands, **kwargs)
        if cotangents:
            return lambda: torch.autograd.grad(flat(function(*operands, **kwargs)), wanted, cotangents)
        return lambda: torch.autograd.grad(function(*operands, **kwargs), wanted)


def problem(spec: OpSpec, bench: BenchCase, device: torch.device, index: int = 0) -> Problem:
    """Random operands of a bench case; ``index`` tells rotated sets apart.

    The generator is our own: a CUDA graph capture takes over the default one.
    """
    seed = zlib.crc32(f"{spec.name} {bench.case.id} {index}".encode())
    generator = torch.Generator(device).manual_seed(seed)
    dtype: torch.dtype = getattr(torch, bench.dtype)
    memory_format = torch.channels_last if bench.channels_last else torch.contiguous_format
    operands: list[Tensor | None] = []
    for i, (name, shape) in enumerate(zip(spec.operands, bench.case.shapes, strict=True)):
        if shape is None:
            operands.append(None)
            continue
        low = -1.0 if i in bench.case.centred else 0.0
        x = torch.empty(shape, device=device).uniform_(low, 1, generator=generator).to(dtype)
        if len(shape) == 4:
            x = x.contiguous(memory_format=memory_format)
        operands.append(x.requires_grad_(name in bench.differentiable))
    by_name = dict(zip(spec.operands, operands, strict=True))
    wanted = tuple(leaf for name in bench.differentiable if (leaf := by_name[name]) is not None)
    cotangents: tuple[Tensor, ...] = ()
    if wanted:
        with torch.no_grad():
            outputs = flat(spec.eager(*operands, **bench.case.kwargs))
        # A lone scalar is a loss: its gradient is taken as in training, without a cotangent.
        if not (len(outputs) == 1 and outputs[0].dim() == 0):
            cotangents = tuple(torch.empty_like(y).uniform_(0, 1, generator=generator) for y in outputs)
    return Problem(tuple(operands), dict(bench.case.kwargs), wanted, cotangents)


def baselines(spec: OpSpec, *, compiled: bool = True) -> tuple[list[Provider], dict[str, str]]:
    """All other ways to compute the op, and the ones left out with the reason."""
    found, skipped = [], {}
    if spec.published is spec.eager:
        skipped["published"] = "is the eager form itself"
    else:
        found.append(Provider("published", spec.published))
    found.append(Provider("eager", spec.eager))
    if compiled:
        # Forget earlier shapes, or this one would be compiled with dynamic sizes and run slower than it could.
        torch._dynamo.reset()
        found.append(Provider("compile", torch.compile(spec.eager)))
    for name, factory in spec.peers.items():
        try:
            found.append(Provider(name, factory()))
        except ImportError as error:
            skipped[name] = f"not installed ({error.name or error})"
    return found, skipped


def backends(spec: OpSpec, device: torch.device, dtype: torch.dtype) -> tuple[list[Provider], dict[str, str]]:
    """The op on every backend that runs here, then under automatic choice."""
    found, skipped = [], {}
    for name in BACKENDS:
        reason = why_not(name, device, dtype, spec.refuses)
        if reason is None:
            found.append(Provider(name, spec.op, name))
        else:
            skipped[name] = reason
    return [*found, Provider(OURS, spec.op, None)], skipped


class Gate:
    """Raises ParityError unless a provider is within the budget of ``srkernels._parity``, values and gradients.

    The budget of providers that are not ours is ``BASELINE_SLACK`` times as large.
    """

    def __init__(self, spec: OpSpec, bench: BenchCase, given: Problem) -> None:
        self.given, self.case = given, bench.case
        wanted = [i for i, x in enumerate(given.operands) if any(x is leaf for leaf in given.wanted)]
        operands = [None if x is None else x.detach() for x in given.operands]
        outputs = _parity.values(spec.eager, self.case, operands)
        cotangents = given.cotangents or [torch.ones_like(y) for y in outputs]
        drawn = _parity.draw(spec, self.case, operands, cotangents, wanted)
        self.answers = _parity.answers(spec, self.case, [drawn], wanted)

    def check(self, provider: Provider) -> None:
        answers = self.answers if provider.ours else self.answers.times(BASELINE_SLACK)
        function = provider.function if provider.ours else self._in_our_dtypes(provider.function)
        try:
            with provider.around():
                answers.check(function, self.case)
        except AssertionError as error:
            raise ParityError(f"{provider.name}: {error}") from None

    def _in_our_dtypes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Other providers may return another dtype than eager PyTorch."""
        expected = self.answers.draws[0].eager_values

        def call(*operands: Any, **kwargs: Any) -> list[Tensor]:
            return [y.to(e.dtype) for y, e in zip(flat(function(*operands, **kwargs)), expected, strict=True)]

        return call

    def passing(self, candidates: Sequence[Provider]) -> tuple[list[Provider], dict[str, str]]:
        """Those within budget. One of ours that is not raises; any other is left out with the reason."""
        found, skipped = [], {}
        for provider in candidates:
            try:
                self.check(provider)
            except Exception as error:
                if provider.ours:
                    raise
                lines = str(error).strip().splitlines() or [""]
                skipped[provider.name] = f"{type(error).__name__}: {lines[0][:160]}"
            else:
                found.append(provider)
        return found, skipped


def on_triton() -> list[tuple[OpSpec, str]]:
    """Every op with each backend that launches Triton kernels."""
    return [(spec, b) for spec in specs() for b in ("triton", "pointwise") if b == "triton" or spec.convolves]


def tiny(spec: OpSpec) -> BenchCase:
    """A call so small that only host work shows: the first bench case scaled to 1x3x8x8, or a small case of the gates.

    Scaling keeps the operands' proportions; where an op does not take the result, its own small case stands in.
    """
    source = spec.bench[0].case if spec.bench else spec.small[0]
    first = source.shapes[0]
    if spec.bench and first is not None and len(first) == 4 and all(first):
        scale = [t / f for t, f in zip((1, 3, 8, 8), first, strict=True)]
        shapes = tuple(
            s if s is None or len(s) != 4 else tuple(max(1, round(d * f)) for d, f in zip(s, scale, strict=True))
            for s in source.shapes
        )
        scaled = replace(source, id="x".join(map(str, shapes[0] or ())), shapes=shapes)
        try:
            spec.eager(*(None if s is None else torch.rand(s) for s in shapes), **source.kwargs)
        except (RuntimeError, ValueError, TypeError):
            source = spec.small[0]
        else:
            source = scaled
    named = tuple(n for b in spec.bench for n in b.differentiable) or spec.operands[:1]
    return BenchCase(source, "forward+backward", differentiable=tuple(dict.fromkeys(named)))
