"""Machine code without a GPU: compile a spec's Triton kernels for named targets and read the result.

``python tests/backends/machine_code.py`` reads lines of op, case and target, compiles these kernels and prints one JSON
object for each. It is a separate program because kernels must not have been decorated under ``TRITON_INTERPRET``, which
other tests in the same process may set.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srkernels._spec import AotCase
from srkernels.ops import specs


@dataclass(frozen=True)
class Target:
    """What Triton compiles for, and the bytes of shared memory that a program can have there."""

    backend: str
    architecture: int | str
    lanes: int
    shared: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 166_912),  # A100
    "sm_86": Target("cuda", 86, 32, 101_376),  # RTX 30, A6000
    "sm_89": Target("cuda", 89, 32, 101_376),  # RTX 40, L40
    "sm_90": Target("cuda", 90, 32, 232_448),  # H100, H200
    "sm_100": Target("cuda", 100, 32, 232_448),  # B200
    "sm_120": Target("cuda", 120, 32, 101_376),  # RTX 50
    "gfx942": Target("hip", "gfx942", 64, 65_536),  # MI300
}


@dataclass(frozen=True)
class Figures:
    """What a kernel's machine code tells about it.

    Attributes:
        registers: vector registers per thread.
        spills: accesses to memory that hold registers (STL, LDL; scratch on AMD).
        shared: bytes of shared memory.
        wide_loads, wide_stores: 128-bit accesses to global memory.
        hgmma, waits: warpgroup matrix instructions, and waits for them (Hopper).
        pipelined: loads that go to shared memory past the registers (LDGSTS, TMA).
        in_flight: groups of these that a loop leaves in flight when it waits for one; 0: products wait for every load.
    """

    registers: int
    spills: int
    shared: int
    wide_loads: int
    wide_stores: int
    hgmma: int = 0
    waits: int = 0
    pipelined: int = 0
    in_flight: int = 0


CONSUMER = ("sm_86", "sm_89", "sm_120")  # most networks are trained on these


def _stands_for_others(case: AotCase, target: str) -> bool:
    """bf16 stands for fp16, on consumer cards for all dtypes, and sm_86 for sm_89: every figure was the same there."""
    if case.variant or "fp16" in case.id:
        return False
    return target not in CONSUMER or ("bf16" in case.id and target != "sm_89")


def everything(every_case: bool = False) -> Iterator[tuple[str, AotCase, str]]:
    """(op, case, target) of everything compiled ahead of time, or of those that stand for the others."""
    for spec in specs():
        for case in spec.aot():
            for target in case.targets or TARGETS:
                if every_case or _stands_for_others(case, target):
                    yield spec.name, case, target


def compile_case(case: AotCase, target: str) -> Any:
    """``case`` compiled by Triton for ``target``; no device is needed."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(case.module), case.kernel)
    names = kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    to = TARGETS[target]
    return triton.compile(
        ASTSource(kernel, signature, dict(case.constexprs), attributes),
        target=GPUTarget(to.backend, to.architecture, to.lanes),
        options={"num_warps": case.num_warps * 32 // to.lanes, "num_stages": case.num_stages},
    )


def figures(compiled: Any) -> Figures:
    """Read a compiled kernel: SASS from the tools in triton's wheel, or the text that LLVM assembles for AMD."""
    shared = compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        # Scalar registers "spill" into lanes of vector registers, not into memory.
        spills = sum(_number(text, rf"\.{key}:\s+(\d+)") for key in ("vgpr_spill_count", "private_segment_fixed_size"))
        loads = re.findall(r"\b(?:global|buffer)_load_(?:dwordx4|b128)\b", text)
        stores = re.findall(r"\b(?:global|buffer)_store_(?:dwordx4|b128)\b", text)
        return Figures(_number(text, r"\.vgpr_count:\s+(\d+)"), spills, shared, len(loads), len(stores))
    text = _disassembled(compiled.asm["cubin"])
    operations = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text, re.MULTILINE)
    assert operations, "cuobjdump printed no instructions"

    def count(*prefixes: str, suffix: str = "") -> int:
        return sum(op.split(".")[0] in prefixes and suffix in op for op in operations)

    spills = count("STL", "LDL") + _number(text, r"\bSTACK:(\d+)")
    return Figures(
        _number(text, r"\bREG:(\d+)"),
        spills,
        shared,
        count("LDG", "LDGSTS", suffix=".128"),
        count("STG", suffix=".128"),
        count("HGMMA"),
        count("WARPGROUP", suffix="DEPBAR"),
        count("LDGSTS", "UTMALDG"),
        max(map(int, re.findall(r"async_wait\b.*\bnum = (\d+)", compiled.asm["ttgir"])), default=0),
    )


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in the machine code's report"
    return int(found.group(1))


def _disassembled(cubin: bytes) -> str:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(tools / "cuobjdump"), "-sass", "-res-usage", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read_all(wanted: Collection[tuple[str, str, str]]) -> dict[tuple[str, str, str], Figures | str]:
    """(op, case's id, target) -> figures, or the compiler's error; in a process without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # What Triton 3.9 does by default, warning that it may stop doing so.
    environment.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    root = Path(__file__).resolve().parents[2]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), environment.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, __file__],
        input="\n".join(map(" ".join, wanted)),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[tuple[str, str, str], Figures | str] = {}
    for line in done.stdout.splitlines():
        row = json.loads(line)
        found[row["op"], row["case"], row["target"]] = row["error"] or Figures(**row["figures"])
    return found


def _row(op: str, case: str, target: str, found: Figures | str) -> str:
    figures, error = (None, found) if isinstance(found, str) else (asdict(found), None)
    return json.dumps({"op": op, "case": case, "target": target, "figures": figures, "error": error})


def _main() -> None:
    # The disassembler is a separate process: let it run alongside the compiler.
    with ThreadPoolExecutor(max_workers=2) as pool:
        reading = []
        wanted = {tuple(line.split()) for line in sys.stdin}
        for op, case, target in everything(every_case=True):
            if (op, case.id, target) not in wanted:
                continue
            try:
                compiled = compile_case(case, target)
            except Exception as error:
                print(_row(op, case.id, target, f"{type(error).__name__}: {error}"))
            else:
                reading.append((op, case.id, target, pool.submit(figures, compiled)))
        for op, id, target, future in reading:
            print(_row(op, id, target, future.result()))


if __name__ == "__main__":
    _main()
