"""Squares cover the whole picture, and a database holds the same."""

from __future__ import annotations

import numpy as np
import pytest

from models.__main__ import main
from models.data import FolderSource, LMDBSource, write_picture


def test_squares_cover_the_picture_and_end_at_its_border(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 75, 3), dtype=np.uint8)
    write_picture(tmp_path / "in" / "a.png", pixels)
    write_picture(tmp_path / "in" / "small.png", pixels[:10, :12])
    assert main(["subimages", str(tmp_path / "in"), str(tmp_path / "out"), "--size=32", "--step=20", "--lmdb"]) == 0
    squares = FolderSource(tmp_path / "out")
    assert squares.names == [*(f"a_s{number:03}" for number in range(1, 9)), "small_s001"]
    corners = [(top, left) for top in (0, 18) for left in (0, 20, 40, 43)]
    for index, (top, left) in enumerate(corners):
        assert np.array_equal(squares.read(index), pixels[top : top + 32, left : left + 32])
    assert np.array_equal(squares.read(8), pixels[:10, :12])
    database = LMDBSource(tmp_path / "out.lmdb")
    assert database.names == squares.names
    assert np.array_equal(database.read(3), squares.read(3))


def test_a_step_that_leaves_gaps_is_refused(tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png", np.zeros((20, 20, 3), np.uint8))
    assert main(["subimages", str(tmp_path / "in"), str(tmp_path / "out"), "--size=8", "--step=9"]) == 2
    assert "--step must be at most --size, got 9 and 8" in capsys.readouterr().err
    assert main(["subimages", str(tmp_path / "in"), str(tmp_path / "in")]) == 2
    assert "is the folder to read" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_two_pictures_of_one_name_are_refused(tmp_path, workers, capsys):
    """Squares of one would replace those of the other."""
    for suffix in ("png", "bmp"):
        write_picture(tmp_path / "in" / f"a.{suffix}", np.zeros((20, 20, 3), np.uint8))
    options = ["--size=8", "--step=8", f"--workers={workers}"]
    assert main(["subimages", str(tmp_path / "in"), str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert "two pictures are named a: " in said and "a.bmp" in said and "a.png" in said
    assert not (tmp_path / "out").exists()


def test_a_database_that_is_there_is_named_before_anything_is_cut(tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png", np.zeros((20, 20, 3), np.uint8))
    (tmp_path / "out.lmdb").mkdir()
    assert main(["subimages", str(tmp_path / "in"), str(tmp_path / "out"), "--lmdb"]) == 2
    assert "out.lmdb: it exists" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_worker_is_refused(tmp_path, capsys):
    write_picture(tmp_path / "in" / "a.png", np.zeros((20, 20, 3), np.uint8))
    assert main(["subimages", str(tmp_path / "in"), str(tmp_path / "out"), "--workers=0"]) == 2
    assert "--workers must be from 1 to 128, got 0" in capsys.readouterr().err


def test_squares_of_an_earlier_run_do_not_stay_among_new_ones(tmp_path):
    write_picture(tmp_path / "in" / "a.png", np.zeros((40, 40, 3), np.uint8))
    for size, count in ((8, 25), (20, 4), (10, 16)):
        assert main(["subimages", str(tmp_path / "in"), str(tmp_path / "out"), f"--size={size}", f"--step={size}"]) == 0
        assert len(FolderSource(tmp_path / "out")) == count
