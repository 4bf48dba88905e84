"""Where measured choices are kept: files, their damage, other processes and machines."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.process import ROOT, environment, python
from helpers.tuning import anew, backends, loss
from torch import Tensor

import srkernels
from srkernels import _native
from srkernels.tuned import store

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(_native.why_not(CPU) is not None, reason="one backend alone leaves nothing to choose")


TUNE = """
import sys, torch, srkernels
from srkernels.tuned import clock
clock.medians = lambda calls, device: {name: 2.0 if name == "native" else 1.0 for name in calls}
for channels in map(int, sys.argv[1:]):
    x = torch.rand(1, channels, 8, 8)
    with srkernels.tuning():
        srkernels.weighted_l1_loss(x, x)
"""
SAY = """
import sys, torch, srkernels
for channels in map(int, sys.argv[1:]):
    print(srkernels.explain("weighted_l1_loss", *[torch.rand(1, channels, 8, 8)] * 2).splitlines()[0])
"""


def test_a_second_process_starts_tuned(cache: Path) -> None:
    python(TUNE, "3", "4")
    first, second, third = python(SAY, "3", "4", "5").stdout.splitlines()
    assert "reference (measured on" in first
    assert "reference (measured on" in second
    assert "native (automatic)" in third
    assert len(list(cache.glob("*.json"))) == 1
    assert not list(cache.glob("*.tmp"))


@pytest.mark.thorough
def test_two_processes_that_tune_at_once_both_keep_theirs(cache: Path) -> None:
    channels = [[str(2 * n + k) for n in range(1, 9)] for k in (0, 1)]
    command = [sys.executable, "-c", TUNE]
    running = [subprocess.Popen([*command, *each], env=environment(), cwd=ROOT) for each in channels]
    assert [process.wait(120) for process in running] == [0, 0]
    said = python(SAY, *channels[0], *channels[1]).stdout.splitlines()
    assert len(said) == 16
    assert all("reference (measured on" in line for line in said)


@pytest.mark.thorough
def test_an_environment_variable_measures_whatever_comes(cache: Path) -> None:
    source = "import torch, srkernels; x = torch.rand(1, 3, 8, 8); srkernels.weighted_l1_loss(x, x)"
    python(source, env=environment(SRKERNELS_TUNE="1"))
    (file,) = cache.glob("*.json")
    assert [row["op"] for row in json.loads(file.read_text())["records"]] == ["weighted_loss"]


def _kept(images: tuple[Tensor, Tensor]) -> Path:
    with srkernels.tuning():
        loss(*images)
    return store.path(CPU)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: bytes(len(text)),
        lambda text: b"[1, 2]",
        lambda text: b"\xff\xfe" + text,
        lambda text: text.replace(b'"records": [', b'"records": 7, "old": ['),
        lambda text: b'{"a":' * 100_000,
    ],
    ids=["empty", "cut", "zeros", "another shape", "no text", "no list", "deep"],
)
def test_a_damaged_file_is_set_aside_with_a_warning(damage, told, images, monkeypatch) -> None:
    file = _kept(images)
    file.write_bytes(damage(file.read_bytes()))
    anew(monkeypatch)
    with pytest.warns(UserWarning, match="is damaged"):
        assert backends(lambda: loss(*images)) == [""]
    assert file.with_suffix(".damaged").exists()
    assert not file.exists()
    _kept(images)  # and tuning goes on
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == ["reference"]


@pytest.mark.parametrize(
    "change",
    [
        {"shape": ["float33", 1]},
        {"shape": ["nn"]},
        {"shape": None},
        {"seconds": 3},
        {"seconds": {"native": "soon"}},
        {"needs": "x"},
        {"needs": math.inf},
        {"threads": "many"},
        {"op": None, "shape": [None]},
    ],
    ids=str,
)
def test_a_damaged_record_is_passed_over(change, told, images, monkeypatch) -> None:
    file = _kept(images)
    content = json.loads(file.read_text())
    content["records"].insert(0, content["records"][0] | change)
    file.write_text(json.dumps(content))
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == ["reference"]


def test_a_record_of_what_cannot_run_here_is_not_followed(told, images, monkeypatch) -> None:
    """Another environment of the same versions has a compiler, say."""
    file = _kept(images)
    content = json.loads(file.read_text())
    content["records"][0]["seconds"]["triton"] = 0.001
    file.write_text(json.dumps(content))
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == [""]
    assert "native (automatic)" in srkernels.explain("weighted_l1_loss", *images)


def test_a_record_of_a_backend_that_is_gone_is_not_followed(told, images, monkeypatch) -> None:
    file = _kept(images)
    content = json.loads(file.read_text())
    content["records"][0]["seconds"] |= {"warp": 0.001}
    file.write_text(json.dumps(content))
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == ["reference"]


@pytest.mark.parametrize("what", ["torch", "srkernels", "device", "instructions"])
def test_records_of_other_versions_and_machines_do_not_count(what, told, images, monkeypatch) -> None:
    _kept(images)
    made = store.made_on(CPU) | {what: "another"}
    monkeypatch.setattr(store, "made_on", lambda device: made)
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == [""]


def test_no_home_is_no_cache(told, images, monkeypatch) -> None:
    for name in ("SRKERNELS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    assert backends(lambda: loss(*images)) == [""]
    with pytest.warns(UserWarning, match="not kept: Could not determine home"), srkernels.tuning():
        loss(*images)


def test_a_folder_that_cannot_be_written_is_a_warning(told, images, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SRKERNELS_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="what was measured is not kept"), srkernels.tuning():
        loss(*images)
    assert backends(lambda: loss(*images)) == ["reference"]  # in this process
