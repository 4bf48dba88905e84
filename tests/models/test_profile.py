"""The profile of tiny steps: parts that sum to the whole, the same update with and without the stopwatch in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import profile
from models.dasr.profiling import METHOD
from models.data import ArraySource, InputError, make_loader

CPU = torch.device("cpu")
NETWORKS = [
    *("--dsn.num-block", "1", "--dsn.num-feat", "4", "--dsn.discriminator.num-feat", "4", "--dsn.crop", "64"),
    *("--srn.num-block", "1", "--srn.num-feat", "4", "--srn.num-grow-ch", "4", "--srn.discriminator.num-feat", "4"),
    *("--srn.crop", "64", "--dsn.batch", "1", "--srn.batch", "1"),
]
ALWAYS = {
    profile.WAIT,
    profile.TRANSFER,
    profile.REST,
    "optimisers",
    *(
        f"{what}, {way}"
        for what in ("generator", "discriminator", "what D sees", "adversarial losses")
        for way in ("forward", "backward")
    ),
}


def subject(tmp_path: Path, stage: str, *options: str) -> tuple[profile.Subject, profile.LoopConfig]:
    command = profile.parse("dasr", METHOD, [*NETWORKS, "--run.workers", "0", *options])
    rng = np.random.default_rng(0)
    hr, lr = ([rng.integers(0, 256, (side, side, 3), dtype=np.uint8)] for side in (96, 24))
    sources = ArraySource(["a"], hr), ArraySource(["b"], lr)
    return METHOD.prepare(stage, command.config, *sources, tmp_path, CPU), command.config.run


@pytest.mark.parametrize("stage", ["dsn", "srn"])
def test_parts_sum_to_the_step(tmp_path, stage):
    found = profile.measure(*subject(tmp_path, stage), warmup=2, steps=5, device=CPU)
    assert set(found.parts) == ALWAYS
    assert all(milliseconds >= 0 for milliseconds in found.parts.values())
    assert found.parts["generator, backward"] > 0 and found.parts["discriminator, backward"] > 0
    # The median of a sum is not the sum of the medians, but the steps are alike.
    assert sum(found.parts.values()) == pytest.approx(found.instrumented, rel=0.4)
    assert found.plain > 0 and found.loader > 0 and found.memory > 0 and found.host is None
    shown = profile.table("a step", found, batch=1)
    assert shown.row_count == len(ALWAYS) + 3


def test_the_parts_of_every_option(tmp_path):
    """A perceptual loss and a map made on the fly are parts of their own; the weights of VGG-19 are not needed."""
    options = ["--srn.perceptual.network", "vgg19", "--srn.perceptual-weight", "1", "--maps.on-the-fly"]
    found, config = subject(tmp_path, "srn", *options, "--run.precision", "bf16")
    assert any("random weights stand in" in note for note in found.notes)
    parts = profile.measure(found, config, warmup=1, steps=1, device=CPU).parts
    assert set(parts) == ALWAYS | {"distance map", "perceptual loss, forward", "perceptual loss, backward"}


@pytest.mark.parametrize("stage", ["dsn", "srn"])
def test_the_stopwatch_changes_nothing(tmp_path, stage):
    losses = []
    for timed in (False, True):
        found, _ = subject(tmp_path / str(timed), stage)
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
    assert profile.main(["--stage", "dsn", "--steps", "1", "--warmup", "1", *NETWORKS]) == 0
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
        (["--steps", "0"], "--steps and --warmup must be at least 1"),
        (["--hr", "nowhere", "--lr", "nowhere"], "nowhere"),
    ):
        with pytest.raises(InputError, match=message):
            profile.main(arguments)
