"""`pytest bench` runs every case once as a test; `pytest bench --benchmark` times it and prints the tables.

pytest does not abbreviate options, and pytest-benchmark has no bare ``--benchmark``: it is registered here, next to
pytest-benchmark's own. Timing is ours and not pytest-benchmark's, because that measures one function per test while
ratios need their providers interleaved. Every case is also handed to pytest-benchmark where that is installed: five
rounds of the op, with the whole record as extra_info, so that ``--benchmark-json`` and ``--benchmark-compare`` work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from . import machine, record, tables
from .ops import harness

_DEFAULT = "<machine>-<date>.json"


@dataclass
class Results:
    """What a run has measured so far."""

    device: torch.device
    cases: list[dict[str, Any]] = field(default_factory=list)
    host: list[dict[str, Any]] = field(default_factory=list)
    launches: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    scaling: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)


_results = pytest.StashKey[Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("srkernels benchmarks")
    group.addoption("--benchmark", action="store_true", help="time every case (without: run each once as a test)")
    group.addoption(
        "--benchmark-save-results",
        nargs="?",
        const=_DEFAULT,
        metavar="PATH",
        help=f"write the figures as JSON, by default to bench/results/{_DEFAULT}",
    )
    group.addoption(
        "--benchmark-device", choices=("cpu", "cuda"), help="where to run; by default cuda where torch sees a GPU"
    )
    group.addoption(
        "--benchmark-seconds", type=float, default=3.0, metavar="S", help="time to spend on the rounds of each case"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    machine.forget_tuning()
    chosen = config.getoption("benchmark_device")
    config.stash[_results] = Results(torch.device(chosen) if chosen else machine.default_device())
    # Its table would show five rounds of one provider next to ours; only its JSON is wanted.
    config.option.benchmark_quiet = True


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> Results:
    return pytestconfig.stash[_results]


@pytest.fixture(scope="session")
def timed(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("benchmark"))


@pytest.fixture(scope="session")
def seconds(pytestconfig: pytest.Config) -> float:
    return float(pytestconfig.getoption("benchmark_seconds"))


@pytest.fixture
def hand_over(request: pytest.FixtureRequest) -> Callable[[dict[str, Any], Callable[[], Any]], None]:
    """Give a record and its call to pytest-benchmark, where that is installed and enabled."""

    def give(record: dict[str, Any], call: Callable[[], Any]) -> None:
        if request.config.pluginmanager.hasplugin("benchmark"):
            benchmark = request.getfixturevalue("benchmark")
            benchmark.group = record["op"]
            benchmark.extra_info.update(record)
            benchmark.pedantic(call, rounds=5, iterations=1, warmup_rounds=1)

    return give


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash[_results]
    if not any((results.cases, results.host, results.launches, results.steps, results.scaling, results.checks)):
        return
    write = terminalreporter.write_line
    conditions = machine.describe(results.device, " ".join(["pytest", *map(str, config.invocation_params.args)]))
    terminalreporter.section("benchmarks")
    write(machine.footnote(conditions))
    write("Medians; x ours: median over that of srkernels in the same rounds; of copy: share of the measured bandwidth")
    write("of a copy of as many bytes into a reused buffer. *: no CUDA graph, launch gaps included.")
    by_op = tables.by_op(results.cases)
    for op, records in by_op.items():
        write(f"\n{op}, every provider")
        write(tables.text(tables.detail(records)))
        for line in tables.skipped(records):
            write(f"  without {line}")
    for op, records in by_op.items():
        write(f"\n{op}")
        write(tables.text(tables.summary(records)))
    if results.host:
        write("\nhost time of a tiny call")
        write(tables.text(tables.host(results.host)))
    if results.launches:
        write("\nhost time of a tiny call on Triton; without a GPU, but for compiler and driver")
        write(tables.text(tables.launches(results.launches)))
    if results.steps:
        write("\ntraining steps")
        write(tables.text(tables.steps(results.steps)))
    if results.scaling:
        write("\nhow cost grows: slopes of time over pixels, of the larger sizes; nanoseconds of the largest one")
        write(tables.text(tables.scaling(results.scaling)))
        for line in tables.sizes_left_out(results.scaling):
            write(f"  {line}")
    checks = [*results.checks, *harness.bf16_per_byte(results.cases), *harness.over_fp32(results.cases)]
    if checks:
        write("\nacross cases")
        write(tables.text(tables.checks(checks)))
    target = config.getoption("benchmark_save_results")
    if target:
        # A file of its own, or it would take the place of the cases of an earlier run.
        kind = "scaling" if results.scaling and not results.cases else ""
        name = machine.result_name(conditions, kind)
        path = machine.ROOT / "bench" / "results" / name if target == _DEFAULT else Path(target)
        content = {**conditions, "cases": results.cases, "host": results.host, "steps": results.steps}
        content |= {"launches": results.launches, "scaling": results.scaling, "checks": checks}
        record.write_json(path, content)
        write(f"\nfigures written to {path}; render them: {Path(sys.executable).name} -m bench report {path}")
