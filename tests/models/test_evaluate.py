"""`python -m models evaluate` on small folders."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.__main__ import main as models
from models.commands.evaluate import EvaluateOptions, main, run_evaluate
from models.data import InputError, to_tensor, write_picture
from models.evaluate import metrics
from models.evaluate.pictures import SheetCell, save_sheet
from models.networks import LPIPS


def picture(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for index, ending in enumerate(("", "_x4")):
        write_picture(tmp_path / "hr" / f"my_{index}.png", picture(index))
        write_picture(tmp_path / "sr" / f"my_{index}{ending}.png", picture(10 + index))
    return tmp_path / "sr", tmp_path / "hr"


def test_every_number_is_shown_with_its_convention(folders, tmp_path, capsys):
    sr, hr = folders
    assert main(["--sr", str(sr), "--hr", str(hr), "--crop-border", "3", "--csv", str(tmp_path / "o" / "t.csv")]) == 0
    rows = list(csv.reader((tmp_path / "o" / "t.csv").open(newline="")))
    y = "Y of BT.601 studio range, crop 3, uint8"
    assert rows[0] == [
        "picture",
        "PSNR (dB), RGB, crop 3, uint8",
        "SSIM, RGB, crop 3, uint8",
        f"PSNR (dB), {y}",
        f"SSIM, {y}",
    ]
    assert [row[0] for row in rows[1:]] == ["my_0", "my_1", "mean"]
    expected = [
        of(picture(11), picture(1), crop_border=3, y_channel=y_channel)
        for y_channel in (False, True)
        for of in (metrics.psnr, metrics.ssim)
    ]
    assert [float(cell) for cell in rows[2][1:]] == pytest.approx(expected, rel=1e-12)
    for column in range(1, 5):
        assert float(rows[3][column]) == pytest.approx((float(rows[1][column]) + float(rows[2][column])) / 2)
    shown = capsys.readouterr().out
    assert f"{expected[0]:.2f}" in shown and f"{expected[1]:.4f}" in shown
    assert shown.count("crop 3") == 4 and shown.count("BT.601") == 2


def test_lpips_sees_whole_pictures(folders, tmp_path):
    sr, hr = folders
    network = LPIPS()
    state = network.state_dict()
    for name, keys in (("alex", "features"), ("lin", "lin")):
        torch.save({key: value for key, value in state.items() if key.startswith(keys)}, tmp_path / f"{name}.pth")
    files = {"lpips_alex": tmp_path / "alex.pth", "lpips_lin": tmp_path / "lin.pth"}
    run_evaluate(EvaluateOptions(sr, hr, csv=tmp_path / "t.csv", **files))
    rows = list(csv.reader((tmp_path / "t.csv").open(newline="")))
    assert rows[0][-1] == "LPIPS, v0.1 Alex, RGB, crop 0, uint8"
    expected = float(network(to_tensor(picture(10))[None], to_tensor(picture(0))[None]))
    assert float(rows[1][-1]) == pytest.approx(expected, rel=1e-6)


def test_what_cannot_be_compared_is_named(folders, tmp_path):
    sr, hr = folders
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    write_picture(tmp_path / "small" / "my_0.png", picture(0, 16, 16))
    write_picture(tmp_path / "larger" / "my_0.png", picture(0, 40, 49))
    alone, text, other = tmp_path / "alone", tmp_path / "text.pth", tmp_path / "other.pth"
    write_picture(alone / "my_0.png", picture(0))
    for options, message in (
        (EvaluateOptions(tmp_path / "empty", hr), "no image .* in the folder .*empty"),
        (EvaluateOptions(sr, tmp_path / "gone"), "no such folder: .*gone"),
        (EvaluateOptions(alone, hr), r"my_1\.png must have one SR picture of its name in .*alone, found none"),
        (EvaluateOptions(sr, alone), r"my_1_x4\.png has no HR picture of its name in .*alone"),
        (EvaluateOptions(tmp_path / "larger", alone), r"larger/my_0\.png with .*: pictures differ in shape"),
        (EvaluateOptions(tmp_path / "small", tmp_path / "small"), "11 x 11 pixels must be left"),
        (EvaluateOptions(sr, hr, crop_border=-1), "--crop-border must be from 0 to 1024, got -1"),
        (EvaluateOptions(sr, hr, lpips_lin=text), "--lpips-alex is needed: torchvision's alexnet"),
        (
            EvaluateOptions(sr, hr, lpips_alex=text, lpips_lin=text),
            r"--lpips-alex: cannot read weights from .*text\.pth",
        ),
        (EvaluateOptions(sr, hr, lpips_alex=other, lpips_lin=other), "--lpips-alex, --lpips-lin: .*Missing key"),
        (EvaluateOptions(sr, hr, lpips_alex=text, lpips_vgg=text), "--lpips-alex and --lpips-vgg are two trunks"),
        (EvaluateOptions(sr, hr, csv=hr / "my_0.png" / "t.csv"), r"--csv: cannot write .*t\.csv"),
    ):
        with pytest.raises(InputError, match=message):
            run_evaluate(options)
    write_picture(tmp_path / "twins" / "my_0.png", picture(0))
    write_picture(tmp_path / "twins" / "my_0.jpg", picture(0))
    with pytest.raises(InputError, match=r"two HR pictures are named my_0: .*my_0\.jpg and .*my_0\.png"):
        run_evaluate(EvaluateOptions(alone, tmp_path / "twins"))
    write_picture(sr / "my_1_out.png", picture(0))
    with pytest.raises(InputError, match=r"found my_1_out\.png, my_1_x4\.png"):
        run_evaluate(EvaluateOptions(sr, hr))


def test_names_with_dollar_signs_stand_in_sheets_as_they_are(tmp_path):
    cells = [SheetCell("x_$s$_{", picture(0), "a$_$0.png"), SheetCell("HR", picture(1), "\\frac$")]
    save_sheet(tmp_path / "sheet.png", [("a$_$0", cells)], "note $", [np.s_[:32, :32]])
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def lpips_files(folder: Path) -> dict[str, Path]:
    state = LPIPS().state_dict()
    for name, keys in (("alex", "features"), ("lin", "lin")):
        torch.save({key: value for key, value in state.items() if key.startswith(keys)}, folder / f"{name}.pth")
    return {f"lpips_{name}": folder / f"{name}.pth" for name in ("alex", "lin")}


def test_lpips_leaves_out_pairs_that_are_too_small_and_names_them(folders, tmp_path, capsys):
    sr, hr = folders
    for each, seed in ((sr, 2), (hr, 3)):
        write_picture(each / "small.png", picture(seed, 30, 48))
        write_picture(each / "large.png", picture(seed, 31, 31))
    assert run_evaluate(EvaluateOptions(sr, hr, csv=tmp_path / "t.csv", **lpips_files(tmp_path))) == 0
    rows = {row[0]: row[1:] for row in csv.reader((tmp_path / "t.csv").open(newline=""))}
    assert rows["small"][-1] == "" and all(rows["small"][:-1])
    measured = [float(rows[name][-1]) for name in ("my_0", "my_1", "large")]
    assert float(rows["mean"][-1]) == pytest.approx(sum(measured) / 3)
    assert "too small for LPIPS: small\n" in capsys.readouterr().out


def test_hed_lpips_is_never_called_lpips(folders, tmp_path, hed_lpips, capsys):
    sr, hr = folders
    for each, seed in ((sr, 2), (hr, 3)):
        write_picture(each / "small.png", picture(seed, 15, 48))
    options = [f"--sr={sr}", f"--hr={hr}", "--crop-border=0", f"--csv={tmp_path / 't.csv'}"]
    assert models(["evaluate", *options, *(f"--{each}" for each in hed_lpips)]) == 0
    rows = list(csv.reader((tmp_path / "t.csv").open(newline="")))
    assert rows[0][-1] == "HED-LPIPS, v0.1 VGG-16, RGB, crop 0, uint8"
    assert [bool(row[-1]) for row in rows[1:]] == [row[0] != "small" for row in rows[1:]]
    shown = capsys.readouterr().out
    assert "less than 16 pixels a side, too small for HED-LPIPS: small\n" in shown
    assert shown.replace("HED-LPIPS", "").count("LPIPS") == 0


HOSTILE = ("a$_$0", "b[x4]", "c[bold]", "d e :car:", "f\ng", os.fsdecode(b"h\xff"), 'i,"j', "=1+1", "é" * 120)


def test_names_are_shown_and_written_as_they_are(tmp_path, capsys):
    for index, name in enumerate(HOSTILE):
        for folder in ("sr", "hr"):
            write_picture(tmp_path / folder / f"{name}.png", picture(index))
    options = ["--sr", str(tmp_path / "sr"), "--hr", str(tmp_path / "hr"), "--csv", str(tmp_path / "t.csv")]
    assert models(["evaluate", *options]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    for name in ("a$_$0", "b[x4]", "c[bold]", "d e :car:", "f\\ng", "h\\udcff"):
        assert name in shown
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        written = {row[0] for row in csv.reader(file)}
    assert written == {"picture", "mean", *(name.replace("\udcff", "\\udcff") for name in HOSTILE)}
    cells = [SheetCell("x", picture(0), "c"), SheetCell("HR", picture(1), "c")]
    save_sheet(tmp_path / "sheet.png", [(name, cells) for name in HOSTILE[:6]], "note", [np.s_[:16, :16]] * 6)
