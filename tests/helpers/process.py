"""Python in a fresh process, as a user's first lines would run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment without the library's variables, plus ``changes`` (None removes)."""
    env = {k: v for k, v in os.environ.items() if k not in ("SRKERNELS_BACKEND", "TRITON_INTERPRET")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
    for key, value in changes.items():
        env.pop(key, None)
        if value is not None:
            env[key] = value
    return env


def python(
    source: str, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 120, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``source``; on failure its output is the assertion's message."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(source), *arguments],
        env=environment() if env is None else dict(env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def ranks(source: str, *arguments: str, timeout: float = 180) -> list[str]:
    """What two ranks say that run ``source``, each given its number and ``arguments``; a failure is an assertion's."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", dedent(source), str(rank), *arguments],
            env=environment(),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in running]
    finally:
        for rank in running:
            rank.kill()
    for rank, output in zip(running, outputs, strict=True):
        assert rank.returncode == 0, output
    return outputs
