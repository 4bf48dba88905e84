"""What an op declares about itself; tests, benches, ahead-of-time compilation and info iterate over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Shape = tuple[int, ...]

# An op's own reasons, (backend, device, dtype, detail, automatic) -> why not, or None. ``detail`` is what else of a
# call they depend on (a kernel size, say); ``automatic``: also where the backend runs but eager PyTorch is faster.
Refusal = Callable[[str, torch.device, torch.dtype, tuple[int, ...], bool], str | None]


def convolves_nothing(
    backend: str, device: torch.device, dtype: torch.dtype, details: tuple[int, ...], automatic: bool
) -> str | None:
    """The reason of an op that has no others."""
    return "no convolution to run passes around" if backend == "pointwise" else None


@dataclass(frozen=True)
class Case:
    """One call of an op: operand shapes (None: the operand is left out) and keyword arguments.

    ``centred``: positions of operands to draw around zero (filters, so that both sides of an activation are reached);
    the others are drawn like images, mostly positive.
    """

    id: str
    shapes: tuple[Shape | None, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    centred: tuple[int, ...] = ()


@dataclass(frozen=True)
class BenchCase:
    """A case that is timed.

    Attributes:
        passes: "forward" or "forward+backward" (gradients of ``differentiable`` operands, by a random cotangent).
        targets: on CPU, 2 threads: least ratio of the provider's median ("eager", "compile") to ours.
        gpu_targets: the same on a GPU, to our Triton backend's median; empty: what every op must reach there.
        over_fp32: on CPU, least ratio of eager PyTorch in fp32 and NCHW, as papers' code runs, to this case.
    """

    case: Case
    passes: str
    dtype: str = "float32"
    channels_last: bool = False
    differentiable: tuple[str, ...] = ()
    targets: Mapping[str, float] = field(default_factory=dict)
    gpu_targets: Mapping[str, float] = field(default_factory=dict)
    over_fp32: float | None = None


@dataclass(frozen=True)
class AotCase:
    """One Triton kernel to compile ahead of time, without a GPU.

    Attributes:
        module: full name of the module with the kernel.
        kernel: name of the ``@triton.jit`` function in it.
        signature: argument name -> Triton type ("*fp32", "i32", "i64", "fp32"); "constexpr" for those below.
        constexprs: argument name -> value.
        aligned: arguments divisible by 16, as the launcher sees them on aligned shapes.
        num_warps: warps of 32 lanes.
        num_stages: how far ahead loads of a loop run.
        wide_loads, wide_stores: 128-bit global accesses that the machine code must hold, at least.
        targets: architectures that launch it this way; empty: all.
        variant: a kernel whose machine code another case stands for, compiled only when all are requested.
        hgmma: warpgroup matrix instructions that Hopper's machine code must hold, at least. Where a product
            takes several, there may be at most half as many waits: one each would mean that they run one by one.
    """

    id: str
    module: str
    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int
    wide_loads: int = 0
    wide_stores: int = 0
    targets: tuple[str, ...] = ()
    variant: bool = False
    hgmma: int = 0


@dataclass(frozen=True)
class OpSpec:
    """An op, its oracle and its figures.

    Attributes:
        name: public name in ``srkernels``.
        package: where ``reference``, ``native`` and ``triton`` live.
        op: the public function; operands are its positional tensors, in order.
        oracle: the same call from its formula, differentiable by autograd; run in fp64 it defines what is right.
        eager: the same call in the best eager PyTorch, differentiable by autograd, in the operands' dtype: its error is
            the measure of ours, its time the bench's baseline.
        operands: names of the positional tensors, all floating point.
        cases: shapes and arguments that every gate runs: odd, prime, 1-wide, empty, every option.
        small: tiny cases for gradcheck and gradgradcheck.
        bench: what is timed.
        bytes_moved: (case, bytes per element, passes) -> bytes read and written by a perfect kernel.
        flops: (case, passes) -> floating-point operations.
        published: the call as published training code makes it in eager PyTorch: the first bench baseline.
        peers: name -> zero-argument factory of the same call in another package (ImportError: not installed).
        invariants: name -> check(backend) of the op's algebra; raises AssertionError.
        aot: () -> kernels to compile ahead of time; imports triton.
        saved_bytes: (case, bytes per element) -> bytes that only the backward pass keeps alive.
        parameters: operands without a batch axis.
        refuses: the op's own reasons against a backend (see ``Refusal``).
        detail: (operands, keyword arguments) -> what of a call they depend on.
        bad_values_spread: backend -> why its gradients may hold more NaNs than eager PyTorch's, if they may.
        threads_matter: why the native result depends on the number of threads, if it does.
        launches: Triton's on a GPU, forward and backward with every gradient, where operands are 16-bit channels_last.
        composed: made of another op's Triton kernels, many launches a call: the interpreter's gates run less of it.
    """

    name: str
    package: str
    op: Callable[..., Any]
    oracle: Callable[..., Any]
    eager: Callable[..., Any]
    operands: tuple[str, ...]
    cases: tuple[Case, ...]
    small: tuple[Case, ...]
    bench: tuple[BenchCase, ...]
    bytes_moved: Callable[[Case, int, str], int]
    flops: Callable[[Case, str], int]
    published: Callable[..., Any]
    peers: Mapping[str, Callable[[], Callable[..., Any]]] = field(default_factory=dict)
    invariants: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    aot: Callable[[], tuple[AotCase, ...]] = tuple
    saved_bytes: Callable[[Case, int], int] = lambda case, itemsize: 0
    parameters: tuple[str, ...] = ()
    refuses: Refusal = convolves_nothing
    detail: Callable[..., tuple[int, ...]] = lambda *operands, **settings: ()
    bad_values_spread: Mapping[str, str] = field(default_factory=dict)
    threads_matter: str = ""
    launches: tuple[int, int] = (1, 1)
    composed: bool = False

    @property
    def convolves(self) -> bool:
        return self.refuses is not convolves_nothing
