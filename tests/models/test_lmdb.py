"""Databases in BasicSR's layout."""

from __future__ import annotations

import os
import pickle
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.process import ROOT, environment

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


@pytest.mark.parametrize("kept", [0, 100, 4096, 4296, 8192, 12_000])
def test_a_database_that_is_cut_short_is_refused(database, kept):
    """LMDB maps its file: what is missing kills the process that looks for it."""
    path = database / "data.mdb"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cannot open the database .*images\.lmdb: damaged, cut short, or none"):
        LMDBSource(database)


FLIPS = """
import sys
from pathlib import Path
import numpy as np
from models.data import InputError, LMDBSource, database
path, draw, refused = Path(sys.argv[1]), np.random.default_rng(0), 0
whole = np.frombuffer((path / "data.mdb").read_bytes(), np.uint8)
heads = whole.reshape(-1, 4096)[:, :12]
tree = [n for n, head in enumerate(heads) if n < 2 or (head[10] in (1, 2) and int(head[:8].view(np.uint64)[0]) == n)]
for _ in range(100):
    flipped = whole.copy()
    at = draw.integers(0, (160, 160, 4096))  # heads of pages and their lists of nodes, and anywhere in them
    flipped[4096 * draw.choice(tree, 3) + at] = draw.integers(0, 256, 3)
    (path / "data.mdb").write_bytes(flipped.tobytes())
    try:
        source = LMDBSource(path)
        for index in range(0, len(source), 5):
            try:
                source.read(index)
            except InputError:
                refused += 1
    except InputError:
        refused += 1
    database._environment.cache_clear()
print(len(tree), refused)
"""


def test_no_damage_kills_the_process(folder, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for index in range(120):
        write_picture(folder / f"{index:020}.png", picture)
    write_lmdb(folder, tmp_path / "many.lmdb")
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, str(tmp_path / "many.lmdb")],
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    pages, refused = map(int, done.stdout.split())
    assert 5 < pages < 12 and refused > 50  # else it damaged something else


def test_pages_that_lead_to_one_another_are_refused(database):
    path = database / "data.mdb"
    content = bytearray(path.read_bytes())
    root = max(int.from_bytes(content[at + 128 : at + 136], "little") for at in (0, 4096) if content[at + 144])
    loop = bytearray(4096)
    struct.pack_into("=QHHHHHH", loop, 0, root, 0, 1, 20, 4080, 4080, 4080)
    struct.pack_into("=HHHH", loop, 4080, root, 0, 0, 0)
    content[4096 * root : 4096 * (root + 1)] = loop
    for at in (0, 4096):
        struct.pack_into("=H", content, at + 94, 1000)
    path.write_bytes(content)
    with pytest.raises(InputError, match="its pages lead back to one another"):
        LMDBSource(database)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("café.png (20,24,3) 1\n".encode("latin-1"), r"meta_info\.txt is not UTF-8 text: byte 3"),
        ("a.png (20,24,3) 1\n".encode("utf-16-le"), r"meta_info\.txt is not UTF-8 text: it holds zeros"),
        (b" (20,24,3) 1\n", r"cannot read the image .*/: .*(BAD_VALSIZE|size)"),
        (b"x" * 600 + b".png (20,24,3) 1\n", "cannot read the image .*x: it is in meta_info"),
    ],
)
def test_names_that_cannot_be_keys_are_refused(database, encoded, message):
    (database / "meta_info.txt").write_bytes(encoded)
    with pytest.raises(InputError, match=message):
        LMDBSource(database).read(0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_names_are_read_as_they_were_written(tmp_path, folder, encoding, end):
    name = "caf\u00e9 (1)\u2028 x"
    (folder / "00.s001.png").rename(folder / f"{name}.png")
    for path in folder.glob("0*"):
        path.unlink()
    write_lmdb(folder, tmp_path / "a.lmdb")
    meta = tmp_path / "a.lmdb" / "meta_info.txt"
    meta.write_bytes((meta.read_text("utf-8").rstrip("\n") + end).encode(encoding))
    source = LMDBSource(tmp_path / "a.lmdb")
    assert source.names == [name]
    assert source.read(0).shape == (20, 24, 3)


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"a\xff"), "\u00e9" * 256])
def test_names_that_a_database_cannot_hold_are_refused(tmp_path, monkeypatch, name):
    paths = [tmp_path / f"{name}.png"]
    monkeypatch.setattr("models.data.database.list_files", lambda *_: paths)
    with pytest.raises(InputError, match="a database takes names of UTF-8, of one line and 511 bytes at most"):
        write_lmdb(tmp_path, tmp_path / "new.lmdb")
    assert not (tmp_path / "new.lmdb").exists()


def test_a_disk_that_is_full_is_one_line(folder, tmp_path):
    """A file that must not grow fails like one on a full disk."""
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    write_picture(folder / "large.png", pixels)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"^cannot write [^\n]*new\.lmdb: [^\n]+$"):
            write_lmdb(folder, tmp_path / "new.lmdb")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
