"""`python -m models usrda`: presets, the run on folders of pictures, rows of Table 3, kill and resume, ranks."""

from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from helpers.marks import thorough
from helpers.training import equal, finish, flat, load, stop_at, write_noise

from models.__main__ import main
from models.commands.usrda import parse
from models.config import dump_yaml
from models.data import FolderSource, InputError, Inputs, read_image, to_pixels, to_tensor
from models.evaluate.examples import resized, tried
from models.evaluate.pictures import enlarge_nearest
from models.networks import USRDAGenerator, load_weights, save_weights
from models.train.run import read_table
from models.usrda.build import WeightFiles, build_step
from models.usrda.config import DiscriminatorConfig, PerceptualConfig, USRDAConfig, load_preset, presets
from models.usrda.stages import CollapseWatch, USRDAJob, draw_products
from models.usrda.steps import LossWeights
from models.usrda.synthesis import SourceLR
from srkernels.ops.conv.support import onednn_runs

# A run of a second: four updates on 16-pixel LR patches.
SHORT = [
    f"--{option}"
    for option in (
        *("preset=tiny", "device=cpu", "run.no-tensorboard", "run.precision=fp32"),
        *(
            "run.report-every=2",
            "run.save-every=2",
            "run.validate-every=4",
            "crop=64",
            "batch=2",
            "num-feat=8",
            "num-block=1",
            "num-grow-ch=8",
        ),
        *("discriminator-f.num-feat=8", "discriminator-t.num-feat=8", "discriminator-y.num-feat=8"),
        "schedule.steps=4",
    )
]
NETWORKS = ("generator", "discriminator_f", "discriminator_t", "discriminator_y")


def run(*arguments: str) -> int:
    return main(["usrda", *arguments])


def test_a_run_leaves_what_it_promises(folders, tmp_path):
    out = tmp_path / "out"
    pairs = [f"--val-hr={tmp_path / 'val_hr'}", f"--val-lr={tmp_path / 'val_lr'}"]
    assert run(*SHORT, *folders, *pairs, f"--out={out}") == 0
    for name in NETWORKS:
        assert load(out, name, 4)
    assert [row["step"] for row in read_table(out / "validation.csv")] == [0, 4]
    rows = read_table(out / "losses.csv")
    assert [row["step"] for row in rows] == [2, 4]
    assert {"rec", "cyc", "align", "res", "sty", "idt", "d_f", "d_t", "d_y", "scale_s", "score_t"} <= rows[0].keys()
    for picture in ("4.png", "4_domains.png"):
        assert (out / "visualization" / picture).stat().st_size > 10_000
    assert yaml.safe_load((out / "config.yaml").read_text())["num_grow_ch"] == 8
    assert parse([*SHORT, *folders, "--out=x", f"--preset={out / 'config.yaml'}"]).config.num_grow_ch == 8
    before = (out / "models" / "4_generator.safetensors").stat().st_mtime_ns
    assert run(*SHORT, *folders, *pairs, f"--out={out}") == 0
    assert (out / "models" / "4_generator.safetensors").stat().st_mtime_ns == before


def test_its_weights_enlarge_pictures_and_are_measured(folders, tmp_path, capsys):
    """With the commands that DASR uses; the result is what G_SR(E(x)) gives."""
    out, enlarged = tmp_path / "out", tmp_path / "sr"
    assert run(*SHORT, *folders, f"--out={out}", "--no-bicubic-skip") == 0
    weights = out / "models" / "4_generator.safetensors"
    assert main(["upscale", f"--weights={weights}", "--device=cpu", str(tmp_path / "val_lr"), str(enlarged)]) == 0
    generator = load_weights(weights)
    assert isinstance(generator, USRDAGenerator)
    x = torch.from_numpy(read_image(tmp_path / "val_lr" / "0.png").copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        wanted = generator.decoder_sr(generator.encoder(x))[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()
    assert np.abs(read_image(enlarged / "0.png") - wanted).max() <= 1
    assert main(["evaluate", f"--sr={enlarged}", f"--hr={tmp_path / 'val_hr'}"]) == 0
    assert "RGB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("switches", "given"),
    [
        thorough(["--base"], {"rec", "d_y", "scale_s"}),
        (["--no-regularisation"], {"rec", "align", "d_y", "d_f", "scale_s", "scale_t", "score_s", "score_t"}),
        thorough(["--no-align"], {"rec", "res", "sty", "idt", "cyc", "d_t", "d_y", "scale_s", "scale_t"}),
        thorough(["--detach-source", "--halve", "--real-twice", "--run.recompute"], None),
        (["--scale=2", "--crop=32", "--run.precision=bf16", "--amsgrad", "--run.ema=0.9"], None),
        thorough(["--scale=1", "--crop=32", "--synthesis.resize=torch", "--synthesis.no-eight-bit"], None),
        thorough(
            ["--crop=128", *(f"--discriminator-{name}.kind=vgg" for name in "fty"), "--discriminator-f.norm=batch"],
            None,
        ),
        thorough(
            ["--discriminator-t.norm=instance", "--discriminator-f.norm=none", "--discriminator-y.kind=fsd"], None
        ),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_every_switch_runs_through(folders, tmp_path, switches, given):
    out = tmp_path / "out"
    for index in range(3):  # as large as the largest crop
        for kind, side in (("hr", 132), ("lr", 40)):
            write_noise(tmp_path / kind / f"large{index}.png", side, side, index)
    options = [*SHORT, "--run.max-bad-images=0.6", *folders, *switches, f"--out={out}"]
    assert run(*options) == 0
    assert load(out, "generator", 4)
    names = read_table(out / "losses.csv")[0].keys() - {"step", "learning_rate", "seconds"}
    assert given is None or names == given


@pytest.mark.thorough
def test_killed_at_any_moment_and_resumed_the_weights_are_the_same(folders, tmp_path):
    """kill -9 as soon as the second checkpoint is there; from the last good one on every bit is the same."""
    state = ["--run.ema=0.9", "--run.precision=bf16", "--discriminator-t.norm=batch"]  # and the estimates of the others
    command = ["-m", "models", "usrda", *SHORT, *folders, *state, "--run.save-every=1", "--schedule.steps=6"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    stop_at([*command, f"--out={cut}"], cut / "training_states" / "2.state", signal.SIGKILL)
    for out in (cut, whole):
        assert ("usrda: resumed behind update" in finish([*command, f"--out={out}"])) == (out == cut)
    for name in (*NETWORKS, "generator_ema"):
        assert equal(load(whole, name, 6), load(cut, name, 6)), name
    assert not equal(load(whole, "generator", 6), load(whole, "generator", 5))


@pytest.mark.thorough
def test_two_ranks_are_one(folders, tmp_path):
    """The same global batch, its noise included, on two ranks and on one: the same weights but for a sum's order."""
    # A network that starts as bicubic starts with an L1 of rounding errors, whose sign is chance.
    command = ["-m", "models", "usrda", *SHORT, *folders, "--no-bicubic-skip", "--run.memory=1GB"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29578"]
    for name, launcher, more in (("one", [], []), ("two", torchrun, []), ("other", [], ["--run.seed=1"])):
        finish([*launcher, *command, *more, f"--out={tmp_path / name}"])
    for name in NETWORKS:
        end = {ranks: flat(load(tmp_path / ranks, name, 4)) for ranks in ("one", "two", "other")}
        moved = float((end["one"] - flat(load(tmp_path / "one", name, 2))).norm())
        assert float((end["two"] - end["one"]).norm()) < 0.01 * moved, name
        assert float((end["other"] - end["one"]).norm()) > moved, name


@pytest.mark.thorough
def test_a_published_checkpoint_is_a_start(folders, tmp_path, capsys):
    torch.manual_seed(0)
    generator = USRDAGenerator(8, 3, 1, 1, 8)
    others = [
        ("--scale=2", "scale 4, the run says --scale 2"),
        ("--num-block=2", "num-block 1, the run says --num-block 2"),
    ]
    others += [("--bicubic-skip", "bicubic-skip False, the run says --bicubic-skip True")]
    parts = {"model_Enc": "encoder", "model_Dec_SR": "decoder_sr", "model_Dec_Id": "decoder_t"}
    torch.save({key: getattr(generator, part).state_dict() for key, part in parts.items()}, tmp_path / "theirs.pth")
    start = ["--schedule.steps=1", "--learning-rate=1e-9", f"--weights.generator={tmp_path / 'theirs.pth'}"]
    start.insert(0, "--no-bicubic-skip")
    assert run(*SHORT, *folders, *start, f"--out={tmp_path / 'out'}") == 0
    found = load(tmp_path / "out", "generator", 1)
    assert all(torch.allclose(found[key], value, atol=1e-6) for key, value in generator.state_dict().items())
    for option, message in others:
        assert run(*SHORT, *folders, *start, option, f"--out={tmp_path / 'two'}") == 2
        assert f"theirs.pth holds networks of {message}" in capsys.readouterr().err


def test_decoders_of_another_width_train_on(tmp_path):
    """Those of the unofficial code keep their 64 features when the encoder has others."""
    save_weights(USRDAGenerator(8, 3, 1, 1, 8, decoder_feat=12), tmp_path / "wide.safetensors")
    sizes = {"num_feat": 8, "num_conv": 3, "num_block": 1, "num_block_t": 1, "num_grow_ch": 8, "bicubic_skip": False}
    config, weights = replace(load_preset("tiny"), **sizes), WeightFiles(generator=tmp_path / "wide.safetensors")
    with pytest.raises(InputError, match="holds networks of decoder-feat 12, the run says --decoder-feat None"):
        build_step(config, weights, torch.device("cpu"))
    for files in (weights, WeightFiles()):
        step = build_step(replace(config, decoder_feat=12), files, torch.device("cpu"))
        assert step.players.generator.decoder_t.conv_body.weight.shape == (12, 12, 3, 3)


def test_refusals_name_what_is_wrong(folders, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    known = "bicubic-source, miniature, paper-paired, paper-unpaired, tiny, unofficial"
    for arguments, message in (
        (["--preset=nothing"], f"--preset must be one of {known}"),
        (["--crop=66"], "--crop must be a multiple of 4"),
        (["--crop=16"], "--crop must be a multiple of 4 and at least 32, got 16"),
        (["--batch=0"], "--batch must be from 1 to 4096, got 0"),
        (["--num-block-t=0"], "--num-block-t must be from 1 to 256, got 0"),
        (["--loss.rec=0"], "--loss.rec must be above 0 and up to 1000000, got 0"),
        (["--loss.idt=-1"], "--loss.idt must be from 0 to 1000000, got -1"),
        (["--loss.align=nan"], "--loss.align must be from 0 to 1000000, got nan"),
        (["--learning-rate=inf"], "--learning-rate must be above 0 and up to 1, got inf"),
        (["--synthesis.noise", "0", "inf"], "--synthesis.noise must be from 0 to 255, got (0.0, inf)"),
        (["--discriminator-t.num-feat=0"], "--discriminator-t.num-feat must be from 1 to 1024, got 0"),
        (["--perceptual.network=vgg19", "--perceptual.layers", "conv9_9"], "--perceptual.layers: "),
        (["--perceptual.network=vgg16"], "some of conv1_1, relu1_1 ... relu5_3, got ('conv5_4',)"),
        (["--run.max-bad-images=nan"], "--run.max-bad-images must be from 0 to 1, got nan"),
        (["--crop=128", "--batch=1", "--discriminator-f.kind=vgg", "--discriminator-f.norm=batch"], "on 1 crops of 32"),
        (["--synthesis.blur", "2", "1"], "--synthesis.blur must be a range, the lower end first, got 2.0 1.0"),
        (["--discriminator-f.kind=vgg"], "--discriminator-f does not work on 2 crops of 16 pixels: VGGDiscriminator"),
        (["--schedule.at", "0"], "--schedule.at must be from 1 to 1000000000, got (0,)"),
        (["--run.report-every=0"], "--run.report-every must be from 1 to 1000000000, got 0"),
        (["--perceptual.network=vgg19"], "--weights.vgg is needed: torchvision's vgg19-dcbb9e9d.pth"),
        (["--val-lr=x"], "--val-hr and --val-lr go together"),
        (["--lr=/nowhere"], "no such folder: /nowhere"),
    ):
        assert run(*SHORT, *folders, out, *arguments) == 2, arguments
        assert message in capsys.readouterr().err, arguments


@pytest.mark.thorough
def test_other_settings_are_refused_and_more_updates_are_not(folders, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    assert run(*SHORT, *folders, out) == 0
    assert run(*SHORT, *folders, out, "--no-align") == 1
    assert "loss.align was 0.01, is 0.0" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["loss"]["align"] == 0.01
    assert run(*SHORT, *folders, out, "--schedule.steps=6") == 0
    assert load(tmp_path / "out", "generator", 6)
    assert run(*SHORT, *folders, out, "--no-align", "--resume=never") == 0
    assert len(list(tmp_path.glob("out_archived_*"))) == 1


def test_a_collapse_of_the_features_is_warned_of_once():
    watch = CollapseWatch()
    assert [bool(watch({"scale_s": scale})) for scale in (0.1, 0.4, 0.05, 0.039, 0.01)] == [False] * 3 + [True, False]
    again = CollapseWatch()
    assert not again({"scale_s": 2.0})
    assert "mean |f| is 0.1, it was 2: they collapse" in again({"scale_s": 0.1})


def test_a_collapse_is_said_in_the_run(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("models.usrda.stages._COLLAPSED", 2.0)
    assert run(*SHORT, *folders, f"--out={tmp_path / 'out'}") == 0
    assert capsys.readouterr().out.count("warning: the features' mean |f| is") == 1


def test_the_presets_state_what_paper_and_code_state():
    """usrda.md, sections 4 and 5."""
    assert presets() == ["bicubic-source", "miniature", "paper-paired", "paper-unpaired", "tiny", "unofficial"]
    unpaired, paired, bicubic, code = (
        load_preset(name) for name in ("paper-unpaired", "paper-paired", "bicubic-source", "unofficial")
    )
    assert unpaired == USRDAConfig()
    small, large = LossWeights(0.01, 1, 1, 0.01, 0.01, 1), LossWeights(1, 10, 10, 1, 1, 10)
    assert [each.loss for each in (unpaired, paired, bicubic, code)] == [small, large, large, small]
    assert (unpaired.lr_crop, unpaired.batch, unpaired.learning_rate, unpaired.betas) == (128, 8, 1e-4, (0.9, 0.99))
    assert (unpaired.perceptual_weight, unpaired.adversarial_weight) == (0.01, 0.01)
    assert (paired.perceptual.network, paired.perceptual_weight, paired.adversarial_weight) == ("none", 0, 0)
    assert (bicubic.synthesis.blur, bicubic.synthesis.noise) == ((0, 0), (0, 0))
    falls = [unpaired.schedule.factor(n) for n in (0, 249_999, 250_000, 350_000, 450_000, 550_000)]
    assert falls == [1, 1, 0.5, 0.25, 0.125, 0.0625]
    assert (code.lr_crop, code.batch, code.amsgrad, code.halve, code.real_twice) == (64, 4, True, True, True)
    assert [each.discriminator_first for each in (unpaired, paired, bicubic, code)] == [False, False, False, True]
    assert code.schedule.factor(600_000) == 0.125
    assert (code.perceptual, code.discriminator_f) == (
        PerceptualConfig("vgg19", ("conv5_4",), False),
        DiscriminatorConfig("vgg", "batch", 64),
    )


def test_what_the_options_say_is_built(tmp_path):
    options = [
        "--detach-source",
        "--halve",
        "--real-twice",
        "--discriminator-first",
        "--amsgrad",
        "--betas",
        "0.5",
        "0.6",
        "--learning-rate=0.3",
    ]
    options += ["--run.recompute", "--run.precision=bf16", "--adversarial-weight=0.2", "--perceptual-weight=0.4"]
    config = parse([*SHORT, "--hr=x", "--lr=x", "--out=x", *options]).resolved()
    step = build_step(config, WeightFiles(), torch.device("cpu"))
    assert step.detach_source and step.halve and step.real_twice and step.discriminator_first
    assert step.players.precision is torch.bfloat16
    assert (step.adversarial, step.perceptual, step.weights) == (0.2, 0.4, config.loss)
    for optimizer in (step.players.optimizer_g, step.players.optimizer_d):
        defaults = optimizer.defaults
        assert (defaults["lr"], defaults["betas"], defaults["amsgrad"]) == (0.3, (0.5, 0.6), True)
    assert step.players.generator.decoder_t.body[0].rdb1.save == "recompute"
    assert step.players.generator.sizes == {name: getattr(config, name) for name in step.players.generator.sizes}


@pytest.mark.thorough
def test_compiled_parts_are_compiled_for_crops_alone(folders, tmp_path):
    """Pictures of every size are tried in between, without a graph for each."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pairs = [f"--val-hr={tmp_path / 'val_hr'}", f"--val-lr={tmp_path / 'val_lr'}"]
    write_noise(tmp_path / "val_hr" / "0.png", 96, 104, 1)
    write_noise(tmp_path / "val_lr" / "0.png", 24, 26, 1)
    assert run(*SHORT, *folders, *pairs, "--run.compile", f"--out={tmp_path / 'compiled'}") == 0
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 4  # E of both domains and of x_st, both decoders
    assert run(*SHORT, *folders, *pairs, f"--out={tmp_path / 'eager'}") == 0
    compiled, eager = (flat(load(tmp_path / name, "generator", 4)) for name in ("compiled", "eager"))
    start = flat(load(tmp_path / "eager", "generator", 2))
    assert float((compiled - eager).norm()) < 0.1 * float((eager - start).norm())


def test_the_intermediate_products_are_what_they_are_called(folders, tmp_path, monkeypatch):
    """Networks that start as bicubic: x_s and x_t as they are in the target domain, and enlarged."""
    sheets = []
    monkeypatch.setattr("models.evaluate.pictures.save_sheet", lambda path, rows, note: sheets.append(rows))
    config = parse([*SHORT, *folders, "--out=x"]).resolved()
    inputs = Inputs(FolderSource(tmp_path / "hr"), FolderSource(tmp_path / "lr"))
    job = USRDAJob(config, inputs, WeightFiles(), None, torch.device("cpu"))
    draw_products(job, build_step(config, WeightFiles(), job.device).players.generator, tmp_path / "a.png")
    ((_, cells), *_), ((name, first), *_) = sheets[0], tried(inputs.real_lr, 16, 22)
    shown = {cell.title: cell.pixels for cell in cells}
    assert list(shown) == ["x_s", "x_s→t", "y from x_s", "x_t", "x_t→t", "y from x_t"]
    assert np.array_equal(shown["x_t"], enlarge_nearest(first, 4)) and name == "0"
    for domain in "st":
        small = shown[f"x_{domain}"][::4, ::4]
        assert np.array_equal(shown[f"x_{domain}→t"], shown[f"x_{domain}"])
        assert np.abs(shown[f"y from x_{domain}"] - resized(small, 4).astype(int)).max() <= 1
    large = next(tried(inputs.hr, 64, 88))[1]
    x_s = SourceLR(config.synthesis, 4, 0)(to_tensor(large), 0)
    assert np.array_equal(shown["x_s"][::4, ::4], to_pixels(x_s))


@pytest.mark.thorough
@pytest.mark.parametrize("preset", ["paper-unpaired", "paper-paired", "bicubic-source", "unofficial"])
def test_the_presets_take_two_steps_at_full_network_size(preset, vgg_file):
    """Small crops, one picture of each domain or what batch norm needs; networks and losses are the whole ones."""
    crop, count = (128, 2) if preset == "unofficial" else (64, 1)
    config = load_preset(preset)
    # Whichever this processor is fast at: seconds, where the other may take minutes.
    precision = "bf16" if onednn_runs(torch.bfloat16) else "fp32"
    config = replace(config, crop=crop, run=replace(config.run, precision=precision))
    torch.manual_seed(0)
    step = build_step(config, WeightFiles(vgg_file), torch.device("cpu"))
    assert sum(p.numel() for p in step.players.generator.parameters()) == 149_504 + 16_733_123 + 7_306_755
    sides = {"source_lr": crop // 4, "real_lr": crop // 4, "hr": crop}
    batch = {name: torch.rand(count, 3, side, side) for name, side in sides.items()}
    first, second = step(batch), step(batch)
    assert all(bool(value.isfinite()) for losses in (first, second) for value in losses.values())
    assert set(first) == {*step.names, *step.statistics} - ({"d_y"} if preset == "paper-paired" else set())
    assert all(float(first[name]) != float(second[name]) for name in first)


def test_a_config_survives_yaml(tmp_path):
    config = load_preset("tiny").without("align")
    (tmp_path / "a.yaml").write_text(dump_yaml(config))
    assert load_preset(str(tmp_path / "a.yaml")) == config
