"""The ablations on pictures of 64 pixels: what a row trains, what is written, resuming, the order of rows."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.commands.ablate import command as ablate
from models.commands.ablate import dasr, usrda
from models.dasr.config import load_preset
from models.data import InputError, Photo
from models.data.photographs import CAMERA, Domains
from models.usrda import config as usrda_config

TINY = [
    *("--dsn.num-block", "1", "--dsn.num-feat", "4", "--dsn.crop", "32", "--dsn.batch", "1"),
    *("--dsn.discriminator.num-feat", "4", "--dsn.schedule.steps", "2", "--dsn.schedule.at", "1"),
    *("--srn.num-block", "1", "--srn.num-feat", "4", "--srn.num-grow-ch", "4", "--srn.crop", "32", "--srn.batch", "1"),
    *("--srn.discriminator.num-feat", "4", "--srn.schedule.steps", "1", "--run.no-tensorboard"),
]
TINY_USRDA = [
    *("--num-feat", "4", "--num-conv", "1", "--num-block", "1", "--num-block-t", "1", "--num-grow-ch", "4"),
    *(option for name in "fty" for option in (f"--discriminator-{name}.num-feat", "4")),
    *(option for name in "fty" for option in (f"--discriminator-{name}.kind", "fsd")),
    *("--crop", "32", "--batch", "1", "--schedule.steps", "2", "--schedule.at", "1", "--run.no-tensorboard"),
]


def small_domains(seed: int) -> Domains:
    rng = np.random.default_rng(7)
    photos = [
        Photo(f"photo{n}", cv2.resize(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), (64, 64))) for n in range(4)
    ]
    noise = np.random.default_rng(seed)
    return Domains(photos[:2], [CAMERA.shoot(photos[2], noise)], [(CAMERA.shoot(photos[3], noise), photos[3])])


def written_weights(out: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".npy", ".state")
    }


def test_rows_are_the_papers():
    whole = load_preset("tiny")
    first, second = dasr.tables(replace(whole, source="bicubic", weighting=False))
    seen = [(row.config.dsn.input, row.config.dsn.discriminator.frequency) for row in first.rows]
    assert seen == [("bicubic", "gbfs"), ("hr", "rgb"), ("hr", "gbfs"), ("hr", "haar")]
    assert all((row.config.source, row.config.weighting) == ("dsn", True) for row in first.rows)
    assert [(row.config.source, row.config.domain_gap, row.config.weighted) for row in second.rows] == [
        ("bicubic", False, False),
        ("bicubic", True, False),
        ("dsn", False, False),
        ("dsn", True, False),
        ("dsn", False, True),
        ("dsn", True, True),
    ]
    # Every row of Table 2 has the down-sampling network of Table 1's last, and nothing else is changed anywhere.
    assert {row.config.dsn for row in second.rows} == {first.rows[3].config.dsn}
    assert {row.config.srn for row in (*first.rows, *second.rows)} == {whole.srn}
    assert second.rows[5].config == first.rows[3].config == whole
    assert [row.paper["psnr"] for row in first.rows] == [25.258, 25.204, 25.474, 26.007]
    assert [row.paper["lpips"] for row in second.rows] == [0.543, 0.390, 0.378, 0.359, 0.348, 0.336]


def test_a_run_is_written_and_not_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "bundled_domains", small_domains)
    assert ablate.main(["dasr", "--out", str(tmp_path), *TINY]) == 0
    text = (tmp_path / "dasr_ablation.md").read_text(encoding="utf-8")
    assert "This is not the paper's setting" in text and "one seed" in text and "RGB, crop 0, uint8" in text
    assert text.count("pairs of rows stand as in the paper") == 4
    assert (tmp_path / "dasr_ablation.png").stat().st_size > 10_000
    with (tmp_path / "dasr_ablation.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12 and lines[4]["row"] == "hr-haar" and lines[4]["paper_psnr"] == "26.007"
    assert all(0 < float(line["psnr"]) < 60 for line in lines)
    # The bicubic pairs and the generated ones are made once, the maps for the rows that are weighted.
    pairs = sorted(
        path.relative_to(tmp_path / "seed0") for path in tmp_path.glob("seed0/generated_*/*") if path.is_dir()
    )
    assert [str(path) for path in pairs] == ["generated_bicubic/lr", "generated_dsn/lr", "generated_dsn/maps"]

    before, capsys_text = written_weights(tmp_path), capsys.readouterr().out
    assert "done before" in capsys_text  # the down-sampling network of Table 2's rows is that of Table 1
    rows = ["--seeds", "0", "1", "--rows", "hr-haar", "dsn-weighted"]
    assert ablate.main(["dasr", "--out", str(tmp_path), *TINY, *rows]) == 0
    after = written_weights(tmp_path)
    assert before.items() <= after.items()
    assert all("seed1" in path.parts for path in after.keys() - before.keys())
    assert "±" in (tmp_path / "dasr_ablation.md").read_text(encoding="utf-8")
    assert "seed: 1" in (tmp_path / "seed1" / "hr-haar" / "config.yaml").read_text(encoding="utf-8")


def test_usrdas_rows_are_the_papers():
    whole = usrda_config.load_preset("tiny")
    (table,) = usrda.tables(whole)
    assert [(row.name, *row.cells, *row.paper.values()) for row in table.rows] == [
        ("base", "no", "no", 25.65, 0.666, 0.436),
        ("align", "yes", "no", 25.20, 0.653, 0.448),
        ("no-align", "no", "yes", 25.53, 0.663, 0.373),
        ("full", "yes", "yes", 25.14, 0.690, 0.296),
    ]
    left = [{term for term, weight in vars(row.config.loss).items() if weight} for row in table.rows]
    assert left == [{"rec"}, {"rec", "align"}, {"rec", "res", "sty", "idt", "cyc"}, set(vars(whole.loss))]
    # Nothing else is changed, and what is left of the loss has the weights that it had.
    assert {replace(row.config, loss=whole.loss) for row in table.rows} == {whole}
    assert all(
        weight in (0, getattr(whole.loss, term)) for row in table.rows for term, weight in vars(row.config.loss).items()
    )
    assert table.rows[3].config == whole


def test_a_run_of_usrda_is_written_and_not_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "bundled_domains", small_domains)
    command = ["usrda", "--out", str(tmp_path), *TINY_USRDA]
    assert ablate.main([*command, "--rows", "base", "full"]) == 0
    text = (tmp_path / "usrda_ablation.md").read_text(encoding="utf-8")
    assert "NTIRE 2020" in text and "RGB, crop 4, uint8" in text and "LR patches of 8 pixels" in text
    assert "| base | no | no |" in text and "| 25.65 | 0.666 | 0.436 |" in text and "| align |" not in text
    assert "in the paper base > full." in text and "in the paper full > base." in text  # PSNR, SSIM
    assert (tmp_path / "usrda_ablation.png").stat().st_size > 10_000
    with (tmp_path / "usrda_ablation.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["bicubic_resize", "base", "full"]
    # A row's score is that of its last weights, and the rows are told apart by what they trained.
    for line in lines[1:]:
        folder = tmp_path / "seed0" / line["row"]
        last = list(csv.DictReader((folder / "validation.csv").open(encoding="utf-8")))[-1]
        assert last["step"] == "2" and (last["psnr"], last["ssim"]) == (line["psnr"], line["ssim"])
        terms = next(csv.DictReader((folder / "losses.csv").open(encoding="utf-8")))
        assert bool(terms["rec"]) and bool(terms["cyc"]) == bool(terms["d_f"]) == (line["row"] == "full")
    assert lines[1]["psnr"] != lines[2]["psnr"]

    before = written_weights(tmp_path)
    capsys.readouterr()
    assert ablate.main([*command, "--rows", "full"]) == 0
    assert written_weights(tmp_path) == before
    assert "were done before" in capsys.readouterr().out


@pytest.mark.thorough
def test_perceptual_weights_judge_finished_rows_too(tmp_path, monkeypatch, hed_lpips):
    """A row that was trained without them is measured again, not trained again, and nothing is called LPIPS."""
    monkeypatch.setattr(ablate, "bundled_domains", small_domains)
    command = ["usrda", "--out", str(tmp_path), *TINY_USRDA, "--run.precision", "fp32", "--rows", "base"]
    assert ablate.main(command) == 0
    before = written_weights(tmp_path)
    validation = tmp_path / "seed0" / "base" / "validation.csv"
    first = list(csv.DictReader(validation.open(encoding="utf-8")))
    for _ in range(2):  # the second finds everything measured
        assert ablate.main([*command, *(f"--weights.{each}" for each in hed_lpips)]) == 0
        assert written_weights(tmp_path) == before
        rows = list(csv.DictReader(validation.open(encoding="utf-8")))
        assert [row["step"] for row in rows] == ["0", "2"] and float(rows[1]["hed-lpips"]) > 0
        assert rows[1]["psnr"] == first[1]["psnr"]
    with (tmp_path / "usrda_ablation.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [bool(float(line["hed-lpips"])) for line in lines] == [True, True]
    assert lines[1]["hed-lpips"] == rows[1]["hed-lpips"] and "lpips" not in lines[1]
    text = (tmp_path / "usrda_ablation.md").read_text(encoding="utf-8")
    assert "| row | L_align | regularisation | PSNR (dB) | SSIM | HED-LPIPS | PSNR (dB), paper |" in text
    assert "its values are not the paper's LPIPS" in text
    # Without them again, what was measured stays in the row's own table alone.
    assert ablate.main(command) == 0
    assert "HED-LPIPS" not in (tmp_path / "usrda_ablation.md").read_text(encoding="utf-8")
    assert "hed-lpips" in validation.read_text(encoding="utf-8")


def test_less_is_better_by_a_distance():
    table = dasr.tables(load_preset("tiny"))[0]
    table = replace(table, rows=table.rows[:2])  # by LPIPS the paper has bicubic-gbfs > hr-rgb
    scores = {row.name: [{"hed-lpips": value}] for row, value in zip(table.rows, (0.1, 0.2), strict=True)}
    (note,) = ablate.order_notes(table, scores)
    assert note.startswith("HED-LPIPS, best first: here bicubic-gbfs > hr-rgb; in the paper by LPIPS bicubic-gbfs > ")
    assert "1 of 1 pairs of rows stand as in the paper" in note


def test_order_is_compared_seed_by_seed():
    table = dasr.tables(load_preset("tiny"))[0]
    table = replace(table, rows=table.rows[:3])  # by PSNR the paper has hr-gbfs > bicubic-gbfs > hr-rgb

    def notes(**psnr: tuple[float, ...]) -> str:
        scores = {
            name.replace("_", "-"): [{"psnr": value, "ssim": 0.5} for value in values] for name, values in psnr.items()
        }
        return ablate.order_notes(table, scores)[0]

    one = notes(bicubic_gbfs=(25.0,), hr_rgb=(26.0,), hr_gbfs=(27.0,))
    assert "here hr-gbfs > hr-rgb > bicubic-gbfs; in the paper hr-gbfs > bicubic-gbfs > hr-rgb" in one
    assert "2 of 3 pairs of rows stand as in the paper; one seed does not tell" in one
    # Seeds move all rows together; hr-rgb is better than bicubic-gbfs only now and then.
    several = notes(bicubic_gbfs=(25.0, 28.0, 22.0), hr_rgb=(25.3, 27.9, 21.9), hr_gbfs=(27.0, 30.1, 24.1))
    assert "2 of 3 pairs" in several
    assert "2 differ by more than the spread over the seeds, 2 of these as in the paper and 0 the other" in several


def test_unusable_options(tmp_path, capsys):
    assert ablate.main([]) == 2
    assert ablate.main(["--help"]) == 0
    assert "{dasr,usrda}" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "run")]
    for arguments, message in (
        (["nothing"], "no method 'nothing', there are dasr, usrda"),
        (["dasr", *out, "--rows", "hr"], "--rows: no row is named 'hr', there are bicubic-gbfs, "),
        (["dasr", *out, "--seeds", "1", "1"], "--seeds must be different numbers"),
        (["dasr", *out, "--scale", "2"], "--scale must be 4"),
        (["usrda", *out, "--loss.idt", "0"], "--loss.idt must be positive"),
        (["dasr", *out, "--srn.perceptual.network", "vgg19"], "--srn.perceptual.network vgg19 needs --weights.vgg"),
        (["dasr", *out, "--weights.lpips-lin", "none.pth"], "--weights.lpips-alex is needed: torchvision's alexnet"),
        (["dasr", *out, "--preset", "huge"], "--preset must be one of"),
        (["dasr", *out, "--srn.crop", "30"], "--srn.crop must be a multiple of 8"),
    ):
        with pytest.raises(InputError, match=message):
            ablate.main(arguments)
    assert not (tmp_path / "run").exists()
    assert (dasr.ABLATION.title, usrda.ABLATION.title) == ("DASR", "USR-DA")
