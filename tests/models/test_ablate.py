"""The ablations on pictures of 64 pixels: what a row trains, what is written, resuming, claims, roles of pictures."""

from __future__ import annotations

import csv
import typing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.commands.ablate import command as ablate
from models.commands.ablate import dasr, report, usrda
from models.commands.ablate.parts import Claim, Trial
from models.dasr.config import load_preset
from models.data import InputError, Photo, photographs
from models.data.degradation import CAMERAS
from models.data.photographs import ROLES, Domains, miniature_domains, missing_photographs
from models.evaluate.statistics import difference
from models.evaluate.validation import MEASURES
from models.networks.lpips import COMPARED_OF_VGG16
from models.networks.weight_options import PerceptualFiles
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


KEPT = ("held_out/hr", "held_out/lr")


def small_domains(seed: int, camera: str, judged: str) -> Domains:
    del judged
    rng = np.random.default_rng(7)
    photos = [
        Photo(f"photo{n}", cv2.resize(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), (64, 64))) for n in range(4)
    ]
    taken, noise = CAMERAS[camera], np.random.default_rng(seed)
    return Domains(photos[:2], [taken.shoot(photos[2], noise)], [(taken.shoot(p, noise), p) for p in photos[2:]])


def written_weights(out: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".npy", ".state")
    }


def test_rows_are_the_papers():
    whole = load_preset("tiny")
    first, second = dasr.tables(replace(whole, source="bicubic", weighting=False))
    seen = [(row.config.dsn.input, row.config.dsn.discriminator.frequency) for row in first.rows]
    assert seen[:4] == [("bicubic", "gbfs"), ("hr", "rgb"), ("hr", "gbfs"), ("hr", "haar")]
    assert all((row.config.source, row.config.weighting) == ("dsn", True) for row in first.rows)
    shown = [(row.config.source, row.config.domain_gap, row.config.weighted) for row in second.rows[:6]]
    assert shown == [
        ("bicubic", False, False),
        ("bicubic", True, False),
        ("dsn", False, False),
        ("dsn", True, False),
        ("dsn", False, True),
        ("dsn", True, True),
    ]
    # Every row of Table 2 has the down-sampling network of Table 1's last, and nothing else is changed anywhere.
    # But a bicubic source has its own adversarial weight.
    assert {row.config.dsn for row in second.rows} == {first.rows[3].config.dsn}
    assert {row.config.srn for row in (*first.rows, *second.rows[2:6])} == {whole.srn}
    for row in second.rows[:2]:
        assert row.config.srn == replace(whole.srn, adversarial_weight=5 * whole.srn.adversarial_weight)
    assert second.rows[5].config == first.rows[3].config == whole
    assert [row.paper["psnr"] for row in first.rows[:4]] == [25.258, 25.204, 25.474, 26.007]
    assert [row.paper["lpips"] for row in second.rows[:6]] == [0.543, 0.390, 0.378, 0.359, 0.348, 0.336]
    # Ours: a fifth view, and the map's weights in other forms; the paper has no numbers of these.
    assert seen[4:] == [("bicubic", "haar")] and not first.rows[4].paper
    ours = [(row.config.srn.map_weights, row.config.domain_gap, row.config.weighted) for row in second.rows[6:]]
    assert ours == [(kind, True, True) for kind in ("normalised", "capped", "constant")]
    assert not any(row.paper for row in second.rows[6:])


@pytest.mark.parametrize("method", [dasr, usrda])
def test_claims_and_cameras_are_of_what_there_is(method):
    tables = method.tables(method.load_preset("miniature"))
    for table in tables:
        assert table.camera in CAMERAS
        names = {table.name, *(row.name for row in table.rows)}
        assert {name for claim in table.claims for name in (*claim.better, *claim.worse)} <= names
        assert all(len(claim.better) == len(claim.worse) for claim in table.claims)
    # A name stands for one configuration and one camera: its folder is shared.
    rows = [(row.name, row.config, table.camera) for table in tables for row in table.rows]
    assert len({name for name, *_ in rows}) == len(set(rows))


def test_a_run_is_written_and_not_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "miniature_domains", small_domains)
    tiny = ["--preset", "tiny", "--seeds", "0", *TINY]
    rows = ["--rows", "hr-gbfs", "hr-haar", "bicubic", "dsn", "dsn-gan-weighted"]
    assert ablate.main(["dasr", "--out", str(tmp_path), *tiny, *rows]) == 0
    text = (tmp_path / "dasr_ablation.md").read_text(encoding="utf-8")
    assert "This is not the paper's setting" in text and "one seed" in text and "RGB, crop 0, uint8" in text
    assert text.count("pairs of rows stand as in the paper") == 4
    assert "| Haar view over Gaussian view, HR input |" in text and " of 2)" in text
    assert "| hr-haar | 2, 0, 1 | 2 | 1 |" in text  # the plan: weights, updates, seeds
    assert (tmp_path / "dasr_ablation.png").stat().st_size > 10_000
    with (tmp_path / "dasr_ablation.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines[::2]] == ["bicubic_resize", *rows[1:3], "bicubic_resize", *rows[3:]]
    assert [line["picture"] for line in lines[:4]] == ["photo2", "photo3"] * 2
    assert all(0 < float(line["psnr"]) < 60 for line in lines)
    # The bicubic pairs and the generated ones are made once, the maps for the rows that are weighted.
    folder = tmp_path / "seed0" / "noise5"
    pairs = sorted(str(path.relative_to(folder)) for path in folder.glob("generated_*/*") if path.is_dir())
    assert pairs == ["generated_bicubic/lr", "generated_dsn/lr", "generated_dsn/maps"]
    # Every row's pictures are kept, and those that they are judged by.
    kept = sorted(str(path.relative_to(folder).parent) for path in folder.rglob("photo2.png"))
    assert kept == ["enlarged/bicubic", "enlarged/bicubic-resize", *(f"enlarged/{row}" for row in rows[4:]), *KEPT]
    assert (tmp_path / "seed0" / "point" / "generated" / "hr-haar" / "photo3.png").exists()
    assert f"ablate dasr --size small {chr(32).join(rows)}` and" in text

    before, said = written_weights(tmp_path), capsys.readouterr().out
    assert "done before" in said  # the down-sampling network of Table 2's rows is one
    assert said.index("the plan") < said.index("hr-gbfs of table1, seed 0")
    more = ["--preset", "tiny", *TINY, "--seeds", "0", "1", "--tables", "table1", "--rows", "hr-haar"]
    assert ablate.main(["dasr", "--out", str(tmp_path), *more]) == 0
    after = written_weights(tmp_path)
    assert before.items() <= after.items()
    assert all("seed1" in path.parts for path in after.keys() - before.keys())
    text = (tmp_path / "dasr_ablation.md").read_text(encoding="utf-8")
    assert "±" in text and "Table 2" not in text
    assert "seed: 1" in (tmp_path / "seed1" / "point" / "hr-haar" / "config.yaml").read_text(encoding="utf-8")


def test_what_only_judges_is_no_teacher():
    files = PerceptualFiles(vgg=Path("vgg"), lpips_alex=Path("alex"), lpips_lin=Path("lin"))
    trial = Trial(small_domains(0, "soft", ""), Path(), None, torch.device("cpu"), files, None)
    assert PerceptualFiles(**trial.teachers("vgg16", "none")) == PerceptualFiles(vgg=Path("vgg"))
    assert PerceptualFiles(**trial.teachers("vgg16", "lpips")) == files


def test_usrdas_rows_are_the_papers():
    whole = usrda_config.load_preset("tiny")
    table, figure, paired = usrda.tables(whole)
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

    far = usrda_config.load_preset("bicubic-source")
    assert [(row.name, *row.cells) for row in figure.rows] == [
        ("base-bicubic", "bicubic", "base"),
        ("full-bicubic", "bicubic", "full"),
        ("base", "complex", "base"),
        ("full", "complex", "full"),
    ]
    full = figure.rows[1].config
    assert (full.loss, full.synthesis.blur, full.synthesis.noise) == (far.loss, far.synthesis.blur, far.synthesis.noise)
    assert replace(full, loss=whole.loss, synthesis=whole.synthesis) == whole
    assert [row.config for row in figure.rows[2:]] == [table.rows[0].config, whole]
    printed = usrda_config.load_preset("paper-paired")
    (row,) = paired.rows
    for name in ("loss", "perceptual", "perceptual_weight", "adversarial_weight"):
        assert getattr(row.config, name) == getattr(printed, name)


@pytest.mark.thorough
def test_a_run_of_usrda_is_written_and_not_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "miniature_domains", small_domains)
    command = ["usrda", "--out", str(tmp_path), "--preset", "tiny", "--seeds", "0", *TINY_USRDA]
    assert ablate.main([*command, "--rows", "base", "full"]) == 0
    text = (tmp_path / "usrda_ablation.md").read_text(encoding="utf-8")
    assert "NTIRE 2020" in text and "RGB, crop 4, uint8" in text and "LR patches of 8 pixels" in text
    assert "| base | no | no |" in text and "| 25.65 | 0.666 | 0.436 |" in text and "| align |" not in text
    assert "in the paper base > full." in text and "in the paper full > base." in text  # PSNR, SSIM
    assert (tmp_path / "usrda_ablation.png").stat().st_size > 10_000
    with (tmp_path / "usrda_ablation.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    first = lines[: lines.index(next(line for line in lines if line["table"] == "figure6"))]
    assert [line["row"] for line in first[::2]] == ["bicubic_resize", "base", "full"]
    # A row's score is that of its last weights, and the rows are told apart by what they trained.
    for line, other in zip(first[2::2], first[3::2], strict=True):
        folder = tmp_path / "seed0" / "noise5" / line["row"]
        last = list(csv.DictReader((folder / "validation.csv").open(encoding="utf-8")))[-1]
        mean = (float(line["psnr"]) + float(other["psnr"])) / 2
        assert last["step"] == "2" and float(last["psnr"]) == pytest.approx(mean)
        terms = next(csv.DictReader((folder / "losses.csv").open(encoding="utf-8")))
        assert bool(terms["rec"]) and bool(terms["cyc"]) == bool(terms["d_f"]) == (line["row"] == "full")
    assert first[2]["psnr"] != first[4]["psnr"]

    before = written_weights(tmp_path)
    capsys.readouterr()
    assert ablate.main([*command, "--rows", "full"]) == 0
    assert written_weights(tmp_path) == before
    assert "were done before" in capsys.readouterr().out


@pytest.mark.thorough
def test_perceptual_weights_judge_finished_rows_too(tmp_path, monkeypatch, hed_lpips):
    """A row that was trained without them is judged by them, not trained again, and nothing is called LPIPS."""
    monkeypatch.setattr(ablate, "miniature_domains", small_domains)
    command = ["usrda", "--out", str(tmp_path), "--preset", "tiny", "--seeds", "0", *TINY_USRDA]
    command += ["--run.precision", "fp32", "--tables", "table3", "--rows", "base"]
    assert ablate.main(command) == 0
    before = written_weights(tmp_path)
    validation = tmp_path / "seed0" / "noise5" / "base" / "validation.csv"
    first = list(csv.DictReader(validation.open(encoding="utf-8")))
    assert ablate.main([*command, *(f"--weights.{each}" for each in hed_lpips)]) == 0
    assert written_weights(tmp_path) == before
    assert list(csv.DictReader(validation.open(encoding="utf-8"))) == first  # whose judges are PSNR and SSIM
    with (tmp_path / "usrda_ablation.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [bool(float(line["hed-lpips"])) for line in lines] == [True] * 4 and "lpips" not in lines[1]
    text = (tmp_path / "usrda_ablation.md").read_text(encoding="utf-8")
    assert "| row | L_align | regularisation | PSNR (dB) | SSIM | HED-LPIPS | PSNR (dB), paper |" in text
    assert "its values are not the paper's LPIPS" in text
    assert ablate.main(command) == 0
    assert "HED-LPIPS" not in (tmp_path / "usrda_ablation.md").read_text(encoding="utf-8")


def test_order_is_compared_seed_by_seed():
    table = dasr.tables(load_preset("tiny"))[0]
    table = replace(table, rows=table.rows[:3])  # by PSNR the paper has hr-gbfs > bicubic-gbfs > hr-rgb

    def notes(**psnr: tuple[float, ...]) -> str:
        scores = {
            name.replace("_", "-"): [[{"psnr": value, "ssim": 0.5}] for value in values]
            for name, values in psnr.items()
        }
        return report.order_notes(table, scores)[0]

    one = notes(bicubic_gbfs=(25.0,), hr_rgb=(26.0,), hr_gbfs=(27.0,))
    assert "here hr-gbfs > hr-rgb > bicubic-gbfs; in the paper hr-gbfs > bicubic-gbfs > hr-rgb" in one
    assert "2 of 3 pairs of rows stand as in the paper; one seed does not tell" in one
    # Seeds move all rows together; hr-rgb is better than bicubic-gbfs only now and then.
    several = notes(bicubic_gbfs=(25.0, 28.0, 22.0), hr_rgb=(25.3, 27.9, 21.9), hr_gbfs=(27.0, 30.1, 24.1))
    assert "2 of 3 pairs" in several
    assert "2 differ by more than the spread over the seeds, 2 of these as in the paper and 0 the other" in several


def test_a_gain_is_that_of_each_picture_and_seed():
    """Pictures and seeds move all rows together; the pairs do not care. Rows' scores: seeds x pictures."""
    better = [
        [{"psnr": 20.0, "ssim": 0.5}, {"psnr": 30.0, "ssim": 0.7}],
        [{"psnr": 23.0, "ssim": 0.5}, {"psnr": 33.5, "ssim": 0.7}],
    ]
    worse = [
        [{"psnr": 19.0, "ssim": 0.5}, {"psnr": 29.5, "ssim": 0.8}],
        [{"psnr": 22.0, "ssim": 0.5}, {"psnr": 33.0, "ssim": 0.6}],
    ]
    results = {"better": better, "worse": worse, "third": worse, "fourth": better}
    found = report.gain(Claim("", ("better",), ("worse",)), results, "psnr")
    assert (found.mean, found.above, found.pairs) == (0.75, 4, 4)
    # t of three degrees is 3.182; the deviation of 1, 0.5, 1, 0.5 is 0.2887.
    assert found.half_width == pytest.approx(3.182446 * np.std([1, 0.5, 1, 0.5], ddof=1) / 2, rel=1e-6)
    assert found.clear
    ssim = report.gain(Claim("", ("better",), ("worse",)), results, "ssim")
    assert ssim.mean == pytest.approx(0) and not ssim.clear and (ssim.above, ssim.pairs) == (1, 4)
    # A difference of differences: the gain here minus the gain there.
    twice = report.gain(Claim("", ("better", "third"), ("worse", "fourth")), results, "psnr")
    assert (twice.mean, twice.half_width) == (0, 0)


def test_less_is_better_by_a_distance():
    table = dasr.tables(load_preset("tiny"))[0]
    table = replace(table, rows=table.rows[:2])  # by LPIPS the paper has bicubic-gbfs > hr-rgb
    results = {row.name: [[{"hed-lpips": value}]] for row, value in zip(table.rows, (0.1, 0.3), strict=True)}
    (note,) = report.order_notes(table, results)
    assert note.startswith("HED-LPIPS, best first: here bicubic-gbfs > hr-rgb; in the paper by LPIPS bicubic-gbfs > ")
    assert "1 of 1 pairs of rows stand as in the paper" in note
    found = report.gain(Claim("", ("bicubic-gbfs",), ("hr-rgb",)), results, "hed-lpips")
    assert found.mean == pytest.approx(0.2) and np.isnan(found.half_width) and not found.clear
    assert MEASURES["hed-lpips"].lower_is_better


def test_intervals_have_students_quantiles():
    """Those of printed tables, two-sided."""
    for freedom, quantile in ((1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (30, 2.0423), (120, 1.9799)):
        pairs = np.random.default_rng(freedom).normal(0.3, 1, freedom + 1)
        found = difference(pairs)
        assert found.mean == pytest.approx(pairs.mean())
        assert found.half_width == pytest.approx(quantile * pairs.std(ddof=1) / np.sqrt(freedom + 1), rel=1e-4)


def test_photographs_for_choosing_and_for_reporting_are_others():
    """And neither is trained on; of those that are, no place is both clean HR and real LR."""
    names = [name for roles in ROLES.values() for name in roles]
    assert len(set(names)) == len(names)
    assert {role for roles in ROLES.values() for role in roles.values()} == {"training", "validation", "held-out"}
    seen = {}
    for judged in ("validation", "held-out"):
        domains = miniature_domains(0, "point", judged)
        assert domains.held_out
        seen[judged] = {hr.name for _, hr in domains.held_out}
        seen["training"] = {photo.name for photo in domains.clean_hr}
        assert [photo.name for photo in domains.clean_hr] == [photo.name for photo in domains.real_lr]
    assert sum(map(len, seen.values())) == len(set().union(*seen.values()))
    whole = {photo.name: photo.pixels for photo in photographs._photographs("training")}
    for clean, real in zip(domains.clean_hr, domains.real_lr, strict=True):
        height, width = whole[clean.name].shape[:2]
        assert clean.pixels.shape[1] + 4 * real.pixels.shape[1] <= width
        np.testing.assert_array_equal(clean.pixels, whole[clean.name][: height - height % 8, : clean.pixels.shape[1]])
        right = whole[clean.name][:, width // 2 :]
        expected = right[1 : 4 * real.pixels.shape[0] : 4, 1 : 4 * real.pixels.shape[1] : 4]
        assert abs(real.pixels.astype(float) - expected).mean() < 3  # camera "point" takes these, with noise of 1.5


def test_a_wheel_that_is_not_there_is_done_without(monkeypatch):
    monkeypatch.setattr(photographs, "_installed", lambda wheel: wheel.package != "sklearn")
    (line,) = missing_photographs()
    assert line == "without scikit-learn the miniature does without flower.jpg, china.jpg: pip install scikit-learn"
    names = [hr.name for _, hr in miniature_domains(0, "point", "held-out").held_out]
    assert names == ["motorcycle_left", "rocket", "grace_hopper"]


def test_without_weights_there_is_no_perceptual_loss(vgg_file):
    given = load_preset("miniature")
    vgg19 = replace(given, srn=replace(given.srn, perceptual=replace(given.srn.perceptual, network="vgg19")))
    assert dasr.ABLATION.prepare(vgg19, PerceptualFiles(vgg=vgg_file)) == vgg19
    without = dasr.ABLATION.prepare(given, PerceptualFiles())
    assert without.srn.perceptual.network == "none" and without.dsn == given.dsn
    assert (without.srn.content_weight, without.srn.adversarial_weight) == (1.0, 0.1 * given.srn.adversarial_weight)
    tiny = load_preset("tiny")
    assert dasr.ABLATION.prepare(tiny, PerceptualFiles()) == tiny
    with pytest.raises(InputError, match=r"--weights.vgg: .*none\.pth"):
        dasr.ABLATION.prepare(vgg19, PerceptualFiles(vgg=vgg_file.with_name("none.pth")))


@pytest.mark.parametrize("method", [dasr, usrda])
def test_the_teacher_is_not_the_judge(method):
    """No layer that LPIPS on VGG-16 compares is trained on."""
    config = method.load_preset("miniature")
    perceptual = config.perceptual if method is usrda else config.srn.perceptual
    assert perceptual.network == "vgg16" and perceptual.scaled
    assert not {layer[4:] for layer in perceptual.layers} & {layer[4:] for layer in COMPARED_OF_VGG16}


def test_every_camera_can_be_chosen():
    choices, _ = typing.get_args(typing.get_type_hints(ablate.AblateCommand)["camera"])
    assert list(typing.get_args(choices)) == list(CAMERAS)
    options = ["--out", "x", "--camera", "regions", "--tables", "table1"]
    command = ablate.parse("dasr", dasr.ABLATION, options)
    assert [table.camera for table in ablate._selected(dasr.tables(command.config), command)] == ["regions"]


def test_sizes():
    """What is given on the command line stands; the size is that of the rest."""
    sized = {
        name: ablate.parse("dasr", dasr.ABLATION, ["--out", "x", "--size", name, "--srn.batch", "3"])
        for name in ablate.SIZES
    }
    assert [len(command.seeds) for command in sized.values()] == [1, 5, 2]
    assert [command.config.srn.schedule.updates for command in sized.values()] == [30, 300, 600]
    assert [command.config.dsn.num_feat for command in sized.values()] == [16, 16, 32]
    assert {command.config.srn.batch for command in sized.values()} == {3}
    with pytest.raises(SystemExit):
        ablate.parse("dasr", dasr.ABLATION, ["--out", "x", "--size", "huge"])


def test_unusable_options(tmp_path, capsys):
    assert ablate.main([]) == 2
    assert ablate.main(["--help"]) == 0
    assert "{dasr,usrda}" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "run")]
    for arguments, message in (
        (["nothing"], "no method 'nothing', there are dasr, usrda"),
        (["dasr", *out, "--rows", "hr"], "--rows: no row of these tables is named 'hr', there are bicubic-gbfs, "),
        (["dasr", *out, "--tables", "table9"], "--tables: no table is named 'table9', there are table1, table2"),
        (["dasr", *out, "--tables", "table1", "--rows", "dsn"], "--rows: no row of these tables is named"),
        (["dasr", *out, "--seeds", "1", "1"], "--seeds must be different numbers"),
        (["dasr", *out, "--scale", "2"], "--scale must be 4"),
        (["dasr", *out, "--weights.lpips-lin", "none.pth"], "--weights.lpips-alex is needed: torchvision's alexnet"),
        (["usrda", *out, "--loss.idt", "0"], "--loss.idt must be positive"),
        (["dasr", *out, "--preset", "huge"], "--preset must be one of"),
        (["dasr", *out, "--srn.crop", "30"], "--srn.crop must be a multiple of 8"),
    ):
        with pytest.raises(InputError, match=message):
            ablate.main(arguments)
    assert not (tmp_path / "run").exists()
    assert (dasr.ABLATION.title, usrda.ABLATION.title) == ("DASR", "USR-DA")
