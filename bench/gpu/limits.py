"""Ceilings of the machine and the cost of a launch: what every other figure is compared with."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import timing
from ..timing import Call, time_calls
from .context import Context


def ceilings(context: Context) -> None:
    """Copy bandwidth, matrix rates, L2 read bandwidth; every figure is measured twice."""
    device = context.device
    add = context.table("copy, bytes read plus written, into a reused buffer", ["MB", "GB/s", "again"])
    for megabytes in (12, 44) if context.small else (12, 44, 512, 4096):
        once, again = (timing.copy_gbps(megabytes * 1_000_000, device, seconds=0.1, rounds=(5, 30)) for _ in range(2))
        add(str(megabytes), once, again)

    add = context.table("matrix product, random data", ["type", "size", "us", "TFLOP/s", "again"])
    kinds = [("bfloat16", "bf16", "highest"), ("float16", "fp16", "highest")]
    kinds += [("float32", "tf32", "high"), ("float32", "fp32", "highest")]
    before = torch.get_float32_matmul_precision()
    for dtype, name, precision in kinds:
        size = 256 if context.small else 4096 if name == "fp32" else 8192
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.rand(size, size, device=device).to(getattr(torch, dtype)) - 0.5 for _ in range(2))
        stats = time_calls({name: [lambda a=a, b=b: a @ b]}, device, seconds=0.5, rounds=(5, 30))[name]  # type: ignore[misc]
        rates = [2 * size**3 / us / 1e6 for us in stats.passes_us]
        add(name, str(size), stats.median_us, *rates)
    torch.set_float32_matmul_precision(before)
    _l2(context)


def _l2(context: Context) -> None:
    if not context.cuda:
        context.note("L2 read bandwidth left out: torch sees no CUDA device")
        return
    from .kernels import read_kernel

    device = context.device
    block, unroll, steps = 2048, 4, 64
    programs = 4 * torch.cuda.get_device_properties(device).multi_processor_count
    add = context.table("reads of one buffer again and again", ["buffer MB", "GB/s", "again"])
    for megabytes in (16, 32, 1024):
        n_blocks = megabytes * (1 << 20) // (4 * block)
        x = torch.rand(n_blocks * block, device=device)
        out = torch.empty(programs * block, device=device)

        def read(x: Tensor = x, out: Tensor = out, n_blocks: int = n_blocks) -> None:
            read_kernel[(programs,)](x, out, steps, n_blocks, BLOCK=block, UNROLL=unroll, num_warps=8)

        stats = time_calls({"read": [read]}, device, seconds=0.3, rounds=(5, 50))["read"]
        nbytes = 4 * block * programs * steps * unroll
        add(str(megabytes), *(nbytes / us / 1e3 for us in stats.passes_us))
    context.note("Buffers of 16 and 32 MB stay in L2; 1024 MB is read from memory.")


def launches(context: Context) -> None:
    """Host time of launches and autograd nodes; device time of a node in a CUDA graph."""
    device = context.device
    count = 20 if context.small else 300
    add = context.table("host time per call", ["call", "us", "p20", "p80"])

    def host(name: str, call: Call) -> None:
        stats = timing.host_us({name: call}, device, batches=3 if context.small else 20, batch=count)[name]
        add(name, stats.median_us, stats.p20_us, stats.p80_us)

    x = torch.rand(64, device=device)
    leaf = torch.rand(64, device=device, requires_grad=True)
    cotangent = torch.rand(64, device=device)
    host("aten relu", lambda: torch.relu(x))
    host("aten relu, forward and backward", lambda: torch.autograd.grad(torch.relu(leaf), leaf, cotangent))
    host("bare autograd.Function around relu", lambda: _Bare.apply(leaf))
    host(
        "bare autograd.Function around relu, forward and backward",
        lambda: torch.autograd.grad(_Bare.apply(leaf), leaf, cotangent),
    )
    if not context.cuda:
        context.note("Empty kernels and CUDA graph left out: torch sees no CUDA device")
        return
    empty: dict[str, Callable[[], Any]] = {"aten add_ on 64 elements": lambda: x.add_(1)}
    for name, make in (("empty Triton kernel", _empty_triton), ("empty CUDA C++ kernel through ctypes", _empty_cuda)):
        try:
            empty[name] = make(x)
        except Exception as error:
            context.note(f"{name} left out: {type(error).__name__}: {error}"[:300])
    for name, call in empty.items():
        call()
        torch.cuda.synchronize()
        host(name, call)
    add = context.table(
        "device time per launch, dependent launches",
        ["call", "100 nodes in a graph, us", "again", "100 on a stream, us"],
    )
    for name, call in empty.items():
        stats = time_calls({name: [call] * 100}, device, seconds=0.4, rounds=(10, 100))[name]
        add(name + ("" if stats.method == "graph" else " (no graph)"), *stats.passes_us, _on_stream(call))


def _on_stream(call: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    found = []
    for _ in range(10):
        torch.cuda.synchronize()
        begin.record()
        for _ in range(100):
            call()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) * 10)
    return sorted(found)[5]


class _Bare(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _empty_triton(x: Tensor) -> Call:
    from .kernels import empty_kernel

    return lambda: empty_kernel[(1,)](x, BLOCK=1)


_SOURCE = """
__global__ void nothing(float*) {}
extern "C" int launch(void* x, void* stream) {
  nothing<<<1, 32, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<float*>(x));
  return static_cast<int>(cudaGetLastError());
}
"""


def _empty_cuda(x: Tensor) -> Call:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise RuntimeError("no nvcc")
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "empty.cu").write_text(_SOURCE)
        major, minor = torch.cuda.get_device_capability(x.device)
        target = f"-gencode=arch=compute_{major}{minor},code=sm_{major}{minor}"
        command = [
            nvcc,
            "-O2",
            "-shared",
            "-Xcompiler",
            "-fPIC",
            "-cudart",
            "static",
            target,
            "-o",
            "empty.so",
            "empty.cu",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-200:])
        library = ctypes.CDLL(str(folder / "empty.so"))
    finally:
        # The loaded library stays mapped.
        shutil.rmtree(folder, ignore_errors=True)
    launch = library.launch
    launch.argtypes, launch.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_int
    pointer = x.data_ptr()

    def call() -> None:
        code = launch(pointer, torch.cuda.current_stream().cuda_stream)
        if code:
            raise RuntimeError(f"CUDA error {code}")

    return call
