"""Versions, build, every op x backend, available or why not; a parity sample and a bandwidth probe."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _native, _parity
from ._dispatch import BACKENDS, ranked, use_backend, why_not
from ._machine import processor
from ._spec import Case, OpSpec
from ._version import __version__
from .ops import specs

_DRAWS = 8  # eager's error of a scalar or a few elements varies from draw to draw


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[torch.device]:
    return [torch.device("cpu")] + [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def report() -> str:
    """The whole report as text."""
    lines = [f"srkernels {__version__}", "", "Versions"]
    lines += [f"  {name:<10}{value}" for name, value in _versions().items()]
    lines += ["", "Native core"]
    info = _native.build_info()
    for name in ("_cpu", "_cuda"):
        built = info.get(name, {})
        how = "built" if built.get("built") else f"not built: {built.get('why_not', 'setup.py did not run')}"
        lines.append(f"  {name:<10}{how}")
    if _native.why_not(torch.device("cpu")) is None:
        extension = _native.extension("cpu")
        lines.append(f"  {'in use':<10}{extension.isa()} instructions, {torch.get_num_threads()} threads")
    for device in _devices():
        lines += ["", f"Ops on {device} ({_device_name(device)})"]
        reasons = {b: why_not(b, device, torch.float32) for b in BACKENDS}
        width = max(len(spec.name) for spec in specs()) + 2
        lines.append("  " + "op".ljust(width) + "".join(b.ljust(14) for b in BACKENDS) + "automatic")
        for spec in specs():
            own = {b: why_not(b, device, torch.float32, spec.refuses) for b in BACKENDS}
            automatic = next(b for b, reason in ranked(device, torch.float32, spec.refuses) if reason is None)
            row = "".join(("available" if own[b] is None else "no").ljust(14) for b in BACKENDS) + automatic
            lines.append("  " + spec.name.ljust(width) + row)
            reasons |= {f"{b}, {spec.name}": own[b] for b in BACKENDS if own[b] != reasons[b]}
        lines += [f"  {b}: {reason}" for b, reason in reasons.items() if reason is not None]
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ", CPU build"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__ + cuda,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def answers(spec: OpSpec, case: Case, dtype: torch.dtype, device: torch.device) -> _parity.Answers:
    """What random operands of a case should give, for ``Answers.check``."""
    generator = torch.Generator().manual_seed(20201)

    def drawn(shape: Sequence[int], low: float) -> Tensor:
        return torch.empty(tuple(shape)).uniform_(low, 1, generator=generator).to(device, dtype)

    wanted = tuple(i for i, s in enumerate(case.shapes) if s is not None)
    draws = []
    for _ in range(_DRAWS):
        operands = [None if s is None else drawn(s, -float(i in case.centred)) for i, s in enumerate(case.shapes)]
        cotangents = [drawn(y.shape, 0.5).to(y.dtype) for y in _parity.values(spec.eager, case, operands)]
        draws.append(_parity.draw(spec, case, operands, cotangents, wanted))
    return _parity.answers(spec, case, draws, wanted)


def check() -> int:
    """Print a parity sample of every op x backend that runs, and a bandwidth probe; 0 if all is right."""
    print("\nParity sample: values and gradients against an fp64 oracle, within what eager PyTorch's own error allows")
    red = 0
    for device in _devices():
        for spec in specs():
            cases = [c for c in spec.cases if all(s is None or min(s) > 0 for s in c.shapes)][:6]
            drawn = [(c, t) for c in cases for t in (torch.float32, torch.bfloat16)]
            expected = [(f"{c.id}, {t}", c, answers(spec, c, t, device)) for c, t in drawn]
            for backend in BACKENDS:
                if why_not(backend, device, torch.float32, spec.refuses) is not None:
                    continue
                verdict = "ok"
                try:
                    with use_backend(backend):
                        for what, case, answer in expected:  # noqa: B007, named if it fails
                            answer.check(spec.op, case)
                except AssertionError as error:
                    verdict, red = f"RED: {what}: {error}", red + 1
                print(f"  {spec.name:<18}{backend:<11}{device!s:<7}{verdict}")
    for device in _devices():
        print(f"\nBandwidth on {device}, 8x3x512x512 fp32, read + write")
        copy, haar = _bandwidth(device)
        print(f"  copy into a reused buffer {copy:8.1f} GB/s\n  haar_highpass, allocating {haar:8.1f} GB/s")
    print("\n" + ("all green" if not red else f"{red} red"))
    return int(red > 0)


def _bandwidth(device: torch.device) -> tuple[float, float]:
    from .functional import haar_highpass

    x = torch.rand(8, 3, 512, 512, device=device)
    into = torch.empty_like(x)
    copied = 2 * x.numel() * x.element_size()
    transformed = x.element_size() * (x.numel() + 9 * x.numel() // 12)
    return copied / _median(lambda: into.copy_(x), device) / 1e9, transformed / _median(
        lambda: haar_highpass(x), device
    ) / 1e9


def _median(call: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])
