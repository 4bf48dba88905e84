"""Every Triton kernel, compiled for every target without a GPU: nothing spills, aligned accesses are 128 bits wide."""

from __future__ import annotations

import importlib.util

import pytest
from machine_code import TARGETS, Figures, everything, read_all

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: no kernels to compile", allow_module_level=True)

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("machine code")]  # compiled once


def _first_of_each_kernel() -> set[tuple[str, str, str]]:
    """What a whole run compiles: one case of each kernel, in bf16, for the card whose path is its own."""
    found: dict[tuple[str, str], tuple[str, str, str]] = {}
    for op, case, machine in everything():
        if machine == "sm_90" and "bf16" in case.id:
            found.setdefault((case.module, case.kernel), (op, case.id, machine))
    return set(found.values())


# ptxas keeps to 80 registers here and reads one value back in every iteration of the loop.
_SPILLS = {("weighted_l1_loss", "mean-nchw-fp16", "sm_120"): 10}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel" in metafunc.fixturenames:
        wanted = list(everything(metafunc.config.getoption("--every-target")))
        usual = _first_of_each_kernel()
        rows = [
            pytest.param(
                op, kernel, machine, id=f"{op}-{kernel.id}-{machine}",
                marks=[pytest.mark.thorough] * ((op, kernel.id, machine) not in usual),
            )
            for op, kernel, machine in wanted
        ]  # fmt: skip
        metafunc.parametrize(("op", "kernel", "machine"), rows)


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> dict[tuple[str, str, str], Figures | str]:
    tests = [item.callspec.params for item in request.session.items if "machine" in getattr(item, "fixturenames", ())]
    return read_all([(params["op"], params["kernel"].id, params["machine"]) for params in tests])


def test_machine_code(op, kernel, machine, compiled):
    found = compiled[op, kernel.id, machine]
    assert isinstance(found, Figures), found
    assert found.spills <= _SPILLS.get((op, kernel.id, machine), 0), f"registers spill: {found}"
    assert found.shared <= TARGETS[machine].shared, f"no program fits: {found}"
    assert not found.pipelined or found.in_flight, f"products wait for every load: {found}"
    assert found.wide_loads >= kernel.wide_loads, f"128-bit loads: {found.wide_loads}, expected {kernel.wide_loads}"
    assert found.wide_stores >= kernel.wide_stores, (
        f"128-bit stores: {found.wide_stores}, expected {kernel.wide_stores}"
    )
    if machine == "sm_90" and kernel.hgmma:
        assert found.hgmma >= kernel.hgmma, f"HGMMA: {found.hgmma}, expected {kernel.hgmma}"
        assert kernel.hgmma == 1 or 2 * found.waits <= found.hgmma, f"waits {found.waits} for {found.hgmma} HGMMA"
        assert kernel.hgmma == 1 or found.pipelined, "no load is pipelined"


def test_every_kernel_is_compiled():
    """A kernel that no case names would pass unchecked."""
    named = {(case.module, case.kernel) for _, case, _ in everything()}
    for module in {module for module, _ in named}:
        kernels = vars(importlib.import_module(module))
        launched = {k for k, v in kernels.items() if hasattr(v, "arg_names") and not k.startswith("_")}
        assert launched == {kernel for m, kernel in named if m == module}
