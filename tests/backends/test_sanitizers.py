"""The native core under sanitizers: its memory and arithmetic, and its races; and that a race would be found."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.process import ROOT, environment

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(sys.platform != "linux", reason="the sanitizer's runtime is preloaded, which needs Linux"),
]
SCRIPTS = Path(__file__).parent / "sanitized"


def said(*command: str, code: int = 0, **env: str) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**env),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert done.returncode == code, f"{' '.join(command)} gave {done.returncode}\n{done.stdout[-12000:]}"
    return done.stdout


def compiler_and_runtimes(name: str) -> tuple[str, str]:
    """The compiler, and what must be preloaded into Python, which is not built with the sanitizer."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    runtimes = [
        said(compiler, f"-print-file-name={library}").strip()
        for library in (
            f"lib{name}.so",
            "libstdc++.so",
        )  # the runtime looks up the function that throws exceptions when it starts
    ]
    if not Path(runtimes[0]).is_absolute():
        pytest.skip(f"the compiler has no {name} runtime")
    return compiler, " ".join(runtimes)


def built(sanitizer: str, folder: Path) -> Path:
    """The package with a core built with a sanitizer, ready to be imported from ``folder / "lib"``."""
    arguments = ("build_ext", "--build-lib", str(folder / "lib"), "--build-temp", str(folder / "objects"))
    said(sys.executable, "setup.py", "-q", *arguments, SRKERNELS_BUILD="cpu", SRKERNELS_SANITIZE=sanitizer)
    package = folder / "lib" / "srkernels"
    for source in (ROOT / "srkernels").rglob("*.py"):
        target = package / source.relative_to(ROOT / "srkernels")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    (core,) = package.glob("_cpu*.so")
    return core


def imports(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{folder / 'lib'}{os.pathsep}{ROOT / 'tests'}", "SRKERNELS_BACKEND": "native"}


def test_memory_and_arithmetic(tmp_path: Path) -> None:
    """Every op on every instruction set here: bounds, lifetimes, overflow, alignment."""
    _, runtimes = compiler_and_runtimes("asan")
    built("address", tmp_path)
    out = said(
        sys.executable,
        str(SCRIPTS / "memory.py"),
        LD_PRELOAD=runtimes,
        # The interpreter and torch leak at exit by design; the preload determines link order.
        ASAN_OPTIONS="detect_leaks=0:verify_asan_link_order=0",
        UBSAN_OPTIONS="print_stacktrace=1",
        OMP_NUM_THREADS="1",
        **imports(tmp_path),
    )
    assert out.strip().endswith("clean")


# What is planted in csrc/cpu/activation.cpp, after which line: a variable that calls share, and one that the threads
# of a call share.
PLANTED = (
    ("void relu_in_place(const ReluArguments& args) {", "static long planted; ++planted;"),
    (
        "const int64_t end = to * kBlockElements < size ? to * kBlockElements : size;",
        "++*const_cast<int64_t*>(&blocks);",
    ),
)


def test_races(tmp_path: Path) -> None:
    """Four threads calling every op at once are clean; and the races planted in one file of the core are reported."""
    compiler, runtimes = compiler_and_runtimes("tsan")
    python = (*without_random_addresses(), sys.executable)
    start = subprocess.run([*python, "-c", ""], env=environment(LD_PRELOAD=runtimes), capture_output=True, text=True)
    if "unexpected memory mapping" in start.stderr:
        pytest.skip("this kernel puts programs where ThreadSanitizer's memory has to be, and may not be told otherwise")
    core = built("thread", tmp_path)
    objects = tmp_path / "objects" / "srkernels._cpu"
    source, spoilt = ROOT / "csrc" / "cpu" / "activation.cpp", tmp_path / "activation.cpp"
    text = source.read_text()
    for place, race in PLANTED:
        assert text.count(place) == 1, f"{source} has changed: plant another race"
        text = text.replace(place, f"{place} {race}")
    spoilt.write_text(text)
    lines = [1 + text[: text.index(race)].count("\n") for _, race in PLANTED]
    flags = re.search("^flags = (.*)$", (objects / "build.ninja").read_text(), re.MULTILINE)
    assert flags is not None
    compiled = (compiler, *flags[1].split(), f"-I{source.parent}", "-DSRK_ISA=baseline", "-c", str(spoilt))
    said(*compiled, "-o", str(tmp_path / "spoilt.o"))

    def link(*units: Path) -> None:
        stand_in = str(SCRIPTS / "openmp.cpp")
        flags = ("-shared", "-fPIC", "-fvisibility=hidden", "-std=c++17", "-O1", "-fsanitize=thread")
        said(compiler, *flags, *map(str, units), stand_in, "-o", str(core))

    def run(code: int, *ops: str) -> str:
        out = said(
            *python,
            str(SCRIPTS / "threads.py"),
            *ops,
            code=code,
            LD_PRELOAD=runtimes,
            TSAN_OPTIONS=f"suppressions={SCRIPTS / 'suppressions.txt'}",
            OMP_NUM_THREADS="1",
            GOMP_SPINCOUNT="0",  # more threads wait here than there are cores
            **imports(tmp_path),
        )
        assert out.strip().endswith("clean") or code
        return out

    units = sorted(objects.glob("*.o"))
    link(*(tmp_path / "spoilt.o" if unit.name == "activation.baseline.o" else unit for unit in units))
    reported = run(66, "conv2d_act")
    for line in lines:
        assert f"data race {spoilt}:{line}" in reported, reported[-12000:]
    link(*units)
    assert "ThreadSanitizer" not in run(0)


def without_random_addresses() -> tuple[str, ...]:
    """Command prefix that keeps the runtime's addresses free, where that is allowed."""
    command = ("setarch", platform.machine(), "-R")
    if shutil.which(command[0]) and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
        return command
    return ()
