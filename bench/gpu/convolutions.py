"""Every configuration of the Triton convolution kernels against PyTorch, hence cuDNN: right, how fast, which wins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import timing
from ..timing import Call, time_calls
from .context import Context, Skip
from .networks import images

PYTORCH = "PyTorch"
# (batch, channels in, channels out, height = width), most decisive first.
SHAPES = (
    (16, 64, 64, 192),
    (8, 160, 32, 128),
    (16, 64, 64, 32),
    (8, 192, 64, 128),
    (8, 64, 64, 128),
    (16, 160, 32, 32),
    (16, 64, 64, 48),
    (8, 32, 160, 128),
)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
_JOBS = [(shape, "bf16") for shape in SHAPES] + [(shape, name) for name in ("tf32", "fp16") for shape in SHAPES[:2]]
_COMPILERS = 12


@dataclass(frozen=True)
class _Floor:
    """What bounds any kernel: rates of products and bytes that a matrix product and a copy reach here."""

    flops_per_us: float
    bytes_per_us: float

    def us(self, flops: int, nbytes: int) -> float:
        return max(flops / self.flops_per_us, nbytes / self.bytes_per_us)


def _floor(context: Context, dtype: torch.dtype) -> _Floor:
    size = 256 if context.small else 8192
    a, b = (torch.rand(size, size, device=context.device).to(dtype) - 0.5 for _ in range(2))
    stats = time_calls({"product": [lambda: a @ b]}, context.device, seconds=0.2, rounds=(3, 10))["product"]
    copied = timing.copy_gbps(10**6 if context.small else 512 * 10**6, context.device, seconds=0.1, rounds=(3, 20))
    return _Floor(2 * size**3 / stats.median_us, copied * 1e3)


@dataclass
class _Pass:
    """One pass of a convolution on several sets of buffers, by each of many candidates.

    ``calls``: candidate -> how to make it, one call for each set; each returns its result. ``chosen``: which of them
    the library uses.
    """

    name: str
    exact: Tensor
    calls: dict[str, list[Callable[[], Tensor]]]
    chosen: str
    flops: int
    nbytes: int


def _convolution_backward(g: Tensor, x: Tensor, w: Tensor, *mask: bool) -> Sequence[Any]:
    backward = torch.ops.aten.convolution_backward
    return backward(g, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, list(mask))  # type: ignore[no-any-return]


def _passes(xs: list[Tensor], gs: list[Tensor], w: Tensor) -> Iterator[_Pass]:
    """Forward, gradients of data, weight and activation; every candidate returns what PyTorch returns.

    Configurations are those that ``srkernels.tuning()`` tries the first of; the chosen one is the first.
    """
    from srkernels.ops.conv.activation import RELU, Epilogue
    from srkernels.ops.conv.triton import launch
    from srkernels.ops.conv.triton.configuration import configurations, configurations_of_shares

    (cout, cin), dtype = w.shape[:2], w.dtype
    x, g, wide = xs[0].double(), gs[0].double(), w.double()
    pairs = list(zip(xs, gs, strict=True))
    counted = 18 * x[:, :1].numel() * cin * cout, xs[0].nbytes + gs[0].nbytes + w.nbytes

    def convolved(how: Any, of: Tensor, adjoint: bool) -> Tensor:
        n, _, height, width = of.shape
        shape = n, cin if adjoint else cout, height, width
        y = torch.empty(shape, dtype=dtype, device=of.device, memory_format=torch.channels_last)
        launch.convolve(of, w, y, adjoint=adjoint, how=how)
        return y

    def summed(how: Any, x: Tensor, g: Tensor) -> Tensor:
        found = torch.empty_like(w)
        launch.gradient_of_weight(x, g, found, how=how)
        return found

    def masked(x: Tensor, g: Tensor) -> Tensor:
        g = torch.where(x > 0, g, 0)
        g.sum((0, 2, 3))
        return g

    def activated(x: Tensor, g: Tensor) -> Tensor:
        return launch.activation_gradient(g, x, None, Epilogue(RELU), True, torch.empty_like(w[:, 0, 0, 0]), None)

    calls = {PYTORCH: [lambda x=x: F.conv2d(x, w, padding=1) for x in xs]}
    found = configurations(xs[0], cout)
    for name, how in found.items():
        calls[name] = [lambda how=how, x=x: convolved(how, x, False) for x in xs]
    yield _Pass("forward", F.conv2d(x, wide, padding=1), calls, next(iter(found)), *counted)  # type: ignore[arg-type]

    calls = {PYTORCH: [lambda x=x, g=g: _convolution_backward(g, x, w, True, False, False)[0] for x, g in pairs]}
    found = configurations(gs[0], cin)
    for name, how in found.items():
        calls[name] = [lambda how=how, g=g: convolved(how, g, True) for g in gs]
    exact = _convolution_backward(g, x, wide, True, False, False)[0]
    yield _Pass("data gradient", exact, calls, next(iter(found)), *counted)  # type: ignore[arg-type]

    calls = {PYTORCH: [lambda x=x, g=g: _convolution_backward(g, x, w, False, True, False)[1] for x, g in pairs]}
    shares = configurations_of_shares(xs[0], cout)
    for name, how in shares.items():
        calls[name] = [lambda how=how, x=x, g=g: summed(how, x, g) for x, g in pairs]
    exact = _convolution_backward(g, x, wide, False, True, False)[1]
    yield _Pass("weight gradient", exact, calls, next(iter(shares)), *counted)  # type: ignore[arg-type]

    if cin == cout:
        # Of relu, with x as its output, and the sum that is a bias's gradient.
        calls = {
            PYTORCH: [lambda x=x, g=g: masked(x, g) for x, g in pairs],
            "through_activation": [lambda x=x, g=g: activated(x, g) for x, g in pairs],
        }
        exact = torch.where(x > 0, g, 0)
        yield _Pass("activation gradient", exact, calls, "through_activation", 0, 3 * xs[0].nbytes)  # type: ignore[arg-type]


@contextmanager
def _compiling() -> Iterator[None]:
    """Inside, a launch of a Triton convolution compiles its kernel and does not run it."""
    from srkernels.ops.conv.triton import launch

    class Compiler:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
            return lambda *args, **options: self.kernel.warmup(*args, grid=grid, **options)

    kernels = {name: found for name, found in vars(launch).items() if hasattr(found, "warmup")}
    for name, kernel in kernels.items():
        setattr(launch, name, Compiler(kernel))
    try:
        yield
    finally:
        for name, kernel in kernels.items():
            setattr(launch, name, kernel)


def _compile(calls: Mapping[str, Sequence[Call]]) -> None:
    """All at once; what does not compile or fit fails when it is run."""

    def quietly(call: Call) -> None:
        try:
            call()
        except Exception:
            return

    with _compiling(), ThreadPoolExecutor(_COMPILERS) as pool:
        list(pool.map(quietly, [sets[0] for name, sets in calls.items() if name != PYTORCH]))


def _errors(one: _Pass) -> dict[str, float | str]:
    """Candidate -> its relative error, or why there is none."""
    found: dict[str, float | str] = {}
    for name, sets in one.calls.items():
        try:
            y = sets[0]()
            found[name] = float((y.double() - one.exact).norm() / one.exact.norm())
        except Exception as error:  # a launch that needs more than the card has, say
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:120]
    return found


def kernels(context: Context) -> None:
    """Candidates of each pass at each shape. Failed parity: no time."""
    from srkernels import _triton

    reason = _triton.why_not(context.device)
    if reason:
        raise Skip(reason)
    torch.backends.cudnn.benchmark = True
    add = context.table(
        "3x3 convolution, channels_last", ["shape", "type", "pass", "kernel", "us", "again", "TFLOP/s", "x floor", ""]
    )
    best = context.table(
        "which wins",
        ["shape", "type", "pass", "PyTorch us", "ours us", "PyTorch / ours", "chosen us", "chosen", "fastest"],
    )
    records: list[dict[str, Any]] = context.data.setdefault("kernels", [])
    floors: dict[str, _Floor] = {}
    for (n, cin, cout, size), name in _JOBS[:1] if context.small else _JOBS:
        dtype = _DTYPES[name]
        if name not in floors:
            with _tf32_products():
                floors[name] = _floor(context, dtype)
        if context.small:
            n, size = 1, 5
        shape = f"{n}x{cin}->{cout}x{size}x{size}"
        count = timing.cold_sets(n * (cin + cout) * size * size * dtype.itemsize, context.device)
        xs, gs = images(context, count, n, cin, size, dtype), images(context, count, n, cout, size, dtype)
        w = (torch.rand(cout, cin, 3, 3, device=context.device) - 0.5).to(dtype)
        for one in _passes(xs, gs, w.contiguous(memory_format=torch.channels_last)):
            if context.left() < 5:
                context.note("stopped early: the section's time is used up")
                return
            if context.small:
                one.calls = dict(list(one.calls.items())[:3])
            if context.cuda:
                _compile(one.calls)
            errors = _errors(one)
            # As for every op: twice the error of PyTorch's own, and one rounding.
            allowed = 2 * float(errors[PYTORCH]) + torch.finfo(dtype).eps
            right = {how: one.calls[how] for how, e in errors.items() if isinstance(e, float) and e <= allowed}
            rounds = (2, 3) if context.small else (4, 15)
            stats = time_calls(right, context.device, seconds=0.6, rounds=rounds)
            floor = floors[name].us(one.flops, one.nbytes)
            for how, error in errors.items():
                row = {"shape": shape, "dtype": name, "pass": one.name, "kernel": how, "floor_us": floor}
                if how not in stats:
                    said = error if isinstance(error, str) else f"WRONG: error {error:.2g}, allowed {allowed:.2g}"
                    records.append(row | {"failed": said})
                    add(shape, name, one.name, how, "-", "-", "-", "-", said)
                    continue
                us = stats[how].median_us
                records.append(row | {"us": us, "passes_us": list(stats[how].passes_us), "error": error})
                add(shape, name, one.name, how, *stats[how].passes_us, one.flops / us / 1e6, us / floor, "")
            ours = {how: stats[how].median_us for how in stats if how != PYTORCH}
            if ours:
                fastest = min(ours, key=ours.__getitem__)
                theirs = stats[PYTORCH].median_us
                times = theirs, ours[fastest], theirs / ours[fastest], ours.get(one.chosen, float("nan"))
                best(shape, name, one.name, *times, one.chosen, fastest)
    if any("WRONG" in record.get("failed", "") for record in records):
        raise RuntimeError("a kernel is wrong; see the table")


@contextmanager
def _tf32_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
