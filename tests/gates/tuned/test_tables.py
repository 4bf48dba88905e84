"""Tables of choices that ship with the library: for which machine, below what was measured there, never trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.process import ROOT
from helpers.tuning import anew, backends, loss

import srkernels
from srkernels import _native
from srkernels.tuned import store

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(_native.why_not(CPU) is not None, reason="one backend alone leaves nothing to choose")


@pytest.fixture
def table(told, images, tmp_path: Path, monkeypatch) -> Path:
    """One that ships for this machine, made with other patches of everything: it chooses eager PyTorch."""
    told["native"] = 2.0
    with srkernels.tuning() as tuner:
        loss(*images)
    store.path(CPU).unlink()
    monkeypatch.setattr(store, "TABLES", tmp_path / "tables")
    made = store.made_on(CPU) | {"srkernels": "0.0.1", "torch": ".".join(torch.__version__.split(".")[:2]) + ".99+cu1"}
    file = store.table(made)
    file.parent.mkdir()
    file.write_text(store.written(made, tuner.found))
    anew(monkeypatch)
    return file


def test_a_table_is_followed_and_named(table, images) -> None:
    assert backends(lambda: loss(*images)) == ["reference"]
    assert f", in the table {table.stem})" in srkernels.explain("weighted_l1_loss", *images).splitlines()[0]


def test_what_was_measured_here_counts_more(table, told, images, monkeypatch) -> None:
    told["native"] = 0.5
    with srkernels.tuning() as tuner:  # whatever a table says, when it is asked to
        loss(*images)
    assert len(tuner.found) == 1
    for _ in range(2):
        assert backends(lambda: loss(*images)) == ["native"]
        assert "table" not in srkernels.explain("weighted_l1_loss", *images)
        anew(monkeypatch)
    assert [row["seconds"] for row in json.loads(table.read_text())["records"]] == [{"reference": 1.0, "native": 2.0}]


@pytest.mark.parametrize("change", [{"torch": "1.13.1"}, {"device": "another"}, {"instructions": "another"}], ids=str)
def test_a_table_holds_for_its_hardware_and_minor_versions(change, table, images, monkeypatch) -> None:
    made = store.made_on(CPU) | change
    monkeypatch.setattr(store, "made_on", lambda device: made)
    assert backends(lambda: loss(*images)) == [""]
    table.rename(store.table(made))  # nor under another's name
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == [""]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: b"[1, 2]",
        lambda text: text.replace(b'"made_on": {', b'"made_on": 7, "old": {'),
        lambda text: text.replace(b'"torch": "', b'"torch": 2, "was": "'),
        lambda text: text.replace(b'"records": [', b'"records": 7, "old": ['),
    ],
    ids=["empty", "cut", "another shape", "no machine", "no version", "no list"],
)
def test_a_damaged_table_is_one_warning(damage, table, images) -> None:
    damaged = damage(table.read_bytes())
    table.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"is damaged .*: not read$") as said:
        assert backends(lambda: [loss(*images), loss(*images)]) == ["", ""]
    assert len(said) == 1
    assert table.read_bytes() == damaged  # it is not the user's file


def test_records_of_a_table_are_checked_as_any_are(table, images, monkeypatch) -> None:
    content = json.loads(table.read_text())
    (row,) = content["records"]
    content["records"] = [row | {"shape": ["float33"]}, {}, None, row]
    table.write_text(json.dumps(content))
    assert backends(lambda: loss(*images)) == ["reference"]
    row["seconds"]["triton[gather]"] = 0.001  # which this op has not
    table.write_text(json.dumps(content))
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == [""]


def test_a_card_s_file_is_named_after_what_it_holds_for() -> None:
    made = {"srkernels": "1.2.3", "torch": "2.11.1+cu130", "device": "NVIDIA H100 80GB HBM3", "cores": 132}
    made |= {"runtime": "13.0", "triton": "3.6.0"}
    assert store.table(made).name == "nvidia-h100-80gb-hbm3-132-torch-2.11-triton-3.6-runtime-13.0.json"
    assert store.table(made | {"torch": "2.11.0", "srkernels": "2"}) == store.table(made)
    assert len({store.table(made | change) for change in ({}, {"torch": "2.12.0"}, {"cores": 114})}) == 3


def test_tables_that_ship_can_be_read_and_have_their_names() -> None:
    for file in store.TABLES.glob("*.json"):
        content: dict[str, Any] = json.loads(file.read_text())
        found = store.read(file.read_bytes(), torch.device("cuda"), lambda made: True)
        assert store.table(content["made_on"]) == file
        assert len(found) == len(content["records"]) > 0
    assert {file.suffix for file in store.TABLES.iterdir()} <= {".json", ".md"}
    assert store.TABLES == ROOT / "srkernels" / "tables"
