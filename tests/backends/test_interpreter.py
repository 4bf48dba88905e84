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
# Blocks run the kernels of their convolutions, and take as long as everything else together: one of them.
USUAL = "fp32 and sliced and not dense and not scaled"
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


@pytest.mark.thorough
@pytest.mark.skipif(_triton.why_no_interpreter() is not None, reason=str(_triton.why_no_interpreter()))
def test_what_follows_nothing_and_what_autocast_surrounds() -> None:
    """Blocks around PyTorch's convolution whose first epilogue is empty; backward passes inside autocast."""
    python(_AROUND, env=environment(TRITON_INTERPRET="1"), timeout=300)


_CONFIGURATIONS = """
import torch, srkernels
from srkernels.ops.conv.triton import launch
from srkernels.tuned import clock, measure

FASTEST = "triton[gather, weight pixels=64]"
seen = []
for name in ("convolve", "_gradient_of_rows"):
    def noted(*arguments, run=getattr(launch, name), **options):
        seen.append(options["how"] if "how" in options else arguments[5])
        return run(*arguments, **options)
    setattr(launch, name, noted)
convolve = launch.convolve


def too_large(*arguments, how=None, **options):
    if how is not None and how.kernel == "shift":
        raise torch.OutOfMemoryError("no such shared memory")
    return convolve(*arguments, how=how, **options)


launch.convolve = too_large
measure._TRIED = 2
clock.medians = lambda calls, device: {
    name: {"triton": 0.9, "triton[gather]": 0.5, "triton[shift]": 0.1, FASTEST: 0.4}.get(name, 1.0) for name in calls
}
draw = torch.Generator().manual_seed(0)
x, g, weight = (torch.rand(s, generator=draw) - 0.5 for s in ((1, 3, 2, 3), (1, 2, 2, 3), (2, 3, 3, 3)))
leaves = [x.contiguous(memory_format=torch.channels_last).requires_grad_(), weight.requires_grad_()]


def gradients():
    y = srkernels.conv2d_act(*leaves)
    return [y, *torch.autograd.grad(y, leaves, g)]


expected = gradients()
with srkernels.tuning() as tuner:
    srkernels.conv2d_act(*leaves)
(record,) = tuner.found.values()
assert record.choice == FASTEST, record
assert record.dropped == {"triton[shift]": "OutOfMemoryError: no such shared memory"}, record
seen.clear()
for a, b in zip(gradients(), expected):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
forward, data, shares = seen
assert forward.kernel == data.kernel == "gather" and shares.pixels == 64, seen
assert f"{FASTEST} (measured on" in srkernels.explain("conv2d_act", *leaves)
"""


@pytest.mark.thorough
@pytest.mark.skipif(_triton.why_no_interpreter() is not None, reason=str(_triton.why_no_interpreter()))
def test_tuning_chooses_a_configuration_that_calls_run_in(tmp_path) -> None:
    """Measured, dropped where it does not fit, and followed forward and backward by a call of that class."""
    python(_CONFIGURATIONS, env=environment(TRITON_INTERPRET="1", SRKERNELS_CACHE=str(tmp_path)), timeout=300)
