"""`python -m models sheet`: what stands in it, the window it shows, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.__main__ import main
from models.commands import sheet
from models.data import read_image, write_picture
from models.evaluate.pictures import telling_window


def picture(seed: int, height: int = 64, width: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """HR pictures one and two, their LR, and results of two methods."""
    for number, name in enumerate(("one", "two")):
        write_picture(tmp_path / "hr" / f"{name}.png", picture(number))
        write_picture(tmp_path / "lr" / f"{name}.png", picture(number)[::4, ::4])
        for method in ("a", "b"):
            write_picture(tmp_path / method / f"{name}_x4.png", picture(number))
    return tmp_path


def draw(root: Path, *options: str, methods: tuple[str, ...] = ("a", "b")) -> int:
    folders = ("--hr", str(root / "hr"), "--lr", str(root / "lr"), "--out", str(root / "sheet.png"))
    return main(["sheet", *(str(root / method) for method in methods), *folders, *options])


def test_columns_captions_and_window(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = picture(1)
    changed[40:56, 72:88] = 0
    write_picture(root / "b" / "two_x4.png", changed)
    seen = []
    kept = sheet.pictures.save_sheet
    monkeypatch.setattr(
        sheet.pictures, "save_sheet", lambda *given, **options: (seen.append(given), kept(*given, **options))
    )
    assert draw(root, "--pictures", "two", "--crop", "16") == 0
    _, ((name, cells),), note, (window,) = seen[0]
    assert name == "two" and [cell.title for cell in cells] == ["LR", "bicubic", "a", "b", "reference"]
    assert all(cell.pixels.shape == (64, 96, 3) for cell in cells)
    assert cells[2].caption == "inf dB" and cells[3].caption.endswith(" dB") and cells[0].caption == ""
    assert note.startswith("PSNR of the whole picture (RGB, crop 4")
    assert read_image(root / "sheet.png").ndim == 3
    # Bicubic differs everywhere, what was changed more.
    rows, columns = window
    assert 32 <= rows.start <= 48 and 64 <= columns.start <= 80


def test_the_window_is_where_results_differ_and_something_is_shown() -> None:
    one, other = np.full((2, 64, 64, 3), 100, np.uint8)
    reference = one.copy()
    reference[:32, ::4] = 0  # edges in the upper half
    one[8:24, 32:48] = 160
    one[40:56, 8:24] = 200
    windows = [telling_window(results, reference, 16) for results in ((one, other), (other, one))]
    assert windows == [np.s_[8:24, 32:48]] * 2


def test_bad_input_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(root, "--pictures", "three") == 2
    assert "no picture is named three, there are one, two" in capsys.readouterr().err
    (root / "bicubic").mkdir()
    assert draw(root, methods=("a", "bicubic")) == 2
    assert "bicubic is a column of its own" in capsys.readouterr().err
    write_picture(root / "b" / "two_x4.png", picture(1)[:60])
    assert draw(root) == 2
    assert "two_x4.png is 96 x 60 pixels" in capsys.readouterr().err
    write_picture(root / "b" / "two_x4.png", picture(1))
    write_picture(root / "lr" / "two.png", picture(1)[::4, ::5])
    assert draw(root) == 2
    assert "two.png, enlarged 4 times, is 80 x 64 pixels" in capsys.readouterr().err
    (root / "a" / "one_x4.png").unlink()
    assert draw(root) == 2
    assert "one.png must have one SR picture of its name" in capsys.readouterr().err
