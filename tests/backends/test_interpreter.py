"""The gates on Triton's kernels, in its interpreter.

It is selected when triton is first imported and rules out compiling in the same process, so it gets its own processes,
with fewer cases: it takes milliseconds per program.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.process import ROOT, environment

from srkernels import _triton

VALUES = "parity.py::test_values_and_gradients"
USUAL = "fp32-sliced or bf16-channels_last"
REST = [
    "parity.py::test_expanded_cotangents",
    "parity.py::test_nan_and_inf_propagate",
    "parity.py::test_operands_are_left_alone",
    "gradients.py::test_gradcheck",
    "algebra.py::test_invariants",
    "memory.py::test_every_output_element_is_written",
    "registration.py::test_opcheck",
]
NO_SPEC = ["autocast.py", "large.py"]


@pytest.mark.skipif(_triton.why_no_interpreter() is not None, reason=str(_triton.why_no_interpreter()))
@pytest.mark.parametrize(
    ("backend", "gates", "chosen"),
    [
        pytest.param("triton", [VALUES], USUAL, id="triton-values", marks=pytest.mark.long),
        pytest.param("pointwise", [VALUES], USUAL, id="pointwise-values", marks=pytest.mark.long),
        pytest.param("triton", [VALUES], f"not ({USUAL})", id="triton-more-values", marks=pytest.mark.thorough),
        pytest.param("triton", [*REST, *NO_SPEC], "", id="triton-rest", marks=pytest.mark.thorough),
        pytest.param("pointwise", REST, "", id="pointwise-rest", marks=pytest.mark.thorough),
    ],
)
def test_gates_in_the_interpreter(backend: str, gates: list[str], chosen: str) -> None:
    options = ["-q", "-x", "-p", "no:cacheprovider", "--backend", backend, "--reduced", "-k", chosen]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"tests/gates/test_{gate}" for gate in gates)],
        env=environment(TRITON_INTERPRET="1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert f"{backend}: " not in done.stdout, "the backend that was to be tested was skipped"
