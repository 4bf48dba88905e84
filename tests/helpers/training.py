"""Training runs as tests start them: pictures, processes, and the weights they leave."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file

from helpers.process import ROOT, environment

Weights = dict[str, torch.Tensor]


def write_noise(path: Path, height: int, width: int, seed: int) -> None:
    """A picture of coloured blobs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    """`python -m models ...` in a separate process, on one thread: sums are in one order everywhere."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(command: Sequence[str]) -> str:
    """Its output; its errors are the assertion's message."""
    process = start(command)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return said


def stop_at(command: Sequence[str], file: Path, number: signal.Signals) -> tuple[int, str]:
    """Sends the signal as soon as the file exists; returns the exit code and what went to stderr."""
    process = start(command)
    deadline = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def load(folder: Path, name: str, step: int) -> Weights:
    return load_file(folder / "models" / f"{step}_{name}.safetensors")


def equal(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def flat(weights: Weights) -> torch.Tensor:
    return torch.cat([value.flatten() for _, value in sorted(weights.items())])
