"""Who imports whom, read from the sources: imports inside functions and modules named in strings count too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
Graph = dict[str, set[str]]
_NAME = re.compile(r"\w+(\.\w+)+")


def sources(package: str) -> dict[str, str]:
    """Module to source, for a package; its ``__init__`` is under the package's name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text("utf-8")
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def is_package(module: str) -> bool:
    return (ROOT / Path(*module.split("."))).is_dir()


def imports(module: str, source: str) -> Iterator[str]:
    """Everything a module imports, as dotted names; ``from a import b`` gives a.b."""
    parts = module.split(".")
    here = parts if is_package(module) else parts[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.fullmatch(node.value):
            yield node.value  # for importlib


def graph(found: Mapping[str, str]) -> Graph:
    """Module to the modules among them that it imports."""

    def module_of(name: str) -> str:
        return name if name in found else name.rpartition(".")[0]

    return {
        module: {module_of(name) for name in imports(module, source)} & found.keys() - {module}
        for module, source in found.items()
    }


def circles(arrows: Graph) -> list[str]:
    """Modules that import themselves via others; a package imports what its ``__init__`` does."""
    rest = {module: targets & arrows.keys() for module, targets in arrows.items()}
    while free := {module for module, targets in rest.items() if not targets}:
        rest = {module: targets - free for module, targets in rest.items() if module not in free}
    return sorted(rest)
