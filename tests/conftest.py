"""Parametrises every gate over ``srkernels.ops.specs()`` x where an op can run x cases x dtypes x layouts.

A gate names what it wants in its arguments: ``spec``, ``case`` (all of the spec's cases) or ``small`` (its gradcheck
cases), ``target`` (backend and device), ``dtype``, ``layout``. A backend that cannot run leaves one skipped test per
gate, with its reason. A test without ``target`` is no gate and says itself what it runs on.

Triton's interpreter runs the gates in a process beside this one, and so do long tests that keep one core busy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import pytest
import torch
from helpers.calls import Target
from helpers.operands import DTYPES, LAYOUTS
from helpers.process import ROOT, environment

from srkernels import _native, _triton
from srkernels._dispatch import BACKENDS, why_not
from srkernels._spec import Case
from srkernels.ops import specs

# What Triton's interpreter, which takes milliseconds per program, can bear.
REDUCED_DTYPES = ("fp32", "bf16")
REDUCED_LAYOUTS = ("contiguous", "channels_last", "sliced")
REDUCED_CASES = 6
REDUCED_ELEMENTS = 250


# What runs in Triton's interpreter, by test_beside.py.
INTERPRETED = (
    "test_parity.py",
    "test_gradients.py::test_gradcheck",
    "test_algebra.py::test_invariants",
    "test_memory.py::test_every_output_element_is_written",
    "test_registration.py::test_opcheck",
    "test_autocast.py",
    "test_large.py",
)
# Processes beside this one, in this order on the other core: fixture that waits for one -> options and environment.
BESIDE: dict[str, tuple[list[str], dict[str, str]]] = {
    "marked": (["-m", "beside", "tests"], {}),
    "interpreter": (
        ["--backend", "triton", "--reduced", *(f"tests/{gate}" for gate in INTERPRETED)],
        {"TRITON_INTERPRET": "1"},
    ),
}
Outcome = tuple[int, str]


class _Beside:
    """Runs the processes of those fixtures that a session uses, one after the other."""

    def __init__(self, names: list[str]) -> None:
        self._running: subprocess.Popen[str] | None = None
        self._executor = ThreadPoolExecutor(1)
        self._outcomes = {name: self._executor.submit(self._run, *BESIDE[name]) for name in names}

    def _run(self, options: list[str], env: dict[str, str]) -> Outcome:
        self._running = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options],
            env=environment(**env),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # its own processes end with it
        )
        output, _ = self._running.communicate()
        return self._running.returncode, output

    def outcome(self, name: str) -> Outcome:
        return self._outcomes[name].result(timeout=1800)

    def stop(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._running is not None and self._running.poll() is None:
            os.killpg(self._running.pid, signal.SIGKILL)


_beside = pytest.StashKey[_Beside]()


def _waited_for(items: list[pytest.Item]) -> list[str]:
    used = {name for item in items for name in getattr(item, "fixturenames", ())}
    return [name for name in BESIDE if name in used and (name != "interpreter" or _triton.why_no_interpreter() is None)]


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--isa"):
        _native.extension("cpu").set_isa(config.getoption("--isa"))
    config.addinivalue_line("markers", "beside: takes long on one core; a whole run has it in a process beside it")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "marked" in _waited_for(items):
        moved = [item for item in items if item.get_closest_marker("beside")]
        config.hook.pytest_deselected(items=moved)
        items[:] = [item for item in items if not item.get_closest_marker("beside")]
    items.sort(key=lambda item: bool(_waited_for([item])))  # what waits comes last


def pytest_collection_finish(session: pytest.Session) -> None:
    names = _waited_for(session.items)
    if names and not session.config.option.collectonly:
        session.config.stash[_beside] = _Beside(names)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _beside in session.config.stash:
        session.config.stash[_beside].stop()


@pytest.fixture
def marked(pytestconfig: pytest.Config) -> Outcome:
    """Exit code and output of the tests marked ``beside``, once they are through."""
    return pytestconfig.stash[_beside].outcome("marked")


@pytest.fixture
def interpreter(pytestconfig: pytest.Config) -> Outcome:
    """Exit code and output of the interpreter's gates, once they are through."""
    return pytestconfig.stash[_beside].outcome("interpreter")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("srkernels")
    group.addoption("--backend", choices=BACKENDS, help="run the gates on this backend alone")
    group.addoption("--device", choices=("cpu", "cuda"), help="run the gates on this device alone")
    group.addoption("--cases", type=int, help="how many random cases test_differential.py and test_malformed.py draw")
    group.addoption("--seed", type=int, help="what they are drawn from")
    group.addoption("--isa", help="hold the C++ core to this instruction set")
    group.addoption("--threads", type=int, default=1, help="threads of the gates, which run tiny cases")
    group.addoption("--every-target", action="store_true", help="compile Triton kernels for every GPU in every dtype")
    group.addoption("--reduced", action="store_true", help="two dtypes, three layouts, a few cases per op")


def _targets(config: pytest.Config) -> list[tuple[Target, str | None]]:
    only = config.getoption("--backend")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if config.getoption("--device"):
        devices = [config.getoption("--device")]
    backends = [only] if only else list(BACKENDS)
    return [(Target(b, d), why_not(b, torch.device(d), torch.float32)) for d in devices for b in backends]


def _reduced(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """At most REDUCED_CASES of the small ones, evenly spread, first and last among them."""
    small = [c for c in cases if prod(c.shapes[0]) <= REDUCED_ELEMENTS]
    count = min(REDUCED_CASES, len(small))
    return tuple(small[round(i * (len(small) - 1) / max(1, count - 1))] for i in range(count))


def _spared(row: dict[str, Any]) -> bool:
    """Whether a reduced run leaves this out: of a composed op it takes each dtype in one layout."""
    if not {"spec", "dtype", "layout"} <= row.keys() or not row["spec"].composed:
        return False
    return (row["dtype"], row["layout"]) not in ((torch.float32, "sliced"), (torch.bfloat16, "channels_last"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" not in metafunc.fixturenames:
        return
    axes = [name for name in ("spec", "case", "small", "dtype", "layout", "target") if name in metafunc.fixturenames]
    reduced = metafunc.config.getoption("--reduced")
    which = {"case": "cases", "small": "small"}
    rows: list[tuple[dict[str, Any], list[str]]] = [({}, [])]
    for axis in axes:
        extended = []
        for row, ids in rows:
            if axis == "spec":
                choices = [(s, s.name) for s in specs()]
            elif axis in which:
                cases = getattr(row["spec"], which[axis])
                choices = [(c, c.id) for c in (_reduced(cases) if reduced else cases)]
            elif axis == "dtype":
                choices = [(DTYPES[d], d) for d in (REDUCED_DTYPES if reduced else DTYPES)]
            elif axis == "layout":
                choices = [(x, x) for x in (REDUCED_LAYOUTS if reduced else LAYOUTS)]
            else:
                refuses = row["spec"].refuses if "spec" in row else None
                choices = [
                    (t, str(t))
                    for t, reason in _targets(metafunc.config)
                    if reason is None
                    and why_not(t.backend, torch.device(t.device), row.get("dtype", torch.float32), refuses) is None
                ]
            extended += [({**row, axis: value}, [*ids, id]) for value, id in choices]
        rows = extended
    if reduced:
        rows = [(row, ids) for row, ids in rows if not _spared(row)]
    params = [pytest.param(*row.values(), id="-".join(ids)) for row, ids in rows]
    params += [
        pytest.param(*[None] * len(axes), id=str(target), marks=pytest.mark.skip(reason=f"{target}: {reason}"))
        for target, reason in _targets(metafunc.config)
        if reason is not None
    ]
    metafunc.parametrize(axes, params)


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Gates run their tiny cases on one thread: faster on a busy machine, and nothing that small is split anyway."""
    if "target" not in request.fixturenames:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    yield
    torch.set_num_threads(before)
