"""Databases in BasicSR's layout."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch

from models.data import (
    FolderSource,
    InputError,
    LMDBSource,
    PatchDataset,
    Stream,
    fingerprint,
    make_loader,
    open_source,
    write_lmdb,
    write_picture,
)

lmdb = pytest.importorskip("lmdb")


@pytest.fixture
def folder(tmp_path):
    for index, (suffix, channels) in enumerate(((".png", 3), (".jpg", 3), (".webp", 4), (".png", 1))):
        pixels = np.random.default_rng(index).integers(0, 256, (20 + index, 24, channels), dtype=np.uint8)
        write_picture(tmp_path / "images" / f"0{index}.s001{suffix}", pixels)
    return tmp_path / "images"


@pytest.fixture
def database(folder):
    write_lmdb(folder, folder.parent / "images.lmdb")
    return folder.parent / "images.lmdb"


def test_a_database_gives_what_its_folder_gives(folder, database):
    assert sorted(path.name for path in database.iterdir()) == ["data.mdb", "lock.mdb", "meta_info.txt"]
    assert (database / "meta_info.txt").read_text().splitlines() == [
        "00.s001.png (20,24,3) 1",
        "01.s001.jpg (21,24,3) 1",
        "02.s001.webp (22,24,4) 1",
        "03.s001.png (23,24,1) 1",
    ]
    files, base = FolderSource(folder), open_source(database)
    assert base.names == files.names
    # A second one of the same database, and one that went to another process, are as good as the first.
    for source in (base, LMDBSource(database), pickle.loads(pickle.dumps(base))):
        for index in range(len(files)):
            np.testing.assert_array_equal(source.read(index), files.read(index))
    assert base.label(2) == f"{database}/02.s001"
    database.rename(folder.parent / "moved.lmdb")
    assert fingerprint(open_source(folder.parent / "moved.lmdb")) == fingerprint(base)


def test_workers_read_a_database_that_is_open_here(folder, database):
    source = LMDBSource(database)
    source.read(0)
    streams = [Stream((name,), (each,), (16,)) for name, each in (("a", source), ("b", LMDBSource(database)))]
    dataset = PatchDataset(streams, 0, grey_images="convert")
    for here, there in zip(make_loader(dataset, 2, 0, 4), make_loader(dataset, 2, 0, 4, workers=2), strict=True):
        assert torch.equal(here["a"], there["a"]) and torch.equal(here["b"], there["b"])
    source.read(1)


def test_a_database_as_basicsr_writes_it(tmp_path, folder):
    encoded = (folder / "00.s001.png").read_bytes()
    with lmdb.open(str(tmp_path / "theirs.lmdb"), map_size=2**20) as environment, environment.begin(write=True) as txn:
        txn.put(b"0001_s001", encoded)
    (tmp_path / "theirs.lmdb" / "meta_info.txt").write_text("0001_s001.png (20,24,3) 1\n0002_s001.png (20,24,3) 1\n")
    source = open_source(tmp_path / "theirs.lmdb")
    assert source.names == ["0001_s001", "0002_s001"]
    np.testing.assert_array_equal(source.read(0), FolderSource(folder).read(0))
    with pytest.raises(InputError, match=r"theirs\.lmdb/0002_s001: it is in meta_info\.txt, but not in the database"):
        source.read(1)


def test_what_is_no_database_is_refused(tmp_path, folder, database, monkeypatch):
    with pytest.raises(InputError, match=r"gone\.lmdb has no data\.mdb"):
        open_source(tmp_path / "gone.lmdb")
    (tmp_path / "broken.lmdb").mkdir()
    (tmp_path / "broken.lmdb" / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match=r"cannot read .*meta_info\.txt: No such file"):
        open_source(tmp_path / "broken.lmdb")
    (tmp_path / "broken.lmdb" / "meta_info.txt").write_text("a.png (1,1,3) 1\n")
    with pytest.raises(InputError, match=r"cannot open the database .*broken\.lmdb"):
        open_source(tmp_path / "broken.lmdb").read(0)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(InputError, match="pip install lmdb"):
        open_source(database)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, folder, database):
    with pytest.raises(InputError, match="it exists"):
        write_lmdb(folder, database)
    with pytest.raises(InputError, match=r"must end in \.lmdb"):
        write_lmdb(folder, tmp_path / "images.db")
    (folder / "01.s001.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"01\.s001\.jpg"):
        write_lmdb(folder, tmp_path / "new.lmdb")
    (folder / "01.s001.jpg").rename(folder / "00.s001.jpg")
    with pytest.raises(InputError, match=r"two images in .* are named 00\.s001"):
        write_lmdb(folder, tmp_path / "new.lmdb")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "images.lmdb"]
