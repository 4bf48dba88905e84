"""`--run.memory`: sizes, the fastest choice that fits, and runs that make it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.training import equal
from safetensors.torch import load_file
from test_dasr import SHORT as DASR_SHORT
from test_step_memory import measured, of_the_step
from test_usrda import SHORT as USRDA_SHORT

from models.__main__ import main
from models.commands.dasr import parse as parse_dasr
from models.commands.usrda import parse as parse_usrda
from models.config import bytes_of, check_bounds
from models.dasr.build import WeightFiles as DASRWeights
from models.dasr.build import build_dsn_step, build_srn_step
from models.data import InputError
from models.train import distributed
from models.train.budget import Saving, count_run, fit
from models.train.loop import LoopConfig
from models.train.memory import MemoryCount, count_step, empty_batch, kept_networks
from models.usrda.build import WeightFiles, assemble, random_features

CPU = torch.device("cpu")
PLAIN, SIGNS, RECOMPUTE, BOTH = Saving(), Saving(False, True), Saving(True), Saving(True, True)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("24GB", 24 * 10**9),
        ("24 gb", 24 * 10**9),
        ("22.5GiB", 45 * 2**29),
        (".5MiB", 2**19),
        ("300kB", 300_000),
        ("2tb", 2 * 10**12),
    ],
)
def test_sizes(size, wanted):
    assert round(bytes_of(size)) == wanted


@pytest.mark.parametrize("size", ["", "24", "GB", "-1GB", "0GB", "1e3GB", "nanGB", "1.2.3GB", "٣GB", "9" * 400 + "GB"])
def test_what_is_no_size_is_said(size):
    with pytest.raises(InputError, match=r"^--memory must be a size such as 24GB or 22.5GiB, got "):
        check_bounds(LoopConfig(memory=size))


def choose(run: LoopConfig, needs: dict[Saving, int], vgg: bool = True) -> tuple[LoopConfig, list[Saving], list[str]]:
    """The choice, what was counted for it, and what was said; `needs` is in megabytes."""
    tried, said = [], []

    def count(run: LoopConfig) -> MemoryCount:
        tried.append(Saving(run.recompute, run.feature_signs))
        return MemoryCount(activations=10**6 * needs[tried[-1]])

    return fit(run, vgg, count, "srn", said.append), tried, said


NEEDS = {PLAIN: 900, SIGNS: 800, RECOMPUTE: 400, BOTH: 301}


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [("1GB", PLAIN), ("900MB", PLAIN), ("899.9MB", SIGNS), ("0.5GB", RECOMPUTE), ("301MB", BOTH)],
)
def test_the_fastest_that_fits(memory, wanted):
    found, tried, (said,) = choose(LoopConfig(memory=memory, ema=0.5), NEEDS)
    assert found == LoopConfig(memory=memory, ema=0.5, **wanted._asdict())
    assert tried == list(NEEDS)[: len(tried)] and tried[-1] == wanted
    assert f"of {memory} by count: {wanted}" in said and f"{NEEDS[wanted] / 1000:.2f} GB" in said.replace(
        "0.31", "0.30"
    )


def test_what_the_run_saves_anyway_it_still_saves():
    for saving, least in ((SIGNS, [SIGNS, BOTH]), (RECOMPUTE, [RECOMPUTE, BOTH]), (BOTH, [BOTH])):
        found, tried, _ = choose(LoopConfig(memory="301MB", **saving._asdict()), NEEDS)
        assert Saving(found.recompute, found.feature_signs) == BOTH and tried == least
    _, tried, _ = choose(LoopConfig(memory="500MB"), NEEDS, vgg=False)
    assert tried == [PLAIN, RECOMPUTE]


def test_without_a_budget_nothing_is_counted():
    assert choose(LoopConfig(), {}) == (LoopConfig(), [], [])


def test_what_is_needed_is_enough():
    with pytest.raises(InputError, match=r"too little: by count a step of srn needs 0\.31 GB .*recompute.*signs") as e:
        choose(LoopConfig(memory="300MB"), NEEDS)
    assert "\n" not in str(e.value)
    assert choose(LoopConfig(memory="0.31GB"), NEEDS)[1][-1] == BOTH


def kilobytes(size: int) -> str:
    return f"--run.memory={size // 1000}.{size % 1000:03}kB"


def same_bits(first: Path, second: Path) -> bool:
    names = [path.relative_to(first) for path in first.rglob("*.safetensors")]
    return bool(names) and all(equal(load_file(first / name), load_file(second / name)) for name in names)


@pytest.mark.thorough
def test_usrda_trains_the_same_within_a_budget(folders, tmp_path, capsys):
    options = [*USRDA_SHORT, *folders, "--schedule.steps=1", "--base", "--run.precision=bf16"]
    for name, budget in (("free", []), ("fits", ["--run.memory=1GiB"])):
        assert main(["usrda", *options, *budget, f"--out={tmp_path / name}"]) == 0
        assert ("of 1GiB by count: all activations kept" in capsys.readouterr().out) == bool(budget)
    assert same_bits(tmp_path / "free" / "models", tmp_path / "fits" / "models")


@pytest.mark.thorough
def test_usrda_takes_what_it_needs(folders, vgg_file, tmp_path, capsys):
    """At the very byte of a count; the weights are those of a run that is asked for the same by its options."""
    options = [*USRDA_SHORT, *folders, "--schedule.steps=1", "--perceptual.network=vgg19", f"--weights.vgg={vgg_file}"]
    options += ["--perceptual.layers", "relu2_1", "--base"]
    config = parse_usrda([*options, "--out=x"]).resolved()
    config = replace(config, run=replace(config.run, **BOTH._asdict()))
    with torch.device("meta"):
        features = random_features(config)
    step = assemble(config, features, WeightFiles(), torch.device("meta"))
    found = count_run(step, config.batch_shapes(config.batch), config.run, CPU).peak
    asked = ["--run.recompute", "--run.feature-signs"]
    assert main(["usrda", *options, *asked, f"--out={tmp_path / 'asked'}"]) == 0
    capsys.readouterr()
    assert main(["usrda", *options, kilobytes(found), f"--out={tmp_path / 'fits'}"]) == 0
    assert f"kB by count: {BOTH}" in capsys.readouterr().out
    assert same_bits(tmp_path / "fits" / "models", tmp_path / "asked" / "models")
    assert main(["usrda", *options, kilobytes(found - 1), f"--out={tmp_path / 'none'}"]) == 2
    assert "too little: by count a step of usrda needs" in capsys.readouterr().err


@pytest.mark.parametrize(("stage", "recompute"), [("dsn", False), ("srn", True)])
def test_the_count_of_dasr_is_what_is_allocated(stage, recompute, folders, tmp_path):
    """Sizes for which no CPU has ops that are chosen before eager PyTorch."""
    network = [f"--{stage}.num-feat=16", f"--{stage}.num-block=2"]
    config = parse_dasr([*DASR_SHORT, *folders, *network, f"--out={tmp_path}", "--run.precision=fp32"]).resolved()
    config = replace(config, run=replace(config.run, recompute=recompute))
    build = build_dsn_step if stage == "dsn" else build_srn_step
    shapes = config.batch_shapes(stage, 2)
    step = build(config, DASRWeights(), CPU)
    batch = {name: value.uniform_() for name, value in empty_batch(shapes, config.run.layout).items()}
    optimizers = [step.players.optimizer_g, step.players.optimizer_d]
    real = count_step(step, batch, kept_networks(step, average=False), optimizers)
    assert of_the_step(real, batch) == pytest.approx(measured(step, batch, optimizers), rel=0.1)
    imagined = count_run(build(config, DASRWeights(), torch.device("meta")), shapes, config.run, CPU)
    assert (imagined.networks, imagined.optimizer) == (real.networks, real.optimizer)
    assert imagined.peak == pytest.approx(real.peak, rel=1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "switches",
    [
        [],
        ["--maps.on-the-fly", "--frequency=gbfs", "--srn.low-band-weight=0.1", "--dsn.content-of=low"],
        ["--source=bicubic", "--no-domain-gap", "--run.ema=0.9", "--run.precision=bf16"],
    ],
    ids=["default", "every filter", "source bicubic"],
)
def test_every_stage_of_dasr_has_its_choice(switches, folders, tmp_path, capsys):
    options = [*DASR_SHORT, *folders, *switches, "--dsn.schedule.steps=1", "--srn.schedule.steps=1"]
    assert main(["dasr", *options, f"--out={tmp_path / 'free'}"]) == 0
    assert "by count" not in capsys.readouterr().out
    assert main(["dasr", *options, "--run.memory=1GiB", f"--out={tmp_path / 'fits'}"]) == 0
    said = [line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines() if "of 1GiB by count" in line]
    assert said == (["srn"] if "--source=bicubic" in switches else ["dsn", "srn"])
    assert same_bits(tmp_path / "free", tmp_path / "fits")


def test_no_stage_begins_if_one_does_not_fit(folders, tmp_path, capsys):
    """Stage dsn fits, the SR network's does not."""
    options = [*DASR_SHORT, *folders, "--srn.num-feat=32", f"--out={tmp_path / 'out'}", "--run.memory=10MB"]
    assert main(["dasr", *options]) == 2
    said = capsys.readouterr()
    assert "dsn: a step needs" in said.out
    assert "--run.memory 10MB is too little: by count a step of srn needs" in said.err
    assert not (tmp_path / "out" / "dsn" / "models").exists()


def test_a_count_sends_nothing(monkeypatch):
    """Every rank counts by itself; a fake tensor cannot be sent."""
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    sent = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda message: sent.append(message))
    with distributed.alone():
        distributed.average_gradients([parameter])
        assert distributed.world_size() == 1 and not sent
    distributed.average_gradients([parameter])
    assert distributed.world_size() == 2 and len(sent) == 1
