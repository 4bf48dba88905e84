"""`python -m models dasr`: presets, all stages on folders of pictures, ablation switches, kill and resume, ranks."""

from __future__ import annotations

import re
import resource
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers.marks import thorough
from helpers.training import equal, finish, flat, load, stop_at, write_noise

from models.__main__ import main
from models.commands.dasr import parse
from models.config import dump_yaml
from models.dasr.build import WeightFiles, build_dsn_step, build_srn_step
from models.dasr.config import DASRConfig, load_preset, presets
from models.dasr.stages import DASRJob, load_distance
from models.data import InputError
from models.networks import LPIPS
from models.train.run import read_table

ROOT = Path(__file__).parents[2]
# A run of a second: four updates of each stage on 16-pixel LR patches.
SHORT = [
    f"--{option}"
    for option in (
        *("preset=tiny", "device=cpu", "run.no-tensorboard"),
        *("run.report-every=2", "run.save-every=2", "run.validate-every=4"),
        *("dsn.crop=64", "dsn.batch=2", "dsn.num-feat=8", "dsn.num-block=1", "dsn.discriminator.num-feat=8"),
        *("srn.crop=64", "srn.batch=2", "srn.num-feat=8", "srn.num-block=1", "srn.discriminator.num-feat=8"),
        *("srn.num-grow-ch=8", "dsn.schedule.steps=4", "srn.schedule.steps=4"),
    )
]


def run(*arguments: str) -> int:
    return main(["dasr", *arguments])


def weights(folder: Path, stage: str, name: str = "generator", step: int = 4) -> dict[str, torch.Tensor]:
    return load(folder / stage, name, step)


def test_all_stages_leave_what_they_promise(folders, tmp_path):
    out = tmp_path / "out"
    pairs = [f"--val-hr={tmp_path / 'val_hr'}", f"--val-lr={tmp_path / 'val_lr'}"]
    assert run(*SHORT, *folders, *pairs, f"--out={out}") == 0
    for stage in ("dsn", "srn"):
        assert weights(out, stage) and weights(out, stage, "discriminator")
        assert [row["step"] for row in read_table(out / stage / "validation.csv")] == [0, 4]
        assert {row["step"] for row in read_table(out / stage / "losses.csv")} == {2, 4}
        assert (out / stage / "visualization" / "4.png").stat().st_size > 10_000
    assert sorted(path.name for path in (out / "generated" / "lr").iterdir()) == ["0.png", "1.png", "2.png"]
    assert cv2.imread(str(out / "generated" / "lr" / "0.png")).shape == (22, 25, 3)  # 90 x 101 is cut to 88 x 100
    assert np.load(out / "generated" / "maps" / "0.npy").shape == (11, 12)
    assert yaml.safe_load((out / "config.yaml").read_text())["srn"]["num_grow_ch"] == 8
    assert parse([*SHORT, *folders, "--out=x", f"--preset={out / 'config.yaml'}"]).config.srn.num_grow_ch == 8
    # Again: everything is there, nothing is trained.
    before = (out / "srn" / "models" / "4_generator.safetensors").stat().st_mtime_ns
    assert run(*SHORT, *folders, *pairs, f"--out={out}") == 0
    assert (out / "srn" / "models" / "4_generator.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "switches",
    [
        thorough(["--source=bicubic", "--no-domain-gap", "--no-weighting"]),
        ["--source=bicubic", "--domain-gap"],
        thorough(["--no-domain-gap", "--srn.weigh-features"]),
        thorough(["--no-weighting", "--frequency=gbfs", "--dsn-input=bicubic"]),
        thorough(["--frequency=rgb", "--maps.on-the-fly"]),
        ["--frequency=gbfs", "--maps.smoothing=none", "--dsn.discriminator.kind=paper", "--maps.padding=zero"],
        thorough(["--scale=2", "--dsn.network=dsn", "--srn.crop=32", "--dsn.crop=32", "--run.ema=0.9"]),
        ["--scale=1", "--srn.crop=32", "--dsn.crop=16", "--run.precision=bf16"],
        thorough(
            [
                "--dsn.discriminator.frequency-contrast=10",
                "--dsn.discriminator.norm=none",
                "--srn.map-weights=normalised",
            ]
        ),
        thorough(["--maps.on-the-fly", "--srn.map-weights=capped", "--srn.map-cap=1.5"]),
        thorough(["--dsn.discriminator.gan=relativistic", "--srn.discriminator.gan=least_squares", "--run.recompute"]),
    ],
    ids=lambda switches: " ".join(switches),
)
def test_every_switch_runs_through(folders, tmp_path, switches):
    out = tmp_path / "out"
    assert run(*SHORT, *folders, *switches, f"--out={out}") == 0
    assert weights(out, "srn")
    assert ("--source=bicubic" in switches) != (out / "dsn").exists()
    mapped = not {"--source=bicubic", "--no-weighting", "--maps.on-the-fly"} & set(switches)
    assert (out / "generated" / "maps").exists() == mapped


@pytest.mark.thorough
def test_stages_one_by_one_are_the_whole(folders, tmp_path):
    assert run(*SHORT, *folders, f"--out={tmp_path / 'whole'}") == 0
    for stage in ("dsn", "maps", "srn"):
        assert run(*SHORT, *folders, f"--out={tmp_path / 'parts'}", f"--stage={stage}") == 0
    assert equal(weights(tmp_path / "whole", "srn"), weights(tmp_path / "parts", "srn"))


def test_maps_go_on_where_they_were(folders, tmp_path):
    out = tmp_path / "out"
    run(*SHORT, *folders, f"--out={out}", "--stage=dsn")
    run(*SHORT, *folders, f"--out={out}", "--stage=maps")
    kept, lost = (out / "generated" / "lr" / f"{index}.png" for index in (0, 1))
    time_of_kept, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    run(*SHORT, *folders, f"--out={out}", "--stage=maps")
    assert kept.stat().st_mtime_ns == time_of_kept
    assert lost.read_bytes() == content


@pytest.mark.thorough
def test_the_first_update_measures_if_asked(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("SRKERNELS_CACHE", str(tmp_path / "cache"))
    command = ["-m", "models", "dasr", *SHORT, *folders, f"--out={tmp_path / 'out'}"]
    said = finish([*command, "--run.tune"])
    for stage in ("dsn", "srn"):
        assert re.search(rf"{stage}: \d+ classes of calls measured: (native|reference) \d", said)
    assert len(list((tmp_path / "cache").glob("*.json"))) == 1
    again = [f"--out={tmp_path / 'again'}" if "--out" in word else word for word in command]
    assert "measured" not in finish(again)


@pytest.mark.thorough
def test_killed_at_any_moment_and_resumed_the_weights_are_the_same(folders, tmp_path):
    """kill -9 as soon as the second checkpoint is there; from the last good one on every bit is the same."""
    command = ["-m", "models", "dasr", *SHORT, *folders, "--run.save-every=1", "--dsn.schedule.steps=6"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    stop_at([*command, f"--out={cut}"], cut / "dsn" / "training_states" / "2.state", signal.SIGKILL)
    for out in (cut, whole):
        assert ("dsn: resumed behind update" in finish([*command, f"--out={out}"])) == (out == cut)
    for name in ("generator", "discriminator"):
        assert equal(weights(whole, "dsn", name, 6), weights(cut, "dsn", name, 6)), name
        assert equal(weights(whole, "srn", name), weights(cut, "srn", name)), name


@pytest.mark.thorough
def test_two_ranks_are_one(folders, tmp_path):
    """The same global batch on two ranks and on one: the same weights, up to the order of a sum."""
    # Networks that start as bicubic start with an L1 of rounding errors, whose sign is chance, and the gradient of a
    # bias in front of a norm is nothing but rounding; Adam makes whole steps of both.
    start = ["--dsn.no-bicubic-skip", "--srn.no-bicubic-skip", "--dsn.discriminator.no-bias"]
    command = ["-m", "models", "dasr", *SHORT, *start, *folders]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29577"]
    for name, launcher, more in (("one", [], []), ("two", torchrun, []), ("other", [], ["--run.seed=1"])):
        finish([*launcher, *command, *more, f"--out={tmp_path / name}"])
    for stage in ("dsn", "srn"):
        for name in ("generator", "discriminator"):
            end = {ranks: flat(weights(tmp_path / ranks, stage, name)) for ranks in ("one", "two", "other")}
            moved = float((end["one"] - flat(weights(tmp_path / "one", stage, name, 2))).norm())
            assert float((end["two"] - end["one"]).norm()) < 0.01 * moved, (stage, name)
            assert float((end["other"] - end["one"]).norm()) > moved, (stage, name)


def test_sigterm_saves_and_exits(folders, tmp_path):
    out = tmp_path / "out"
    command = ["-m", "models", "dasr", *SHORT, *folders, f"--out={out}", "--dsn.schedule.steps=100000"]
    state = out / "dsn" / "training_states" / "2.state"
    code, said = stop_at([*command, "--run.workers=2"], state, signal.SIGTERM)
    assert code == 143
    step = int(said.split("behind update ")[1].split()[0])
    assert (out / "dsn" / "training_states" / f"{step}.state").exists()


def test_a_bad_picture_is_named_and_too_many_stop_the_run(folders, tmp_path, capsys):
    broken = tmp_path / "hr" / "broken.png"
    broken.write_bytes(b"\x89PNG not a picture")
    assert run(*SHORT, *folders, f"--out={tmp_path / 'out'}") == 2
    assert str(broken) in capsys.readouterr().err
    assert run(*SHORT, *folders, f"--out={tmp_path / 'out'}", "--run.max-bad-images=0.5") == 0
    assert f"left out: cannot read the image {broken}" in " ".join(capsys.readouterr().out.split())


def test_refusals_name_what_is_wrong(folders, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    for arguments, message in (
        (
            ["--preset=nothing"],
            "--preset must be one of fssr, miniature, official-aim, official-ntire, official-realsr, paper, tiny",
        ),
        (["--dsn.crop=60"], "--dsn.crop must be a multiple of 8"),
        (
            ["--srn.crop=32", "--scale=1", "--dsn.crop=8", "--srn.crop=16"],
            "--srn.discriminator does not work on crops of 16",
        ),
        (["--srn.batch=0"], "--srn.batch must be from 1 to 4096, got 0"),
        (["--val-hr=x"], "--val-hr and --val-lr go together"),
        (["--stage=srn"], "no such folder: "),
        (["--stage=maps"], "no weights of a generator in "),
        (["--srn.perceptual.network=vgg16"], "--srn.perceptual.layers: VGG16Features: layers must be some of conv1_1"),
        (["--dsn.perceptual.network=vgg19"], "--weights.vgg is needed: torchvision's vgg19-dcbb9e9d.pth"),
        (["--hr=/nowhere"], "no such folder: /nowhere"),
    ):
        assert run(*SHORT, *folders, out, *arguments) == 2, arguments
        assert message in capsys.readouterr().err, arguments


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("crop", "large", r"dsn\.crop must be int, got 'large'"),
        ("extra", 1, r"unknown key dsn\.extra"),
        ("input", "lr", r"dsn\.input must be one of hr, bicubic, got 'lr'"),
        ("betas", [0.9], r"dsn\.betas must be .*, got \[0\.9\]"),
        ("learning_rate", "1e-3", None),
    ],
)
def test_a_wrong_line_of_a_preset_is_named(tmp_path, key, value, message):
    mapping = yaml.safe_load((ROOT / "models/dasr/presets/tiny.yaml").read_text())
    mapping["dsn"][key] = value
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(mapping))
    if message is None:
        assert load_preset(str(tmp_path / "own.yaml")) == load_preset("tiny")
        return
    with pytest.raises(InputError, match=message):
        load_preset(str(tmp_path / "own.yaml"))


def test_other_settings_than_those_of_the_checkpoint_are_refused(folders, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    run(*SHORT, *folders, out, "--stage=dsn")
    assert run(*SHORT, *folders, out, "--stage=dsn", "--dsn.learning-rate=0.5") == 1
    assert "dsn.learning_rate was 0.001, is 0.5" in capsys.readouterr().err
    assert run(*SHORT, *folders, out, "--stage=dsn", "--dsn.learning-rate=0.5", "--resume=never") == 0
    assert len(list((tmp_path / "out").glob("dsn_archived_*"))) == 1
    assert run(*SHORT, *folders, out, "--stage=dsn", "--dsn.learning-rate=0.5", "--dsn.schedule.steps=6") == 0
    assert weights(tmp_path / "out", "dsn", step=6)


@pytest.mark.thorough
def test_other_pictures_are_noticed_and_moved_ones_are_not(folders, tmp_path, capsys):
    """By stage dsn, by the pairs, and by stage srn that learns from them."""
    arguments = [*SHORT, f"--lr={tmp_path / 'lr'}", f"--out={tmp_path / 'out'}"]
    assert run(*arguments, f"--hr={tmp_path / 'hr'}") == 0
    (tmp_path / "hr").rename(tmp_path / "moved")
    arguments.append(f"--hr={tmp_path / 'moved'}")
    assert run(*arguments, "--srn.schedule.steps=6") == 0
    assert weights(tmp_path / "out", "srn", step=6)
    write_noise(tmp_path / "moved" / "1.png", 90, 104, 9)
    for stage in ("dsn", "srn"):
        capsys.readouterr()
        if stage == "srn":
            assert run(*arguments, "--stage=maps") == 0
            assert "holds pairs made of other pictures" in capsys.readouterr().out
        assert run(*arguments, "--srn.schedule.steps=8", f"--stage={stage}") == 1
        assert re.search(r"hr was 3 images \w{16}, is 3 images \w{16}", capsys.readouterr().err)
    assert run(*arguments, "--srn.schedule.steps=8", "--run.other-pictures=accept") == 0
    assert weights(tmp_path / "out", "srn", step=8)


def test_pairs_of_other_settings_or_weights_are_made_anew(folders, tmp_path, capsys):
    out = tmp_path / "out"
    run(*SHORT, *folders, f"--out={out}")
    by_dsn = (out / "generated" / "lr" / "0.png").read_bytes()
    run(*SHORT, *folders, f"--out={out}", "--stage=maps", "--source=bicubic")
    assert (out / "generated" / "lr" / "0.png").read_bytes() != by_dsn
    assert len(list(out.glob("generated_archived_*"))) == 1
    run(*SHORT, *folders, f"--out={out}", "--stage=maps")
    assert (out / "generated" / "lr" / "0.png").read_bytes() == by_dsn
    assert run(*SHORT, *folders, f"--out={out}", "--stage=maps", "--dsn.schedule.steps=6") == 2
    assert "stage dsn stopped behind update 4 of 6: train it to its end first" in capsys.readouterr().err


def test_a_picture_too_small_for_the_sr_network_has_no_pair(folders, tmp_path, capsys):
    """Also where it would be among the first, which are drawn, and where nothing is trained on its size."""
    write_noise(tmp_path / "hr" / "00.png", 6, 6, 5)
    write_noise(tmp_path / "hr" / "01.png", 60, 60, 5)
    out = tmp_path / "out"
    assert run(*SHORT, *folders, f"--out={out}", "--run.max-bad-images=0.5") == 0
    assert sorted(path.stem for path in (out / "generated" / "lr").iterdir()) == ["0", "1", "2"]
    said = " ".join(capsys.readouterr().out.split())
    assert "00.png is too small: 6 x 6 pixels" in said
    assert "3 of 5 pictures have their pair" in said


def test_a_grey_picture_is_treated_as_the_option_says_in_every_stage(folders, tmp_path, capsys):
    grey = tmp_path / "hr" / "3.png"
    cv2.imwrite(str(grey), np.full((90, 101), 128, np.uint8))
    bicubic = [*SHORT, *folders, "--source=bicubic", "--stage=maps", "--run.max-bad-images=0.5"]
    for policy, code, made in (("stop", 2, False), ("skip", 0, False), ("convert", 0, True)):
        out = tmp_path / policy
        assert run(*bicubic, f"--out={out}", f"--run.grey-images={policy}") == code, policy
        assert (out / "generated" / "lr" / "3.png").exists() == made
        said = capsys.readouterr()
        assert (f"{grey} is grey" in said.out + said.err) == (not made)


def test_a_published_discriminator_judges_with_its_own_kernel(folders, tmp_path):
    out = tmp_path / "out"
    run(*SHORT, *folders, f"--out={out}", "--stage=dsn", "--frequency=gbfs", "--dsn.discriminator.frequency-kernel=9")
    command = parse([*SHORT, *folders, f"--out={out}", "--frequency=gbfs"])
    job = DASRJob(command.resolved(), None, WeightFiles(), SimpleNamespace(folder=out), torch.device("cpu"))
    assert load_distance(job).view.kernel == 9
    with pytest.raises(InputError, match="was trained on gbfs, the run says --frequency haar"):
        load_distance(replace(job, config=parse([*SHORT, *folders, f"--out={out}"]).resolved()))
    other = parse([*SHORT, *folders, f"--out={out}", "--frequency=gbfs", "--dsn.discriminator.frequency-contrast=10"])
    with pytest.raises(InputError, match=r"with a contrast of 0\.0, the run says .*-contrast 10\.0"):
        load_distance(replace(job, config=other.resolved()))


@pytest.mark.thorough
def test_the_scale_of_features_is_measured_on_what_is_compared(folders, tmp_path, vgg_file, capsys):
    """Stage dsn compares LR pictures, stage srn HR ones; a run that goes on finds the same numbers."""
    out = tmp_path / "out"
    scaled = [
        *(f"--{stage}.perceptual.network=vgg19" for stage in ("dsn", "srn")),
        *("--dsn.perceptual.scaled", "--dsn.perceptual.layers", "relu2_1", "--srn.perceptual.scaled"),
        *("--srn.perceptual.layers", "relu1_2", "conv2_1", f"--weights.vgg={vgg_file}"),
    ]
    said = []
    for steps in (2, 4):
        steps_of = [f"--{stage}.schedule.steps={steps}" for stage in ("dsn", "srn")]
        assert run(*SHORT, *folders, *scaled, *steps_of, f"--out={out}") == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "mean activation" in line]
        said.append(lines)
    (dsn, srn), (dsn_again, _) = said
    assert "of relu2_1 " in dsn and "of relu1_2 " in srn and ", conv2_1 " in srn
    assert dsn == dsn_again


def test_the_presets_state_what_paper_and_code_state():
    """dasr.md's table: the four configurations."""
    assert load_preset("paper") == DASRConfig()
    paper, aim, realsr, ntire = (load_preset(n) for n in ("paper", "official-aim", "official-realsr", "official-ntire"))
    dsn, srn = paper.dsn, paper.srn
    assert (dsn.num_block, dsn.crop, dsn.batch, dsn.schedule.pretrain, dsn.schedule.steps) == (
        23,
        192,
        16,
        25_000,
        50_000,
    )
    assert (dsn.content_weight, dsn.perceptual_weight, dsn.adversarial_weight) == (0.01, 1, 0.0005)
    assert (srn.content_weight, srn.perceptual_weight, srn.adversarial_weight) == (0.01, 1, 0.005)
    assert (dsn.learning_rate, srn.learning_rate) == (1e-4, 2e-4)
    assert [dsn.schedule.factor(n) for n in (0, 34_999, 35_000, 45_000)] == [1, 1, 0.5, 0.25]
    assert (aim.dsn.adversarial_weight, aim.dsn.crop, aim.srn.adversarial_weight, aim.srn.batch) == (
        0.006,
        256,
        0.005,
        6,
    )
    assert [aim.srn.schedule.factor(n) for n in (34_999, 35_000, 80_000, 100_000, 150_000)] == [
        1,
        0.5,
        0.25,
        0.125,
        0.0625,
    ]
    assert [ntire.srn.schedule.factor(n) for n in (9_999, 10_000, 80_000, 150_000)] == [1, 0.5, 0.25, 0.0625]
    assert aim.dsn.schedule.factor(83_000) == 1 and aim.dsn.schedule.factor(132_799) < 1e-4
    assert (realsr.srn.perceptual.network, realsr.srn.perceptual_weight, realsr.srn.adversarial_weight) == (
        "vgg19",
        0.01,
        1e-4,
    )
    assert (ntire.srn.discriminator.frequency, ntire.srn.discriminator.frequency_kernel, ntire.srn.learning_rate) == (
        "gbfs",
        9,
        1e-5,
    )
    fssr = load_preset("fssr")
    assert (fssr.dsn.input, fssr.dsn.discriminator.frequency, fssr.domain_gap, fssr.weighted) == (
        "bicubic",
        "gbfs",
        False,
        False,
    )
    # Nothing of ours is on in what follows a paper or published code.
    for preset in (paper, aim, realsr, ntire, fssr):
        for stage in (preset.dsn, preset.srn):
            assert not stage.discriminator.frequency_contrast and not stage.perceptual.scaled
        assert preset.srn.map_weights == "map"
    assert presets() == ["fssr", "miniature", "official-aim", "official-ntire", "official-realsr", "paper", "tiny"]


@pytest.fixture(scope="module")
def made_up_weights(vgg_file, tmp_path_factory) -> WeightFiles:
    """Files in the form of torchvision's and LPIPS's, with random numbers in them."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    channels, lpips = (64, 192, 384, 256, 256), LPIPS()
    alex = {key.removeprefix("net."): value for key, value in alexnet_state(lpips).items()}
    torch.save(alex, folder / "alex.pth")
    torch.save({f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate(channels)}, folder / "lin.pth")
    return WeightFiles(vgg_file, lpips_alex=folder / "alex.pth", lpips_lin=folder / "lin.pth")


def alexnet_state(lpips: LPIPS) -> dict[str, torch.Tensor]:
    sizes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    return {
        f"features.{at}.{kind}": torch.randn(shape) * 0.05
        for at, (out, channels, kernel) in sizes.items()
        for kind, shape in (("weight", (out, channels, kernel, kernel)), ("bias", (out,)))
    }


@pytest.mark.thorough
@pytest.mark.parametrize("preset", ["paper", "official-aim", "official-realsr", "official-ntire"])
def test_the_presets_take_two_steps_at_full_network_size(preset, made_up_weights):
    """Small crops and one picture of each domain; the networks and losses are the whole ones."""
    config = load_preset(preset)
    device = torch.device("cpu")
    torch.manual_seed(0)
    dsn = build_dsn_step(config, made_up_weights, device)
    batch = {"hr": torch.rand(1, 3, 128, 128), "real_lr": torch.rand(1, 3, 32, 32)}
    found = [dsn(batch), dsn(batch)]
    assert sum(p.numel() for p in dsn.players.generator.parameters()) == (1_776_067 if preset == "paper" else 668_238)
    srn = build_srn_step(config, made_up_weights, device)
    assert sum(p.numel() for p in srn.players.generator.parameters()) == 16_697_987
    sizes = {"fake_lr": 16, "hr": 64, "real_lr": 16, "other_hr": 64}
    batch = {name: torch.rand(1, 3, side, side) for name, side in sizes.items()} | {"weight": torch.rand(1, 1, 8, 8)}
    found += [srn(batch), srn(batch)]
    assert all(bool(value.isfinite()) for losses in found for value in losses.values())
    assert all("perceptual" in losses for losses in found)
    assert set(found[2]) == set(srn.names) - ({"low_band"} if preset == "paper" else set())
    assert any(float(a) != float(b) for a, b in zip(found[2].values(), found[3].values(), strict=True))


def test_a_full_run_config_survives_yaml(tmp_path):
    config = replace(load_preset("tiny"), weighting=False)

    (tmp_path / "a.yaml").write_text(dump_yaml(config))
    assert load_preset(str(tmp_path / "a.yaml")) == config


def database_of(folder: Path, target: Path, keys: list[str]) -> Path:
    """A database of a folder's pictures, under these keys."""
    lmdb = pytest.importorskip("lmdb")
    paths = sorted(folder.iterdir())
    with lmdb.open(str(target), map_size=2**22) as environment, environment.begin(write=True) as transaction:
        for key, path in zip(keys, paths, strict=True):
            transaction.put(key.encode(), path.read_bytes())
    (target / "meta_info.txt").write_text("".join(f"{key}.png (90,101,3) 1\n" for key in keys))
    return target


@pytest.mark.thorough
def test_keys_with_folders_train(folders, tmp_path, capsys):
    """As BasicSR's database of REDS has them; those that lead out of the run's folder do not."""
    keys = ["000/00000000", "000/00000001", "001/00000000"]
    hr = database_of(tmp_path / "hr", tmp_path / "hr.lmdb", keys)
    steps = [f"--{stage}.schedule.steps=1" for stage in ("dsn", "srn")]
    assert run(*SHORT, *steps, f"--hr={hr}", folders[1], f"--out={tmp_path / 'out'}") == 0
    assert weights(tmp_path / "out", "srn", step=1)
    for kind, suffix in (("lr", "png"), ("maps", "npy")):
        made = tmp_path / "out" / "generated" / kind
        assert sorted(made.rglob(f"*.{suffix}")) == [made / f"{key}.{suffix}" for key in keys]
    assert "3 of 3 pictures have their pair" in capsys.readouterr().out
    out = database_of(tmp_path / "hr", tmp_path / "out.lmdb", ["../../../a", "b", "c"])
    assert run(*SHORT, f"--hr={out}", folders[1], f"--out={tmp_path / 'other'}") == 2
    assert "../../../a: no file in a folder can have this name" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "message"), [(0, "File too large"), (500, "config.yaml: File too large")])
def test_a_full_disk_at_the_start_is_one_line(folders, tmp_path, capsys, limit, message):
    """Files that must not grow fail like those on a full disk: the log, and what the run records first."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        assert run(*SHORT, *folders, "--stage=dsn", f"--out={tmp_path / 'out'}") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: ") and message in said
    assert not (tmp_path / "out" / "config.yaml").exists()
