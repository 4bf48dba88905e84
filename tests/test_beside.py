"""What runs in processes beside the other tests (`conftest.py` starts them with the session).

Triton's interpreter is chosen when triton is first imported and rules out compiling in the same process, so its gates
have a process of their own, on fewer cases: it takes milliseconds per program. Tests marked ``beside`` take long and
use one core; named on the command line they run as any other.
"""

from __future__ import annotations

import pytest

from srkernels import _triton


def test_those_marked(marked) -> None:
    code, output = marked
    assert code == 0, output[-8000:]
    assert " passed" in output


@pytest.mark.skipif(_triton.why_no_interpreter() is not None, reason=str(_triton.why_no_interpreter()))
def test_gates_in_the_interpreter(interpreter) -> None:
    code, output = interpreter
    assert code == 0, output[-8000:]
    assert " passed" in output
    assert "triton: " not in output, "the backend that was to be tested was skipped"
