"""The library on this machine: what it is, the build, the gates, and the ops at every shape of interest."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from srkernels._spec import BenchCase, Case, OpSpec
from srkernels.ops.conv.spec import DENSE_BLOCK, RESIDUAL_BLOCK, block_case, dense_case
from srkernels.ops.conv.support import onednn_runs

from .. import machine
from ..ops import harness
from ..ops.providers import tiny
from .context import Context, Skip

_RESULT = re.compile(r"^(tests/\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)", re.MULTILINE)
_RESULT_OF_XDIST = re.compile(
    r"^\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (tests/\S+.*)$", re.MULTILINE
)


def environment(context: Context) -> None:
    """Machine, versions and tools; also shows that torch works on the device at all."""
    add = context.table("machine", ["what", "value"])
    conditions = machine.describe(context.device, "")
    for name, value in {**conditions["machine"], **conditions["versions"]}.items():
        add(name, str(value))
    for tool in ("nvcc", "ninja", "c++"):
        add(tool, "found" if shutil.which(tool) else "not found")
    for package in ("pybind11", "ninja", "pytest", "triton"):
        add(f"python package {package}", "found" if importlib.util.find_spec(package) else "not found")
    x = torch.rand(1024, device=context.device)
    if not torch.isfinite(x.sum()):
        raise RuntimeError(f"a sum on {context.device} is not finite")


def build(context: Context) -> None:
    """`python setup.py build_ext --inplace` for the GPU present, for Hopper if there is none, then what runs."""
    if context.quick:
        raise Skip("quick run: nothing is built")
    if not (machine.ROOT / "setup.py").exists():
        raise Skip("no setup.py")
    major, minor = torch.cuda.get_device_capability(context.device) if context.cuda else (9, 0)
    architecture = f"{major}{minor}{'a' if major == 9 else ''}"
    begin = time.monotonic()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    code = _logged(command, context.out / "build.log", context.left() - 10, SRKERNELS_CUDA_ARCH=architecture)
    took = f"after {time.monotonic() - begin:.0f} s (build.log)"
    context.note(f"build_ext was stopped {took}" if code is None else f"build_ext ended with code {code} {took}")
    _availability(context)
    if code != 0:
        raise RuntimeError("the build failed or was too slow; the rest runs on what is there")


def _logged(command: list[str], log: Path, seconds: float, **environment: str) -> int | None:
    """Exit code of ``command``, its output in ``log``; None if it had to be stopped. The section ends its children."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=machine.ROOT, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
        try:
            return process.wait(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None


_ASK = """
import torch
from srkernels._dispatch import BACKENDS, why_not
for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
    for backend in BACKENDS:
        print(device, backend, why_not(backend, torch.device(device), torch.float32) or "runs", sep="|")
"""


def _availability(context: Context) -> None:
    add = context.table("backends", ["device", "backend", "state"])
    done = subprocess.run(
        [sys.executable, "-c", _ASK], cwd=machine.ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    for line in done.stdout.splitlines():
        add(*line.split("|", 2))
    if done.returncode:
        context.note(f"srkernels does not import: {done.stderr.strip().splitlines()[-1]}")


# What only a GPU shows, then parity on it in as many processes as share it well.
_GATES = {
    "gpu": ["tests/backends/test_gpu.py"],
    "parity": [
        "tests/gates/test_parity.py",
        "tests/gates/test_layout.py",
        "tests/gates/test_gradients.py",
        "-k",
        "cuda",
    ],
}
_PROCESSES = 12


def tests(context: Context) -> None:
    """The tests that use a GPU, as far as they get in the time available."""
    if not context.cuda:
        raise Skip("torch sees no CUDA device; the tests without one are `pytest`")
    if importlib.util.find_spec("pytest") is None:
        raise Skip("pytest is not installed")
    codes, text = [], ""
    for name, gates in _GATES.items():
        command = [sys.executable, "-m", "pytest", *gates, "-v", "--tb=short", "--color=no", "-p", "no:cacheprovider"]
        if importlib.util.find_spec("xdist") is not None:
            command += ["-n", str(_PROCESSES), "--dist", "worksteal"]
        log = context.out / f"tests_{name}.log"
        codes.append(_logged(command, log, context.left() - 3))
        text += log.read_text(errors="replace")
    found = [(name, kind) for kind, name in _RESULT_OF_XDIST.findall(text)] or _RESULT.findall(text)
    counts = {kind: sum(k == kind for _, k in found) for kind in dict.fromkeys(k for _, k in found)}
    add = context.table("tests", ["result", "number"])
    for kind, count in counts.items():
        add(kind, str(count))
    failed = [name for name, kind in found if kind in ("FAILED", "ERROR")]
    for name in failed[:40]:
        context.note(f"failed: `{name}`")
    if None in codes:
        context.note("stopped: the section's time was used up; the counts are of what had run")
    if failed or any(codes):
        summary = text.rstrip().splitlines()[-1:] or ["no output"]
        raise RuntimeError(f"pytest ended with codes {codes}: {summary[0]}")


_UNDER_SANITIZER = "tests/backends/test_gpu.py::test_small_calls"


def sanitizer(context: Context) -> None:
    """Small calls of every op and backend under memcheck and racecheck."""
    if not context.cuda:
        raise Skip("compute-sanitizer needs a GPU, and torch sees no CUDA device")
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        raise Skip("compute-sanitizer was not found")
    add = context.table("compute-sanitizer", ["tool", "errors"])
    wrong = []
    for name in ("memcheck", "racecheck"):
        log = context.out / f"{name}.log"
        command = [tool, "--tool", name, "--error-exitcode", "77", "--kernel-name-exclude", "kns=at::"]
        command += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", _UNDER_SANITIZER]
        code = _logged(command, log, (context.left() - 2) / (2 if name == "memcheck" else 1))
        summary = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*", log.read_text(errors="replace"))
        add(name, summary[-1] if summary else "stopped" if code is None else f"ended with code {code}")
        if code:
            wrong.append(name)
    if wrong:
        raise RuntimeError(f"{', '.join(wrong)} found errors or could not run; see the logs")


def _haar(n: int, c: int, size: int, passes: str) -> tuple[str, BenchCase]:
    shape = (n, c, size, size)
    case = Case("x".join(map(str, shape)), (shape,), {"convention": "dasr"})
    return "haar_highpass", BenchCase(case, passes, differentiable=("x",) if passes != "forward" else ())


def _l1(n: int, c: int, size: int, factor: int, dtype: str) -> tuple[str, BenchCase]:
    image = (n, c, size, size)
    case = Case("x".join(map(str, image)), (image, image, (n, 1, size // factor, size // factor)))
    return "weighted_l1_loss", BenchCase(case, "forward+backward", dtype, False, ("input",))


def _training(spec: OpSpec, case: Case, **targets: float) -> tuple[str, BenchCase]:
    """Forward and backward in bf16 channels_last, every gradient, against what our Triton kernels should reach."""
    wanted = tuple(name for name, shape in zip(spec.operands, case.shapes, strict=True) if shape is not None)
    return spec.name, BenchCase(case, "forward+backward", "bfloat16", True, wanted, gpu_targets=targets)


# Crops and features of the published training runs that the specs' bench cases leave out.
_SHAPES = (
    _training(RESIDUAL_BLOCK, block_case("16x64x192x192", (16, 64, 192, 192), 64), eager=1.5, compile=1.3),
    _training(RESIDUAL_BLOCK, block_case("16x64x32x32", (16, 64, 32, 32), 64), eager=2.5),
    _training(DENSE_BLOCK, dense_case("8x64x128x128", (8, 64, 128, 128), 32), eager=1.5, compile=1.3),
    _haar(16, 3, 128, "forward"),
    _haar(16, 3, 128, "forward+backward"),
    _haar(16, 3, 48, "forward"),
    _haar(16, 3, 48, "forward+backward"),
    _l1(8, 3, 128, 4, "float32"),
    _l1(8, 512, 32, 4, "bfloat16"),
    _l1(8, 64, 512, 8, "bfloat16"),
)


def shapes(context: Context) -> None:
    """Every provider at the shapes above; the bench cases cover the rest."""
    by_name = _specs()
    for name, bench in _SHAPES[1::4] if context.small else _SHAPES:
        _measure(context, by_name[name], tiny(by_name[name]) if context.small else bench)
    _fail_if_any(context)


def choices(context: Context) -> None:
    """What ``srkernels.tuning()`` measures of the calls above and of the bench cases, for the table that ships."""
    from srkernels.tuned import choose, report, store

    by_name = _specs()
    benches = [*_SHAPES, *((spec.name, bench) for spec in by_name.values() for bench in spec.bench)]
    if context.small:
        benches = [(name, tiny(by_name[name])) for name in ("haar_highpass", "conv2d_act")]
    add = context.table("choices", ["op", "case", "type", "passes", "eager us", "chosen us", "chosen", "dropped"])
    found: dict[Any, Any] = {}
    longest = 0.0
    for name, bench in benches:
        if context.left() < 5 + longest:
            context.note("stopped early: the section's time is used up")
            return
        begin = time.monotonic()
        with _kept_apart(), choose.tuning() as tuner:
            report.make(by_name[name], bench, context.device)
        for record in tuner.found.values():
            times = (1e6 * record.seconds[candidate] for candidate in ("reference", record.choice))
            dropped = "; ".join(f"{candidate}: {reason}" for candidate, reason in record.dropped.items())
            add(name, bench.case.id, bench.dtype, bench.passes, *times, record.choice, dropped)
        found |= tuner.found
        longest = max(longest, time.monotonic() - begin)
        if not context.small:
            context.data["choices"] = json.loads(store.written(store.made_on(context.device), found))
            context.save(context.data)


@contextmanager
def _kept_apart() -> Iterator[None]:
    """Inside, no file of choices is read or written: other sections measure what ships."""
    before = os.environ["SRKERNELS_CACHE"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SRKERNELS_CACHE"] = folder
        try:
            yield
        finally:
            os.environ["SRKERNELS_CACHE"] = before


def benches(context: Context) -> None:
    """Every bench case of every op, host cost, and the bandwidth checks."""
    small = context.small
    for spec in _specs().values():
        for bench in spec.bench[:1] and (tiny(spec),) if small else spec.bench:
            _measure(context, spec, bench)
    for spec in _specs().values():
        rows = harness.host_cost(spec, context.device, batches=3 if small else 20, batch=10 if small else 200)
        context.data.setdefault("host", []).extend(rows)
        context.save(context.data)
    shape = (2, 3, 64, 64) if small else (8, 3, 512, 512)
    checks = [harness.reused_buffer(context.device, seconds=0.1 if small else 1.0, shape=shape)]
    context.data["checks"] = checks + harness.bf16_per_byte(context.data.get("cases", []))
    context.save(context.data)
    _fail_if_any(context)


def steps(context: Context) -> None:
    """The training steps of both methods that are measured on this device."""
    try:
        from ..steps import configurations, form
    except ImportError as error:
        raise Skip(f"models needs the extra train: {error}") from error
    if not context.cuda and not onednn_runs(torch.bfloat16):
        raise Skip("steps run in bf16, in which convolutions of this processor take many times as long as in fp32")
    for name, bench in list(configurations().items())[:: 3 if context.small else 1]:
        if context.device.type not in bench.batch:
            continue
        if context.left() < 12:
            context.note(f"{name} left out: the section's time is used up")
            return
        rounds, seconds, count = ((1, 1), 0.0, 1) if context.small else ((5, 40), 4.0, None)
        record = form.measure(name, bench, context.device, seconds=seconds, rounds=rounds, count=count)
        context.data.setdefault("steps", []).append(record)
        context.save(context.data)


def scaling(context: Context) -> None:
    """Curves of the ops, then of the steps, as far as they get in the time that is left."""
    from ..scaling import ops
    from ..scaling.plan import Plan, quick, share, whole

    measured: dict[str, Callable[[torch.device, Plan], list[dict[str, Any]]]]
    measured = {name: partial(ops.measure, spec) for name, spec in _specs().items()}
    try:
        from ..scaling import steps
    except ImportError as error:
        context.note(f"steps left out: models needs the extra train: {error}")
    else:
        measured |= {name: partial(steps.measure, name) for name in steps.STEPS}
    plan = quick() if context.small else whole(context.device)
    for i, (name, measure) in enumerate(measured.items()):
        deadline = share(context.deadline - 5, len(measured) - i)
        try:
            curves = measure(context.device, replace(plan, deadline=deadline))
        except Exception as error:
            context.note(f"{name} FAILED: {type(error).__name__}: {error}"[:400])
            context.data["failed"] = context.data.get("failed", 0) + 1
        else:
            context.data.setdefault("scaling", []).extend(curves)
        context.save(context.data)
    _fail_if_any(context)


def _specs() -> dict[str, OpSpec]:
    from srkernels.ops import specs

    return {spec.name: spec for spec in specs()}


def _measure(context: Context, spec: OpSpec, bench: BenchCase) -> None:
    """Add a case's record; one that fails is noted and leaves the rest alone."""
    if context.left() < 6:
        context.note(f"{harness.case_id(spec, bench)} left out: the section's time is used up")
        return
    rounds, seconds = ((2, 3), 0.05) if context.small else ((10, 40), 0.8)
    try:
        record = harness.measure(
            spec, bench, context.device, seconds=seconds, rounds=rounds, compiled=not context.small
        )
    except Exception as error:
        context.note(f"{harness.case_id(spec, bench)} FAILED: {type(error).__name__}: {error}"[:400])
        context.data["failed"] = context.data.get("failed", 0) + 1
        context.save(context.data)
        return
    context.data.setdefault("cases", []).append(record)
    context.save(context.data)


def _fail_if_any(context: Context) -> None:
    if context.data.get("failed"):
        raise RuntimeError(f"{context.data['failed']} case(s) failed; see the notes")
