"""Which room of `models` may import which; imports inside functions and modules named in strings count too."""

from __future__ import annotations

import ast

import pytest
from helpers.arrows import circles, graph, imports, sources

import srkernels

SOURCES = sources("models")

# Room -> the rooms that it may import besides itself.
ARROWS = {
    "data": set(),
    "networks": {"data"},
    "config": {"data"},
    "train": {"config", "data", "networks"},
    "evaluate": {"data", "networks", "train"},
    "dasr": {"config", "data", "networks", "train", "evaluate"},
    "usrda": {"config", "data", "networks", "train", "evaluate"},
    "commands": {"config", "data", "networks", "train", "evaluate", "dasr", "usrda"},
    "__main__": {"commands", "data", "train"},
}
PUBLIC = {"srkernels", "srkernels.info", "srkernels.nn", "srkernels.functional"}


def turned(arrows: dict[str, set[str]]) -> list[str]:
    """The imports that go against ARROWS."""
    found = []
    for module, targets in arrows.items():
        for target in targets:
            room, other = (f"{name}.".split(".")[1] for name in (module, target))
            if other != room and other not in ARROWS.get(room, set()):
                found.append(f"{module} imports {target}")
    return sorted(found)


def private(source: str) -> list[str]:
    """What a module uses of srkernels beyond its public names."""
    names = [name for name in imports("models.one", source) if name.split(".")[0] == "srkernels"]
    names += [
        f"srkernels.{node.attr}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "srkernels"
    ]
    known = {f"srkernels.{name}" for name in srkernels.__all__} | {"srkernels.__version__"}
    return [
        name
        for name in names
        if name not in PUBLIC | known and not (name.rpartition(".")[0] in PUBLIC - {"srkernels"} and "._" not in name)
    ]


GRAPH = graph(SOURCES)


def test_every_room_imports_only_what_it_may():
    assert turned(GRAPH) == []


def test_nothing_imports_itself_by_way_of_others():
    assert circles(GRAPH) == []


def test_models_uses_the_public_names_of_srkernels():
    assert {module: found for module, source in SOURCES.items() if (found := private(source))} == {}


@pytest.mark.parametrize(
    ("module", "line", "check"),
    [
        ("models.data.images", "def late():\n    from models.dasr.config import DASRConfig\n", turned),
        ("models.networks.dsn", "from models.train import loop\n", turned),
        ("models.train.loop", "import models.commands.dasr\n", turned),
        ("models.dasr.steps", "from models.usrda import losses\n", turned),
        ("models.usrda.stages", "import_module('models.commands.usrda')\n", turned),
        ("models.data.images", "from models.data import Stream\n", circles),
        ("models.train.run", "def late():\n    from models.train.loop import train\n", circles),
    ],
)
def test_an_arrow_the_other_way_is_found(module, line, check):
    assert check(graph({**SOURCES, module: f"{SOURCES[module]}\n{line}"}))


@pytest.mark.parametrize(
    "line",
    [
        "from srkernels.ops.haar import native\n",
        "import srkernels._dispatch\n",
        "from srkernels import _dispatch\n",
        "import srkernels\nsrkernels._dispatch\n",
    ],
)
def test_a_private_name_is_found(line):
    assert private(line)
