"""The Triton kernels on CPU tensors, in Triton's interpreter.

The interpreter is chosen when triton is first imported and rules out compiling in the same process, so the gates run
in a process of their own, on fewer cases: it takes milliseconds per program.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
from helpers.process import ROOT, environment

GATES = (
    "test_parity.py",
    "test_gradients.py::test_gradcheck",
    "test_algebra.py::test_invariants",
    "test_memory.py::test_every_output_element_is_written",
    "test_registration.py::test_opcheck",
    "test_autocast.py",
    "test_large.py",
)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_gates_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--backend", "triton", "--reduced"]
    done = subprocess.run(
        [*command, *(f"tests/{gate}" for gate in GATES)],
        env=environment(TRITON_INTERPRET="1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "triton: " not in done.stdout, "the backend that was to be tested was skipped"
