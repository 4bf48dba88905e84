"""Builds the native core with ninja: C++ for CPU where a compiler is, CUDA C++ where nvcc is.

Neither absence fails the install: what could not be built is recorded, with the reason, in _build_info.json, and the
library runs on its other backends. No torch header is used, so an isolated build needs no torch.

SRKERNELS_BUILD=auto (default) | none | cpu | cuda, a comma-separated list that is then required to succeed.
SRKERNELS_CUDA_ARCH=90a, a comma-separated list, builds CUDA C++ for these GPUs alone.
SRKERNELS_SANITIZE=address (or 1) builds the CPU core under -fsanitize=address,undefined, thread under
-fsanitize=thread; instruction sets that this processor lacks are compiled without.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"

X86_LEVELS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
}
AMX = ["-mamx-tile", "-mamx-bf16", "-mavx512bf16"]
SANITIZERS = {"1": "address,undefined", "address": "address,undefined", "thread": "thread"}
# GCC's own half-precision intrinsics leave an operand undefined on purpose and warn about it.
WARNINGS = ["-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
# sm_90a and sm_100 are not forward compatible; the PTX of the last serves what comes after.
CUDA_ARCHITECTURES = ["80", "90a", "100"]


class Unavailable(Exception):
    """This extension cannot be built here; the text is the reason shown to the user."""


def includes() -> list[str]:
    try:
        import pybind11
    except ImportError:
        raise Unavailable("pybind11 was not there at build time") from None
    paths = [str(CSRC), pybind11.get_include(), sysconfig.get_paths()["include"]]
    if not (Path(paths[-1]) / "Python.h").exists():
        raise Unavailable("the Python headers were not there at build time")
    return [f"-I{p}" for p in paths]


def understands(compiler: str, flags: list[str]) -> bool:
    """Whether the compiler knows these flags."""
    command = [*compiler.split(), *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def runs_here(flags: list[str]) -> bool:
    """Whether this processor has the instruction sets among these flags; True where it does not say."""
    try:
        features = set(Path("/proc/cpuinfo").read_text().replace("_", "").split())
    except OSError:
        return True
    return all(flag[2:].replace("-", "") in features for flag in flags if flag.startswith("-m"))


def object_name(folder: Path, source: Path) -> str:
    """Two ops may have files of one name: ``haar/analysis.cpp`` of the folder gives ``haar_analysis``."""
    return "_".join(source.relative_to(folder).with_suffix("").parts)


def cpu_rules(objects: Path, output: Path) -> list[str]:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler or not shutil.which(compiler.split()[0]):
        raise Unavailable("no C++ compiler was there at build time")
    flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp", *WARNINGS, *includes()]
    link = ["-shared", "-fopenmp"]
    wanted = os.environ.get("SRKERNELS_SANITIZE", "0")
    sanitized = wanted not in ("", "0")
    if sanitized:
        if wanted not in SANITIZERS:
            sys.exit(f"SRKERNELS_SANITIZE must be address or thread, got {wanted!r}")
        sanitize = f"-fsanitize={SANITIZERS[wanted]}"
        flags += ["-O1", "-g1", sanitize, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
        link.append(sanitize)
    levels = {"baseline": [], **(X86_LEVELS if platform.machine().lower() in ("x86_64", "amd64") else {})}
    units = [(CSRC / "bind" / "cpu.cpp", "bind_cpu.o", [])]
    for source in sorted({*(CSRC / "cpu").rglob("*.cpp")} - {*(CSRC / "cpu" / "amx").glob("*.cpp")}):
        name = object_name(CSRC / "cpu", source)
        units += [(source, f"{name}.{isa}.o", [f"-DSRK_ISA={isa}", *extra]) for isa, extra in levels.items()]
    # Without these flags the files compile to "not available".
    amx = [*X86_LEVELS["avx512"], *AMX] if "avx512" in levels and understands(compiler, AMX) else []
    for source in sorted((CSRC / "cpu" / "amx").glob("*.cpp")):
        units.append((source, f"amx_{source.stem}.o", amx))
    if sanitized:
        plain = ["-O0", "-fno-sanitize=all"]
        units = [(source, name, extra if runs_here(extra) else [*extra, *plain]) for source, name, extra in units]
    return compile_and_link(compiler, "-MMD -MF $out.d", flags, link, units, objects, output)


def cuda_targets() -> list[str]:
    wanted = os.environ.get("SRKERNELS_CUDA_ARCH", "")
    architectures = wanted.replace(" ", "").split(",") if wanted else CUDA_ARCHITECTURES
    if not all(re.fullmatch(r"[0-9]{2,3}[af]?", one) for one in architectures):
        sys.exit(f"SRKERNELS_CUDA_ARCH must be a list like 80,90a, got {wanted!r}")
    made = [(one, f"sm_{one}") for one in architectures]
    if not wanted:
        made.append((architectures[-1], f"compute_{architectures[-1]}"))
    return [f"-gencode=arch=compute_{one},code={code}" for one, code in made]


def cuda_rules(objects: Path, output: Path) -> list[str]:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else shutil.which("nvcc")
    if not nvcc:
        raise Unavailable("no nvcc was there at build time")
    flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", *cuda_targets(), *includes()]
    link = ["-shared", "-cudart=static"]
    units = [(CSRC / "bind" / "cuda.cpp", "bind_cuda.o", [])]
    for source in sorted((CSRC / "cuda").rglob("*.cu")):
        units.append((source, f"{object_name(CSRC / 'cuda', source)}.cuda.o", []))
    return compile_and_link(nvcc, "-MMD -MF $out.d", flags, link, units, objects, output)


def compile_and_link(
    compiler: str,
    dependencies: str,
    flags: list[str],
    link: list[str],
    units: list[tuple[Path, str, list[str]]],
    objects: Path,
    output: Path,
) -> list[str]:
    lines = [
        f"flags = {' '.join(flags)}",
        "rule compile",
        f"  command = {compiler} {dependencies} $flags $extra -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} $in -o $out {' '.join(link)}",
    ]
    built = []
    for source, name, extra in units:
        target = objects / name
        lines += [f"build {target}: compile {source}", f"  extra = {' '.join(extra)}"]
        built.append(str(target))
    return [*lines, f"build {output}: link {' '.join(built)}", ""]


RULES = {"srkernels._cpu": cpu_rules, "srkernels._cuda": cuda_rules}


class NinjaBuild(build_ext):
    def run(self) -> None:
        wanted = os.environ.get("SRKERNELS_BUILD", "auto")
        required = [] if wanted in ("auto", "none") else [f"srkernels._{name}" for name in wanted.split(",")]
        unknown = [name for name in required if name not in RULES]
        if unknown:
            sys.exit(f"SRKERNELS_BUILD must be auto, none, cpu or cuda, got {wanted!r}")
        info = {}
        for extension in self.extensions:
            name = extension.name
            try:
                if wanted == "none" or (required and name not in required):
                    raise Unavailable(f"left out by SRKERNELS_BUILD={wanted}")
                self.build_one(name)
                info[name.rpartition(".")[2]] = {"built": True}
            except Unavailable as reason:
                if name in required:
                    sys.exit(f"{name}: {reason}")
                self.warn(f"{name} is not built: {reason}")
                info[name.rpartition(".")[2]] = {"built": False, "why_not": str(reason)}
        package = ROOT / "srkernels" if self.inplace else Path(self.build_lib) / "srkernels"
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")

    def build_one(self, name: str) -> None:
        output = Path(self.get_ext_fullpath(name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        objects = Path(self.build_temp).resolve() / name
        objects.mkdir(parents=True, exist_ok=True)
        (objects / "build.ninja").write_text("\n".join(RULES[name](objects, output)))
        try:
            import ninja

            command = [str(Path(ninja.BIN_DIR) / "ninja")]
        except ImportError:
            command = ["ninja"] if shutil.which("ninja") else []
        if not command:
            raise Unavailable("ninja was not there at build time")
        done = subprocess.run(
            [*command, "-C", str(objects)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print(done.stdout[-20000:], flush=True)
        if done.returncode:
            first = next((line for line in done.stdout.splitlines() if "error" in line), "see the build log")
            raise Unavailable(f"the compiler failed: {first[:300]}")

    def get_outputs(self) -> list[str]:
        return [p for p in super().get_outputs() if Path(p).exists()]

    def copy_extensions_to_source(self) -> None:
        """The in-place build writes to the source tree at once."""


setup(ext_modules=[Extension(name, sources=[]) for name in RULES], cmdclass={"build_ext": NinjaBuild})
