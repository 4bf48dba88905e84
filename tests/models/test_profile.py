"""The profile of tiny steps: parts that sum to the whole, the same update with and without the stopwatch in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.commands.profile import command as profile
from models.commands.profile import dasr, usrda
from models.data import ArraySource, InputError, make_loader
from models.train.device import to_device

CPU = torch.device("cpu")
DASR = [
    *("--dsn.num-block", "1", "--dsn.num-feat", "4", "--dsn.discriminator.num-feat", "4", "--dsn.crop", "64"),
    *("--srn.num-block", "1", "--srn.num-feat", "4", "--srn.num-grow-ch", "4", "--srn.discriminator.num-feat", "4"),
    *("--srn.crop", "64", "--dsn.batch", "1", "--srn.batch", "1"),
]
USRDA = [
    *("--num-feat", "4", "--num-conv", "2", "--num-block", "1", "--num-block-t", "1", "--num-grow-ch", "4"),
    *(option for name in "fty" for option in (f"--discriminator-{name}.num-feat", "4")),
    *("--crop", "96", "--batch", "1"),
]
STAGES = {
    "dsn": ("dasr", dasr.PROFILE, DASR),
    "srn": ("dasr", dasr.PROFILE, DASR),
    "usrda": ("usrda", usrda.PROFILE, USRDA),
}
ALWAYS = {profile.WAIT, profile.TRANSFER, profile.REST, "optimisers"}


def both_ways(*names: str) -> set[str]:
    return {f"{name}, {way}" for name in names for way in ("forward", "backward")}


PARTS = {
    stage: ALWAYS | both_ways("generator", "discriminator", "what D sees", "adversarial losses")
    for stage in ("dsn", "srn")
} | {"usrda": ALWAYS | both_ways("encoder", "G_t", "G_SR", "discriminators")}


def subject(tmp_path: Path, stage: str, *options: str) -> tuple[profile.Subject, profile.LoopConfig]:
    name, method, networks = STAGES[stage]
    command = profile.parse(name, method, [*networks, "--run.workers", "0", *options])
    rng = np.random.default_rng(0)
    hr, lr = ([rng.integers(0, 256, (side, side, 3), dtype=np.uint8)] for side in (96, 24))
    sources = ArraySource(["a"], hr), ArraySource(["b"], lr)
    return method.prepare(stage, command.config, *sources, tmp_path, CPU), command.config.run


@pytest.mark.parametrize("stage", STAGES)
def test_parts_sum_to_the_step(tmp_path, stage):
    found = profile.measure(*subject(tmp_path, stage), warmup=2, steps=5, device=CPU)
    assert set(found.parts) == PARTS[stage]
    assert all(milliseconds >= 0 for milliseconds in found.parts.values())
    assert all(found.parts[name] > 0 for name in PARTS[stage] if name.endswith("backward"))
    # The median of a sum is not the sum of the medians, but the steps are alike.
    assert sum(found.parts.values()) == pytest.approx(found.instrumented, rel=0.4)
    assert found.plain > 0 and found.loader > 0 and found.memory > 0 and found.host is None
    shown = profile.table("a step", found, batch=1)
    assert shown.row_count == len(PARTS[stage]) + 3


@pytest.mark.thorough
def test_the_parts_of_every_option(tmp_path):
    """A perceptual loss and a map made on the fly are parts of their own; the weights of VGG-19 are not needed."""
    for stage, more, options in (
        (
            "srn",
            {"distance map"},
            ["--srn.perceptual.network", "vgg19", "--srn.perceptual-weight", "1", "--maps.on-the-fly"],
        ),
        ("usrda", set(), ["--perceptual.network", "vgg19", "--perceptual-weight", "0.01"]),
    ):
        found, config = subject(tmp_path, stage, *options, "--run.precision", "bf16")
        assert any("random weights stand in" in note for note in found.notes)
        parts = profile.measure(found, config, warmup=1, steps=1, device=CPU).parts
        assert set(parts) == PARTS[stage] | both_ways("perceptual loss") | more


def test_usrdas_parts_follow_each_other(tmp_path):
    """Nothing goes by the name of what ran before it: each part ends, and the backward passes have their own."""
    found, config = subject(tmp_path, "usrda")
    watch, told = profile.Stopwatch(CPU), []
    watch.part = told.append
    found.timed(watch)(to_device(next(make_loader(found.dataset, 1, 0, 1)), CPU, config.layout))
    forward, critics = ["encoder", "G_t", "encoder", "G_SR"], 3 + 2 + 2  # D_y sees three pictures, D_f and D_t two
    # x_s and x_t have no gradients, so that nothing but the optimisers is behind the backward pass of their encoder.
    ends = [each for name in forward for each in (f"{name}, forward", profile.REST)]
    ends += ["discriminators, forward", profile.REST] * critics
    assert told[: len(ends)] == ends
    backward = [name for name in told[len(ends) :] if name != profile.REST]
    from_d, from_g = ["discriminators, backward"] * critics, ["discriminators, backward"] * (critics - 2)
    rest = ["G_SR, backward", "encoder, backward", "G_t, backward", "encoder, backward", "optimisers", "optimisers"]
    assert backward == [*from_d, *from_g, *rest]
    between = told.index("discriminators, backward") + critics
    assert told[between] == profile.REST


@pytest.mark.parametrize(
    ("stage", "options"), [*((stage, ()) for stage in STAGES), ("usrda", ("--discriminator-first",))]
)
def test_the_stopwatch_changes_nothing(tmp_path, stage, options):
    losses = []
    for timed in (False, True):
        found, _ = subject(tmp_path / str(timed), stage, *options)
        watch = profile.Stopwatch(CPU)
        update = found.timed(watch) if timed else found.update
        batches = list(make_loader(found.dataset, found.batch, 0, 3))
        for batch in batches:
            watch.part(profile.WAIT)
            update({name: value for name, value in batch.items() if isinstance(value, torch.Tensor)})
        tensors = {name: value for name, value in batches[0].items() if isinstance(value, torch.Tensor)}
        losses.append(found.update(tensors))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_command(capsys):
    assert profile.main(["--stage", "dsn", "--steps", "1", "--warmup", "1", *DASR]) == 0
    text = capsys.readouterr().out
    for words in (
        "stage dsn",
        "generator, backward",
        "optimisers",
        "share",
        "batches/s",
        "peak memory",
        "channels_last",
    ):
        assert words in text
    for arguments, message in (
        (["nothing"], "no method 'nothing'"),
        (["dasr", "--stage", "maps"], "--stage must be one of dsn, srn, all"),
        (["--hr", "somewhere"], "--hr and --lr go together"),
        (["--hr", "nowhere", "--lr", "nowhere"], "nowhere"),
    ):
        with pytest.raises(InputError, match=message):
            profile.main(arguments)
