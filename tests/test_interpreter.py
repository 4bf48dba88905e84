"""The Triton kernels on CPU tensors, in Triton's interpreter.

The interpreter is chosen when triton is first imported and rules out compiling in the same process, so the gates run
in a process of their own, on fewer cases: it takes milliseconds per program. The process starts with the session
(`conftest.py`) and runs beside the other tests.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_gates_in_the_interpreter(interpreter) -> None:
    code, output = interpreter
    assert code == 0, output[-8000:]
    assert " passed" in output
    assert "triton: " not in output, "the backend that was to be tested was skipped"
