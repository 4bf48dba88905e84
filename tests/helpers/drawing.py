"""Random cases, each a function of a seed and its number, run in a separate process: a crash is a failed case.

A module of such cases has ``draw(seed, number)``; ``str()`` of what it returns tells how to repeat it, and its
``check()`` yields failures as (kind, what was seen).
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from .process import environment

TESTS = Path(__file__).parents[1]
PATIENCE = 120  # seconds that a case may take before it counts as hanging
MOST = 20  # crashes after which to start again

_T = TypeVar("_T")


class Dice(Random):
    """What a case is drawn with: identical for the same seed and number."""

    def __init__(self, seed: int, number: int) -> None:
        super().__init__(f"{seed} {number}")

    def one(self, *items: _T) -> _T:
        return self.choice(items)

    def sometimes(self, share: float) -> bool:
        return self.random() < share


@dataclass(frozen=True)
class Failure:
    """What a case did wrong; those of one kind are one fault as far as a test can tell."""

    number: int
    case: str
    kind: str
    seen: str
    crash: bool = False


def _serve(module: str, seed: int, first: int, cases: int) -> None:
    """In the child: a line of JSON when a case begins and one for each failure."""
    records = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may print in between
    draw = importlib.import_module(module).draw
    for number in range(first, cases):
        case = draw(seed, number)
        records.write(json.dumps([number, str(case)]) + "\n")
        records.flush()
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        for kind, seen in case.check():
            records.write(json.dumps([number, str(case), kind, seen]) + "\n")
        faulthandler.cancel_dump_traceback_later()
    records.close()


def _run(module: str, seed: int, first: int, cases: int, env: dict[str, str]) -> Iterator[Failure]:
    """Failures of the cases from ``first`` on; the last is a crash if the process did not finish."""
    path = os.pathsep.join((str(TESTS), str(TESTS / "gates"), env["PYTHONPATH"]))
    source = f"from helpers import drawing; drawing._serve({module!r}, {seed}, {first}, {cases})"
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", source],
            env={**env, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert child.stdout is not None
        number, case = first, "before the first case"
        try:
            for line in child.stdout:
                number, case, *failure = json.loads(line)
                if failure:
                    yield Failure(number, case, *failure)
            code = child.wait()
        finally:
            child.kill()
        if code:
            errors.seek(0)
            kind = f"{case.split('(')[0]}: the process ended with {code}"
            yield Failure(number, case, kind, errors.read()[-2000:], crash=True)


def failures(module: str, seed: int, cases: int, **env: str) -> list[Failure]:
    """All failures of ``cases`` cases, or of those before the last of MOST crashes."""
    found: list[Failure] = []
    first = 0
    while first < cases and sum(failure.crash for failure in found) < MOST:
        found += _run(module, seed, first, cases, environment(**env))
        if not (found and found[-1].crash):
            break
        first = found[-1].number + 1
    return found


def report(seed: int, cases: int, found: Sequence[Failure]) -> str:
    """The failures by kind, the first of each with instructions to repeat it."""
    kinds: dict[str, list[Failure]] = {}
    for failure in found:
        kinds.setdefault(failure.kind, []).append(failure)
    lines = [f"seed {seed}, {cases} cases: {len(found)} failures of {len(kinds)} kinds"]
    for kind, those in sorted(kinds.items(), key=lambda item: -len(item[1])):
        first = min(those, key=lambda failure: len(failure.case))
        lines.append(f"\n{len(those)} x {kind}\n  seed {seed}, case {first.number}: {first.case}\n  {first.seen}")
    return "\n".join(lines)
