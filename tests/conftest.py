"""Parametrises every gate over ``srkernels.ops.specs()`` x where an op can run x cases x dtypes x layouts.

A gate names what it wants in its arguments: ``spec``, ``case`` (all of the spec's cases) or ``small`` (its gradcheck
cases), ``target`` (backend and device), ``dtype``, ``layouts`` (the dense ones, then the others). A backend that
cannot run leaves one skipped test per gate, with its reason. A test without ``target`` is not a gate and says itself
what it runs on.

A whole run (``pytest``) uses all cores (pytest-xdist), long tests first; those marked ``thorough`` only with
``--thorough``; CI takes a quarter of them by turns. A run that names files or tests takes whatever it names.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.calls import Target, why_not
from helpers.interpreter import patch_once
from helpers.operands import DTYPES, LAYOUTS

from srkernels import _dispatch, _native, _triton
from srkernels._dispatch import BACKENDS
from srkernels._spec import Case, OpSpec
from srkernels.ops import specs

# What Triton's interpreter, which takes milliseconds per program, can afford.
REDUCED_DTYPES = ("fp32", "bf16")
REDUCED_LAYOUTS = ("contiguous", "channels_last", "sliced")
# The reference is PyTorch's own operations, which take any strides: dense in three orders tells what is ours in it.
REFERENCE_LAYOUTS = ("contiguous", "channels_last", "permuted")
REDUCED_CASES = 6
REDUCED_COMPOSED_CASES = 3
REDUCED_ELEMENTS = 250
HAAR = next(spec for spec in specs() if not spec.convolves)


def _of_the_whole(config: pytest.Config) -> bool:
    """Whether no file, test, keyword or mark is named."""
    option = config.option
    return not (option.keyword or option.markexpr) and all(Path(argument).is_dir() for argument in config.args)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """A whole run takes every core, one process with one torch thread on each; a GPU belongs to a single process."""
    option = config.option
    # Not in a worker, or in a run that a test starts: each would start as many more.
    outermost = "PYTEST_XDIST_WORKER" not in os.environ
    plain = getattr(option, "numprocesses", 0) is None and not (option.usepdb or option.collectonly)
    if outermost and plain and _of_the_whole(config) and not torch.cuda.is_available():
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        option.numprocesses = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        option.dist, option.loadscopereorder = "loadgroup", False


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["loadgroup"] = node.config.option.dist == "loadgroup"


def pytest_configure(config: pytest.Config) -> None:
    # A worker reads the command line, on which the groups that are chosen above do not stand.
    if getattr(config, "workerinput", {}).get("loadgroup"):
        config.option.loadgroup = True
    # Nothing that was measured on this machine decides in a test.
    os.environ["SRKERNELS_CACHE"] = str(Path(tempfile.gettempdir()) / "srkernels-tests-keep-nothing")
    if _triton.interpreting() and _triton.why_no_interpreter() is None:
        patch_once()
    if config.getoption("--isa"):
        _native.extension("cpu").set_isa(config.getoption("--isa"))
    config.addinivalue_line("markers", "long: of a whole run it comes first, so that no core waits at the end")
    config.addinivalue_line("markers", "thorough: long, and of a whole run it is left out without --thorough")
    if not config.pluginmanager.hasplugin("xdist"):
        config.addinivalue_line("markers", "xdist_group(name): tests that share what one of them builds")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _of_the_whole(config):
        part = config.getoption("--part") if config.getoption("--thorough") else None
        spared = [item for item in items if item.get_closest_marker("thorough") and not _in_part(item, part)]
        config.hook.pytest_deselected(items=spared)
        left_out = set(spared)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: not any(map(item.get_closest_marker, ("long", "thorough"))))
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params  # type: ignore[attr-defined]
        grouped = item.get_closest_marker("xdist_group")
        if not grouped and params and params.get("spec") and params.get("case"):
            # Backends ask for the same answers, one after another.
            item.add_marker(pytest.mark.xdist_group(f"{params['spec'].name}-{params['case'].id}"))


def _in_part(item: pytest.Item, part: tuple[int, int] | None) -> bool:
    return part is not None and zlib.crc32(item.nodeid.encode()) % part[1] == part[0] - 1


def _part(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return part, parts


def pytest_report_header(config: pytest.Config) -> str | None:
    if not _of_the_whole(config):
        return None
    if not config.getoption("--thorough"):
        return "tests marked thorough are left out: --thorough takes them"
    part, parts = config.getoption("--part")
    return f"of the tests marked thorough this is part {part} of {parts}" if parts > 1 else None


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("srkernels")
    group.addoption("--thorough", action="store_true", help="a whole run takes the tests marked thorough too")
    group.addoption(
        "--part", type=_part, default=(1, 1), metavar="K/N", help="of what --thorough adds, the K-th of N parts alone"
    )
    group.addoption("--backend", choices=BACKENDS, help="run the gates on this backend alone")
    group.addoption("--device", choices=("cpu", "cuda"), help="run the gates on this device alone")
    group.addoption("--cases", type=int, help="how many random cases test_differential.py and test_malformed.py draw")
    group.addoption("--seed", type=int, help="what they, and kills, are drawn from")
    group.addoption("--kills", type=int, default=3, help="how many kills test_kills.py tries")
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
    return [(Target(b, d), _dispatch.why_not(b, torch.device(d), torch.float32)) for d in devices for b in backends]


def _reduced(spec: OpSpec, cases: tuple[Case, ...]) -> list[Case]:
    """A few of the small ones, evenly spread, first and last among them; as many of those that not all kernels take."""
    most = REDUCED_COMPOSED_CASES if spec.composed else REDUCED_CASES
    by_kernels: dict[bool, list[Case]] = {True: [], False: []}
    for case in cases:
        if prod(case.shapes[0]) <= REDUCED_ELEMENTS:
            by_kernels[why_not(spec, case, "triton") is None].append(case)
    found = []
    for small in by_kernels.values():
        count = min(most, len(small))
        found += [small[round(i * (len(small) - 1) / max(1, count - 1))] for i in range(count)]
    return found


def _layouts(row: dict[str, Any], reduced: bool) -> list[tuple[tuple[str, ...], str]]:
    """In groups, each of which is one test: a test of its own for each would take longer to start than to run."""
    chosen: tuple[str, ...] = REDUCED_LAYOUTS if reduced else LAYOUTS
    if row["target"].backend == "reference":
        chosen = tuple(layout for layout in chosen if layout in REFERENCE_LAYOUTS)
    if reduced and row["spec"].composed and "dtype" in row:
        chosen = ("sliced",) if row["dtype"] is torch.float32 else ("channels_last",)
    if reduced:
        return [((layout,), layout) for layout in chosen]
    dense = tuple(layout for layout in chosen if layout in ("contiguous", "channels_last"))
    others = tuple(layout for layout in chosen if layout not in dense)
    return [(layouts, id) for layouts, id in ((dense, "dense"), (others, "strided")) if layouts]


def _rare(gate: str, row: dict[str, Any], ids: list[str]) -> bool:
    """Whether a whole run leaves this out.

    Of the cases it takes all where values and gradients are judged in fp32 and bf16, densely laid out, and one in
    four elsewhere. On the reference, which is PyTorch's own operations, it takes one in four, and no gate that has no
    cases. The interpreter's rows are few already.
    """
    if row["target"].interpreted:
        return False
    axis, cases = ("case", "cases") if "case" in row else ("small", "small")
    dtype = row.get("dtype", torch.float32)
    if dtype is not torch.float32 and ids[-1] == "strided":
        return True
    if axis not in row:
        return "spec" in row and row["target"].backend == "reference"
    judged = gate == "test_values_and_gradients" and ids[-1] == "dense" and dtype in (torch.float32, torch.bfloat16)
    if judged and row["target"].backend != "reference":
        return False
    return getattr(row["spec"], cases).index(row[axis]) % 4 != 0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" not in metafunc.fixturenames:
        return
    axes = [name for name in ("spec", "case", "small", "dtype", "target", "layouts") if name in metafunc.fixturenames]
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
                choices = [(c, c.id) for c in (_reduced(row["spec"], cases) if reduced else cases)]
            elif axis == "dtype":
                choices = [(DTYPES[d], d) for d in (REDUCED_DTYPES if reduced else DTYPES)]
            elif axis == "layouts":
                choices = _layouts(row, reduced)
            else:
                spec = row.get("spec", HAAR)  # gates of no spec run the Haar transform or the loss
                case, dtype = row.get("case") or row.get("small"), row.get("dtype", torch.float32)
                choices = [
                    (t, str(t))
                    for t, reason in _targets(metafunc.config)
                    if reason is None and why_not(spec, case, t.backend, t.device, dtype) is None
                ]
            extended += [({**row, axis: value}, [*ids, id]) for value, id in choices]
        rows = extended
    gate = metafunc.function.__name__
    params = [
        pytest.param(*row.values(), id="-".join(ids), marks=[pytest.mark.thorough] * _rare(gate, row, ids))
        for row, ids in rows
    ]
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
