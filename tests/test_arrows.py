"""The library's and the benches' import arrows: from an op's public function down to its kernels, never back."""

from __future__ import annotations

import pytest
from helpers.arrows import Graph, circles, graph, sources

LIBRARY, BENCH = sources("srkernels"), sources("bench")

# In an op's folder: what a file may import from the others. Kernels and backends never see each other, the registration
# or the public functions; specs see all, and nothing sees specs.
_SHARED = {"activation", "allocate", "arguments", "conventions", "geometry", "support"}
OP = {
    "activation": set(),
    "conventions": set(),
    "geometry": set(),
    "arguments": {"activation", "geometry"},
    "support": {"arguments", "geometry"},
    "oracle": {"conventions"},
    "checks": {"activation", "arguments", "geometry"},
    "allocate": {"activation", "arguments", "conventions", "geometry"},
    "library": {"geometry"},
    "amx": {"activation", "support"},
    "reference": _SHARED | {"library"},
    "native": _SHARED | {"library", "amx"},
    "triton": _SHARED | {"library"},
    "pointwise": {"triton"},
    "op": _SHARED | {"library", "reference"},
    "api": {"activation", "allocate", "arguments", "checks", "conventions", "geometry", "op"},
    "convert": {"conventions"},
    "modules": {"activation", "allocate", "api", "arguments", "checks", "conventions"},
    "aot": _SHARED | {"triton"},
    "spec": _SHARED | {"aot", "api", "checks", "oracle", "reference", "support"},
    "__init__": {"api", "conventions", "convert", "modules"},
}


def turned(arrows: Graph) -> list[str]:
    """The imports that violate OP, go from one op to another, or from the shared core into ops."""
    found = []
    for module, targets in arrows.items():
        package, _, file = module.removeprefix("srkernels.ops.").partition(".")
        inside = module.startswith("srkernels.ops.")
        for target in targets:
            other, _, of_other = target.removeprefix("srkernels.ops.").partition(".")
            if not target.startswith("srkernels.ops."):
                wrong = inside and target.removeprefix("srkernels.").partition(".")[0] in {"nn", "functional", "patch"}
            elif not inside:
                # Functions, modules and patch take an op's public names, the list of ops its spec; op.py's registration
                # knows no op.
                wrong = module in {f"srkernels.{name}" for name in ("_op", "_dispatch", "_native", "_parity", "_spec")}
            else:
                rooms = file.split(".")[0] or "__init__", of_other.split(".")[0] or "__init__"
                wrong = other != package or (rooms[0] != rooms[1] and rooms[1] not in OP[rooms[0]])
            if wrong:
                found.append(f"{module} imports {target}")
    return sorted(found)


def test_an_op_imports_downwards() -> None:
    assert turned(graph(LIBRARY)) == []


@pytest.mark.parametrize("found", [LIBRARY, BENCH], ids=["srkernels", "bench"])
def test_nothing_imports_itself_by_way_of_others(found: dict[str, str]) -> None:
    assert circles(graph(found)) == []


def test_the_library_knows_neither_models_nor_benches() -> None:
    everything = {**LIBRARY, **BENCH, **sources("models")}
    for module, targets in graph(everything).items():
        if module.startswith("srkernels"):
            assert all(target.startswith("srkernels") for target in targets), module


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("srkernels.ops.haar.reference", "from .op import analysis"),
        ("srkernels.ops.conv.native", "def late():\n    from . import reference"),
        ("srkernels.ops.conv.triton.launch", "from ..native import forward"),
        ("srkernels.ops.weighted_loss.op", "from .api import weighted_l1_loss"),
        ("srkernels.ops.weighted_loss.op", "from ..haar import haar_highpass"),
        ("srkernels._op", "from .ops.haar.op import analysis"),
        ("srkernels.ops.haar.op", "import_module('srkernels.nn')"),
    ],
)
def test_an_arrow_turned_is_seen(module: str, line: str) -> None:
    assert turned(graph({**LIBRARY, module: f"{LIBRARY[module]}\n{line}\n"}))


def test_a_circle_is_seen() -> None:
    late = LIBRARY["srkernels._spec"] + "\ndef late():\n    from ._dispatch import implementation\n"
    assert {"srkernels._spec", "srkernels._dispatch"} <= set(circles(graph({**LIBRARY, "srkernels._spec": late})))
