"""The gates on Triton's kernels, in its interpreter.

It is selected when triton is first imported and rules out compiling in the same process, so it gets its own processes,
with fewer cases: it takes milliseconds per program.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.process import ROOT, environment, python

from srkernels import _triton

VALUES = "parity.py::test_values_and_gradients"
# Blocks run the kernels of their convolutions; in bf16 they take as long as everything else together.
USUAL = "fp32 and sliced or bf16 and channels_last and not block"
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


_AROUND = """
import torch, srkernels
draw = torch.Generator().manual_seed(0)
for layout in (torch.channels_last, torch.contiguous_format):
    for activation in ("none", "relu"):
        for bias in (None, torch.rand(8, generator=draw)):
            for save in ("activations", "recompute"):
                for inside in (False, True):
                    found = []
                    x, *weights, g = (torch.rand(s, generator=torch.Generator().manual_seed(i)) - 0.5
                                      for i, s in enumerate(((1, 8, 6, 5), (8, 8, 3, 3), (8, 8, 3, 3), (1, 8, 6, 5))))
                    for backend in ("reference", "pointwise"):
                        leaves = [t.clone(memory_format=layout).requires_grad_() for t in (x, *weights)]
                        with srkernels.use_backend(backend):
                            y = srkernels.residual_block(
                                leaves[0], leaves[1], bias, leaves[2], bias, activation=activation, save=save)
                        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                            found.append([y, *torch.autograd.grad(y, leaves, g)])
                    for a, b in zip(*found):
                        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.skipif(_triton.why_no_interpreter() is not None, reason=str(_triton.why_no_interpreter()))
def test_what_follows_nothing_and_what_autocast_surrounds() -> None:
    """Blocks around PyTorch's convolution whose first epilogue is empty; backward passes inside autocast."""
    python(_AROUND, env=environment(TRITON_INTERPRET="1"), timeout=300)
