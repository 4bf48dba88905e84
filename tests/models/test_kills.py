"""`kill -9` at random moments, of a run or of a process that reads its pictures: resumed, it ends with the same files.

pytest tests/models/test_kills.py --kills 40 --seed 1
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.training import start, write_noise

from models.train.run import read_table

OPTIONS = [
    *("preset=tiny", "device=cpu", "run.no-tensorboard", "run.workers=2", "run.ema=0.9"),
    *("run.report-every=2", "run.save-every=3", "run.validate-every=4", "run.keep-checkpoints=2"),
    *("dsn.crop=64", "dsn.batch=2", "dsn.num-feat=8", "dsn.num-block=1", "dsn.discriminator.num-feat=8"),
    *("srn.crop=64", "srn.batch=2", "srn.num-feat=8", "srn.num-block=1", "srn.discriminator.num-feat=8"),
    *("srn.num-grow-ch=8", "dsn.schedule.steps=13", "srn.schedule.steps=13"),
]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    for index in range(6):
        write_noise(tmp_path / "hr" / f"{index}.png", 90, 101, index)
        write_noise(tmp_path / "lr" / f"{index}.png", 33, 40, 10 + index)
    folders = [f"--hr={tmp_path / 'hr'}", f"--lr={tmp_path / 'lr'}"]
    return ["-m", "models", "dasr", *(f"--{option}" for option in OPTIONS), *folders]


def begin(command: list[str]) -> subprocess.Popen[str]:
    """A run that has its folder, and says so."""
    process = start(command)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def children(process: int) -> list[int]:
    """Linux lists them; elsewhere only the run itself is killed."""
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in listed.read_text().split()] if listed.exists() else []


def killed(process: subprocess.Popen[str], seconds: float, draw: random.Random) -> bool:
    """Whether the run, or one of its readers, was killed so many seconds from now, and the run came down by it."""
    time.sleep(seconds)
    readers = children(process.pid)
    victim = draw.choice(readers) if readers and draw.random() < 0.5 else process.pid
    if process.poll() is not None:
        return False
    with suppress(ProcessLookupError):  # a reader that was done
        os.kill(victim, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    if victim == process.pid:
        return process.returncode == -signal.SIGKILL
    assert process.returncode == 0 or (process.returncode == 1 and "a process that reads pictures was killed" in said)
    assert "Traceback" not in said, said
    return process.returncode == 1


def products(out: Path) -> dict[str, object]:
    """What must not depend on kills: pictures, maps, final weights to the byte, the rows but for their seconds."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name == "losses.csv":
            found[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in read_table(path)]
        elif path.suffix in (".png", ".npy", ".safetensors", ".yaml") or path.name == "validation.csv":
            found[name] = path.read_bytes()
        elif path.is_file():
            assert path.suffix in (".log", ".state"), f"{name} is left over"
    return found


@pytest.mark.thorough
def test_killed_at_random_moments_a_run_ends_with_the_same_files(command, tmp_path, request):
    draw = random.Random(request.config.getoption("--seed") or 0)
    whole = begin([*command, f"--out={tmp_path / 'whole'}"])
    since = time.monotonic()
    assert whole.communicate(timeout=120)[1] == "" and whole.returncode == 0
    long = time.monotonic() - since
    expected = products(tmp_path / "whole")
    assert len([name for name in expected if name.endswith("13_generator_ema.safetensors")]) == 2

    left, number = request.config.getoption("--kills"), 0
    while True:
        out = tmp_path / f"run{number}"
        process = begin([*command, f"--out={out}"])
        if left and killed(process, draw.uniform(0, long / 2), draw):
            left -= 1
            continue
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        found = products(out)
        assert found.keys() == expected.keys()
        assert [name for name, content in found.items() if content != expected[name]] == []
        if not left:
            return
        number += 1
