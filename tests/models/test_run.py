"""A run's folder belongs to one process at a time; what killed ones left there neither blocks it nor stays."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

import numpy as np
import pytest

from models.__main__ import main
from models.data import InputError, locked, write_picture
from models.train.run import Run

# A process that lives on, whoever runs the tests, and one that does not.
ALIVE, DEAD = os.getppid(), 2**22 + 1


TINY = "--preset=tiny --hr={given} --lr={given} --out={out}"


@pytest.mark.parametrize(
    "command",
    [
        f"dasr {TINY}",
        f"dasr {TINY} --resume=never",
        f"dasr {TINY} --stage=maps --source=bicubic",
        f"usrda {TINY}",
        "ablate dasr --out={out}",
        "ablate usrda --out={out} --resume=never",
        "demo --root={root} --name=out",
        "subimages {given} {out}",
    ],
)
def test_a_folder_in_use_is_refused_and_left_alone(command, tmp_path, capsys):
    given, out = tmp_path / "in", tmp_path / "out"
    write_picture(given / "a.png", np.zeros((8, 8, 3), np.uint8))
    with locked(out):
        assert main(command.format(root=tmp_path, given=given, out=out).split()) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {out} is in use by process {os.getpid()} on ") and said.count("\n") == 1
        assert [path.name for path in out.iterdir()] == [".lock"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert list(out.iterdir()) == []


def test_a_killed_process_blocks_nobody_though_its_workers_live(tmp_path):
    ready, told = os.pipe()
    holder = os.fork()
    if holder == 0:
        with locked(tmp_path):
            if worker := os.fork():
                os.write(told, str(worker).encode())
            signal.pause()
    worker = int(os.read(ready, 20))
    try:
        with pytest.raises(InputError, match=f"is in use by process {holder} on "), locked(tmp_path):
            pass
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.kill(worker, 0)
        with locked(tmp_path) as holds:
            assert holds
    finally:
        os.kill(worker, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_run_from_scratch_sets_the_earlier_one_aside_and_keeps_the_folder(tmp_path):
    out = tmp_path / "out"
    Run(out).close()
    (out / "own").touch()
    run = Run(out, anew=out)
    with pytest.raises(InputError, match="in use"):
        Run(out)
    run.close()
    (archived,) = tmp_path.glob("out_archived_*")
    assert (archived / "own").exists() and not (out / "own").exists()
    Run(out).close()
    assert {path.suffix for path in out.iterdir()} == {".log"}


def test_where_nothing_can_be_locked_the_run_says_so(tmp_path, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    Run(tmp_path / "out").close()
    assert "has no locks: nothing keeps a second run out of it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "goes"),
    [
        (f"generated/lr/.h0.{DEAD}.png", True),
        (f"generated/maps/.h0.1.{DEAD}.npy", True),
        (f"dsn/training_states/.6.{DEAD}.state", True),
        ("dsn/models/.6_generator.OWN.safetensors", True),
        (f"dsn/.losses.{DEAD}.csv", True),
        (f".a_s001.{10**30}.png", True),
        ("srn/models/.tmpa1B2c3", True),
        (f"generated/lr/.h0.{ALIVE}.png", False),
        (f"generated/lr/h0.{DEAD}.png", False),
        (f".backup.{DEAD}.zip", False),
        (".tmpa1B2c3", False),
        (".gitignore", False),
    ],
)
def test_of_what_lies_around_only_what_dead_processes_of_ours_left_goes(name, goes, tmp_path):
    path = tmp_path / name.replace("OWN", str(os.getpid()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    Run(tmp_path).close()
    assert path.exists() != goes


def test_the_squares_of_a_killed_process_are_cut_again(tmp_path):
    write_picture(tmp_path / "in" / "a.png", np.zeros((20, 20, 3), np.uint8))
    left = tmp_path / "out" / f".a_s001.{DEAD}.png"
    left.parent.mkdir()
    left.touch()
    (tmp_path / "out.lmdb.part").mkdir()
    (tmp_path / "out.lmdb.part" / "data.mdb").write_bytes(b"half a database")
    assert main(["subimages", str(tmp_path / "in"), str(tmp_path / "out"), "--lmdb"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_s001.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "out.lmdb"]
