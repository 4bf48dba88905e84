"""The demo end to end in a few updates, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import yaml

from models.__main__ import main
from models.commands.demo import command
from models.commands.demo.command import DemoOptions, run_demo
from models.commands.demo.report import Results
from models.dasr.config import DASRConfig, PretrainedSchedule, load_preset
from models.data import InputError, read_photo
from models.data.photographs import CLEAN_HR, HELD_OUT, REAL_LR, bundled_domains
from models.evaluate.validation import Judge
from models.networks import load_weights
from models.train.schedule import ScheduleConfig
from models.usrda.config import load_preset as load_usrda_preset


def tiny() -> DASRConfig:
    """The demo's configuration with networks of four features and a few updates."""
    config = load_preset("tiny")
    small = {"num_feat": 4, "num_block": 1, "crop": 64, "batch": 1}
    critic = {"num_feat": 4}
    return replace(
        config,
        dsn=replace(
            config.dsn,
            **small,
            discriminator=replace(config.dsn.discriminator, **critic),
            schedule=PretrainedSchedule(2, "linear_from", (1,), 0),
        ),
        srn=replace(
            config.srn,
            **small,
            num_grow_ch=4,
            discriminator=replace(config.srn.discriminator, **critic),
            schedule=PretrainedSchedule(3, "linear_from", (1,), 0),
        ),
        run=replace(config.run, tensorboard=False, report_every=1),
    )


def test_the_bundled_photographs_play_one_role_each():
    roles = [*CLEAN_HR, *REAL_LR, *HELD_OUT]
    assert len(set(roles)) == len(roles)
    for lr, hr in bundled_domains(0).held_out:
        assert tuple(4 * side for side in lr.pixels.shape[:2]) == hr.pixels.shape[:2]


@pytest.mark.long
def test_a_run_leaves_everything(tmp_path):
    code = run_demo(DemoOptions(tiny(), name="tiny", root=tmp_path, device="cpu", timing_pairs=1))
    folder = tmp_path / "tiny"
    record = json.loads((folder / "metrics.json").read_text())
    assert code == (0 if record["learned"] else 1)
    assert record["mean"]["bicubic"]["psnr"] == pytest.approx(record["mean"]["ours, step 0"]["psnr"], abs=0.01)
    assert [point["update"] for point in record["held_out_curve"]] == [0, 3]
    assert len(record["milliseconds"]) == 6
    for picture in ("sheet", "distance_maps", "curves"):
        assert min(read_photo(folder / "visualization" / f"{picture}.png").pixels.shape[:2]) > 300
    for step, stage in ((2, "dsn"), (3, "srn")):
        for name in ("generator", "discriminator"):
            assert load_weights(folder / stage / "models" / f"{step}_{name}.safetensors")
    assert yaml.safe_load((folder / "config.yaml").read_text())["srn"]["num_grow_ch"] == 4
    assert "Held-out" in next(folder.glob("train_tiny_*.log")).read_text()
    assert len(list((folder / "generated" / "maps").glob("*.npy"))) == len(CLEAN_HR)


@pytest.mark.thorough
def test_a_second_run_is_the_same_bit_for_bit_and_the_first_is_kept(tmp_path):
    torch.manual_seed(1)
    for _ in range(2):
        run_demo(DemoOptions(tiny(), name="tiny", root=tmp_path, device="cpu", timing_pairs=0))
    runs = sorted(tmp_path.iterdir())
    assert len(runs) == 2
    for name in ("dsn/models/2_generator", "dsn/models/2_discriminator", "srn/models/3_generator"):
        first, second = ((run / f"{name}.safetensors").read_bytes() for run in runs)
        assert first == second, name


def test_refusals_name_what_is_wrong_and_write_nothing(tmp_path, capsys):
    for arguments, message in (
        (["--name=a/b"], "--name must be a plain folder name"),
        (["--method=srgan"], "--method must be one of dasr, usrda, got 'srgan'"),
        (["--scale=2"], "--scale must be 4, that of the bundled pictures, got 2"),
        (["--method=usrda", "--crop=66"], "--crop must be a multiple of 4"),
        (["--srn.crop=9"], "--srn.crop must be a multiple of 8"),
        (["--dsn.schedule.steps=0"], "--dsn.schedule.steps must be from 1 to 1000000000, got 0"),
    ):
        assert main(["demo", f"--root={tmp_path / 'runs'}", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write to the folder .*file/tiny"):
        run_demo(DemoOptions(tiny(), name="tiny", root=tmp_path / "file", device="cpu"))


@pytest.mark.parametrize("method", ["dasr", "usrda"])
def test_with_a_teacher_the_demo_has_a_perceptual_loss(method, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "run_demo", lambda options: seen.append(options) or 0)
    given = [f"--method={method}"]
    for more in ([], ["--weights.vgg", "vgg16.pth"], ["--weights.vgg=vgg16.pth", "--preset=tiny", "--camera=soft"]):
        assert main(["demo", *given, *more]) == 0
    assert [command.DEMOS[method].teacher(each.config) for each in seen] == ["none", "vgg16", "none"]
    assert [(each.preset, each.camera) for each in seen] == [
        ("tiny", "soft"),
        ("miniature", "noise5"),
        ("tiny", "soft"),
    ]


def test_what_must_get_better_is_what_was_trained_for():
    before, after = ({"psnr": 20.0, "ssim": 0.5, "lpips": 0.3}, {"psnr": 19.0, "ssim": 0.5, "lpips": 0.2998})
    judge = Judge(4, lpips=NamedTuple("Network", [("name", str)])("LPIPS"))
    results = Results(judge, True, [before], [before], [after])
    assert results.decisive == ("lpips",) and results.learned()
    assert not Results(judge, True, [before], [after], [before]).learned()
    for other in (
        Results(judge, False, [before], [before], [after]),
        Results(Judge(4), True, [before], [before], [after]),
    ):
        assert other.decisive == ("psnr", "ssim") and not other.learned()


def test_the_commands_are_listed_and_an_unknown_one_is_refused(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("demo", "dasr", "upscale", "evaluate", "ablate", "profile"))
    assert main([]) == 2
    assert main(["train"]) == 2
    assert "no command 'train'" in capsys.readouterr().err


@pytest.mark.thorough
def test_usrda_leaves_everything_too(tmp_path):
    config = load_usrda_preset("tiny")
    small = {f"discriminator_{name}": replace(config.discriminator_f, num_feat=4) for name in "fty"}
    config = replace(
        config,
        **{"num_feat": 4, "num_block": 1, "num_grow_ch": 4, "crop": 64, "batch": 1, **small},
        schedule=ScheduleConfig(3, "linear_from", (1,)),
        run=replace(config.run, precision="fp32", tensorboard=False, report_every=1),
    )
    code = run_demo(DemoOptions(config, method="usrda", name="tiny", root=tmp_path, device="cpu", timing_pairs=1))
    folder = tmp_path / "tiny"
    record = json.loads((folder / "metrics.json").read_text())
    assert code == (0 if record["learned"] else 1)
    assert record["mean"]["bicubic"]["psnr"] == pytest.approx(record["mean"]["ours, step 0"]["psnr"], abs=0.01)
    assert [point["update"] for point in record["held_out_curve"]] == [0, 3]
    assert [each["what"] for each in record["milliseconds"]] == ["whole step", "whole step, bf16 autocast"]
    for picture in ("sheet", "domains", "curves"):
        assert min(read_photo(folder / "visualization" / f"{picture}.png").pixels.shape[:2]) > 300
    for name in ("generator", "discriminator_f", "discriminator_t", "discriminator_y"):
        assert load_weights(folder / "models" / f"3_{name}.safetensors")
