"""The training loop on a network of two weights: exact resuming, checkpoints that survive, how a run ends early."""

from __future__ import annotations

import errno
import io
import math
import os
import pickle
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.marks import thorough
from safetensors.torch import load_file
from torch import nn

from models.data import InputError
from models.networks import RRDBNet
from models.train import checkpoint, readings
from models.train.checkpoint import TrainingStates, write_whole
from models.train.loop import LoopConfig, Stage, train
from models.train.run import Interrupted, Run, RunError, read_table
from models.train.schedule import ScheduleConfig

CPU = torch.device("cpu")
CONFIG = LoopConfig(report_every=3, validate_every=4, save_every=2, keep_checkpoints=2, tensorboard=False, ema=0.9)


def batches(done: int) -> Iterator[dict]:
    for number in range(done, 100):
        image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        yield {"image": image, "files": [f"picture_{number}.png"], "bad": []}


def halved(done: int) -> float:
    return 0.5 ** (done // 4)


def make_stage(steps: int = 9, break_at: int = -1, on_step=lambda done: None, factor=halved) -> Stage:
    torch.manual_seed(0)
    network = RRDBNet(4, 1, 4)
    critic = nn.Conv2d(3, 1, 3)
    optimizers = {
        name: torch.optim.Adam(each.parameters(), 1e-3)
        for name, each in (("generator", network), ("discriminator", critic))
    }

    def step(done, batch):
        on_step(done)
        noise = torch.rand(())  # the loop must carry the global generator over
        loss = (network(batch["image"]).mean() - noise).square() + critic(batch["image"]).square().mean()
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
        return {"fit": loss.detach() * (float("nan") if done == break_at else 1.0)}

    return Stage(
        "toy",
        {"generator": network, "discriminator": critic},
        optimizers,
        steps,
        step,
        ("fit",),
        factor,
        batches,
        images=100,
        validate=lambda generator, done: {"norm": float(sum(p.detach().norm() for p in generator.parameters()))},
        measures=("norm",),
    )


def go(folder: Path, stage: Stage, config: LoopConfig = CONFIG, settings: object = None):
    run = Run(folder)
    try:
        return train(stage, run, folder / "toy", config, settings or {"rate": 1}, CPU)
    finally:
        run.close()


def weights(folder: Path, step: int, name: str) -> dict:
    return load_file(folder / "toy" / "models" / f"{step}_{name}.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    """Weights, average, optimisers, schedules, random state and position all go on where they were."""
    go(tmp_path / "whole", make_stage())
    with pytest.raises(Interrupted, match="behind update 5 of toy; the state is saved"):
        go(tmp_path / "cut", make_stage(on_step=lambda done: done == 4 and os.kill(os.getpid(), signal.SIGTERM)))
    torch.manual_seed(99)
    history = go(tmp_path / "cut", make_stage())
    for name in ("generator", "discriminator", "generator_ema"):
        assert same(weights(tmp_path / "whole", 9, name), weights(tmp_path / "cut", 9, name)), name
    assert not same(weights(tmp_path / "whole", 9, "generator"), weights(tmp_path / "whole", 9, "generator_ema"))
    whole, cut = (read_table(tmp_path / name / "toy" / "validation.csv") for name in ("whole", "cut"))
    assert whole == cut
    assert [row["step"] for row in whole] == [0, 4, 8, 9]
    assert history.losses["fit"][0] == [3, 6, 9]


def test_a_run_that_died_before_its_first_checkpoint_leaves_no_row(tmp_path):
    """What it wrote, update 0's row among it, is not this run's: neither twice nor at all."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "losses.csv").write_text("step,fit,learning_rate,seconds\n3,77,77,77\n")
    (folder / "validation.csv").write_text("step,norm\n0,77\n4,77\n")
    seen = []
    go(tmp_path, replace(make_stage(), watch=lambda means: seen.append(means["fit"]) or ""))
    losses, measured = (read_table(folder / f"{name}.csv") for name in ("losses", "validation"))
    assert [row["step"] for row in losses] == [3, 6, 9]
    assert [row["step"] for row in measured] == [0, 4, 8, 9]
    assert not any(77 in row.values() for row in losses + measured)
    assert seen == [row["fit"] for row in losses]


def test_what_watches_the_losses_sees_those_of_before_a_resume(tmp_path):
    go(tmp_path, make_stage(steps=4))
    seen = []
    go(tmp_path, replace(make_stage(), watch=lambda means: seen.append(means["fit"]) or ""))
    assert seen == [row["fit"] for row in read_table(tmp_path / "toy" / "losses.csv")]
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("falls", "at"), [("halve_every", (2,)), ("halve_at", (2, 4)), ("linear_from", (3,)), ("linear_from", (5,))]
)
def test_more_updates_are_no_other_run(falls, at, tmp_path):
    """The rate is a function of the update alone: four and then nine are nine, to the bit."""
    for folder, steps in (("straight", 9), ("cut", 4), ("cut", 9)):
        go(tmp_path / folder, make_stage(steps, factor=ScheduleConfig(steps, falls, at).factor))
    assert same(weights(tmp_path / "straight", 9, "generator"), weights(tmp_path / "cut", 9, "generator"))
    straight, cut = (
        {row["step"]: row["learning_rate"] for row in read_table(tmp_path / folder / "toy" / "losses.csv")}
        for folder in ("straight", "cut")
    )
    assert straight.items() <= cut.items()  # which has one more, of its end
    assert min(straight.values()) > 0


def test_a_finished_run_is_left_alone(tmp_path):
    go(tmp_path, make_stage())
    before = weights(tmp_path, 9, "generator")
    go(tmp_path, make_stage(on_step=lambda done: pytest.fail("trained again")))
    assert same(before, weights(tmp_path, 9, "generator"))


def test_checkpoints_are_bounded_and_older_ones_go_last(tmp_path):
    go(tmp_path, make_stage())
    assert TrainingStates(tmp_path / "toy" / "training_states", 2).steps() == [8, 9]
    kept = {path.name.split("_")[0] for path in (tmp_path / "toy" / "models").iterdir()}
    assert kept == {"8", "9"}


def test_other_settings_are_refused_by_name(tmp_path):
    go(tmp_path, make_stage(steps=4), settings={"dsn": {"crop": 64, "batch": 4}})
    with pytest.raises(RunError, match=r"dsn\.crop was 64, is 128\. Start anew with --resume never"):
        go(tmp_path, make_stage(), settings={"dsn": {"crop": 128, "batch": 4}})


def test_other_pictures_are_refused_unless_they_are_accepted(tmp_path):
    pictures = {"hr": "3 images aa", "real_lr": "5 images bb"}
    go(tmp_path, replace(make_stage(steps=4), pictures=pictures))
    other = replace(make_stage(), pictures={**pictures, "hr": "4 images cc"})
    with pytest.raises(
        RunError, match=r"hr was 3 images aa, is 4 images cc\. Go on with these by --run\.other-pictures"
    ):
        go(tmp_path, other)
    go(tmp_path, other, replace(CONFIG, other_pictures="accept"))
    go(tmp_path, other)  # these are the ones by now


def test_a_state_that_says_nothing_of_pictures_is_resumed(tmp_path):
    go(tmp_path, make_stage(steps=4))
    path = tmp_path / "toy" / "training_states" / "4.state"
    torch.save({key: value for key, value in torch.load(path).items() if key != "pictures"}, path)
    go(tmp_path, replace(make_stage(), pictures={"hr": "3 images aa"}))


def test_a_loss_that_is_not_finite_stops_with_step_files_and_checkpoint(tmp_path):
    with pytest.raises(RunError) as error:
        go(tmp_path, make_stage(break_at=6))
    message = str(error.value)
    assert message.count("\n") == 0 and "the loss fit is not finite at update 7" in message
    assert "picture_6.png" in message and "picture_5.png" not in message
    assert str(tmp_path / "toy" / "training_states" / "6.state") in message
    assert TrainingStates(tmp_path / "toy" / "training_states", 2).steps() == [4, 6]


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, monkeypatch):
    def save(state, path):
        Path(path).write_bytes(b"half")
        if state["step"] == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(state, path)

    original = torch.save
    monkeypatch.setattr(checkpoint.torch, "save", save)
    with pytest.raises(RunError, match=r"cannot write the checkpoint of update 6: .*No space left(.|\n)*4\.state"):
        go(tmp_path, make_stage())
    states = TrainingStates(tmp_path / "toy" / "training_states", 2)
    assert states.steps() == [2, 4]
    assert states.latest()["step"] == 4
    assert sorted(path.name for path in states.folder.iterdir()) == ["2.state", "4.state"]
    assert {"2_generator.safetensors", "4_generator.safetensors"} <= {
        path.name for path in (tmp_path / "toy" / "models").iterdir()
    }


def _flipped(content: bytes, at: float) -> bytes:
    place = int(at * len(content))
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _saved(value: object) -> bytes:
    into = io.BytesIO()
    torch.save(value, into)
    return into.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"PK\x03\x04 cut short",
        thorough(lambda content: b"not a checkpoint\n"),
        thorough(lambda content: b""),
        thorough(lambda content: content[: len(content) // 2]),
        lambda content: bytes(64) + content[64:],
        thorough(lambda content: _flipped(content, 0.3)),
        lambda content: _flipped(content, 0.6),
        thorough(lambda content: _saved({"step": 4})),
        thorough(lambda content: _saved([1, 2])),
        lambda content: pickle.dumps(os.system),
        lambda content: _saved(SimpleNamespace()),
    ],
    ids=["cut", "text", "empty", "half", "zeros", "bit", "another bit", "other", "list", "pickle", "object"],
)
def test_a_damaged_state_gives_way_to_the_one_before(damage, tmp_path, capsys):
    """Named, and the run ends with the bits of one that was never hurt."""
    go(tmp_path / "whole", make_stage())
    go(tmp_path / "cut", make_stage(steps=4))
    state = tmp_path / "cut" / "toy" / "training_states" / "4.state"
    state.write_bytes(damage(state.read_bytes()))
    capsys.readouterr()
    go(tmp_path / "cut", make_stage())
    said = capsys.readouterr().out
    assert f"{state} cannot be read and is passed over (" in said
    assert "resumed behind update 2" in said
    assert same(weights(tmp_path / "whole", 9, "generator"), weights(tmp_path / "cut", 9, "generator"))


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda text: text + b"9,0.5", 2),
        (lambda text: text + b"9\n", 2),
        (lambda text: text + b"9,0.5,,,,,,,,,1\n", 2),
        (lambda text: text + b"9,soon,1,1\n", 2),
        (lambda text: text + b"\0\0\0\0\n", 2),
        (lambda text: text + b"\xff\xfe,1,1,1\n", 2),
        (lambda text: text[:-2], 1),
        (lambda text: bytes(len(text)), 0),
        (lambda text: b"", 0),
    ],
    ids=["torn", "short", "long", "word", "zeros", "bytes", "cut", "all zeros", "empty"],
)
@pytest.mark.parametrize("table", ["losses", thorough("validation")])
def test_damaged_rows_of_a_table_do_not_stop_a_resume(table, damage, kept, tmp_path):
    go(tmp_path, make_stage(steps=6))
    path = tmp_path / "toy" / f"{table}.csv"
    path.write_bytes(damage(path.read_bytes()))
    rows = {"losses": [3, 6], "validation": [0, 4, 6]}[table]
    expected = rows[: len(rows) - 2 + kept] if kept else []
    assert [row["step"] for row in read_table(path)] == expected
    go(tmp_path, make_stage())
    ended = {"losses": [9], "validation": [8, 9]}[table]
    assert [row["step"] for row in read_table(path)] == expected + ended


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, lambda temporary: temporary.write_text("new") and None)
    assert path.read_text() == "new"


def test_a_signal_in_the_last_update_is_not_lost(tmp_path):
    """The stage is done and saved, but what comes behind it must not start."""
    with pytest.raises(Interrupted, match="behind update 9"):
        go(tmp_path, make_stage(on_step=lambda done: done == 8 and os.kill(os.getpid(), signal.SIGTERM)))
    assert TrainingStates(tmp_path / "toy" / "training_states", 2).steps()[-1] == 9


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    stage = make_stage()

    def spoil(done: int) -> None:
        if done == 5:
            stage.networks["discriminator"].bias.data.fill_(float("nan"))

    step = stage.step
    stage.step = lambda done, batch: (step(done, batch), spoil(done))[0]
    with pytest.raises(RunError, match=r"weights of the discriminator are not finite behind update 6(.|\n)*4\.state"):
        go(tmp_path, stage)
    assert TrainingStates(tmp_path / "toy" / "training_states", 2).steps() == [2, 4]


def test_what_a_killed_process_left_is_removed_and_own_files_are_not(tmp_path):
    go(tmp_path, make_stage(steps=4))
    leftovers = ["training_states/.6.4711.state", "models/.6_generator.4711.safetensors"]
    own = tmp_path / "toy" / "models" / "best_generator.safetensors"
    for name in leftovers:
        (tmp_path / "toy" / name).write_bytes(b"half")
    own.write_bytes(b"mine")
    go(tmp_path, make_stage(steps=9))
    assert not any((tmp_path / "toy" / name).exists() for name in leftovers)
    assert own.exists()
    assert (
        oct(own.stat().st_mode)[-3:]
        == oct((tmp_path / "toy" / "models" / "9_generator.safetensors").stat().st_mode)[-3:]
    )


def test_too_many_bad_pictures_stop_the_run_behind_a_checkpoint(tmp_path):
    stage = replace(make_stage(), images=1)
    stage.batches = lambda done: (
        {**batch, "bad": [("x.png", "x.png is grey")] if number == 3 else []}
        for number, batch in enumerate(batches(done))
    )
    with pytest.raises(InputError, match=r"x\.png is grey"):
        go(tmp_path, stage, replace(CONFIG, save_every=100, report_every=100))
    assert TrainingStates(tmp_path / "toy" / "training_states", 2).steps() == [3]


class Transfer:
    """A stand-in for a CUDA event: the losses of an update are there when `late` later ones have been sent."""

    sent = waits = 0

    def __init__(self, late: float) -> None:
        Transfer.sent += 1
        self.at = Transfer.sent + late

    def query(self) -> bool:
        return Transfer.sent >= self.at

    def synchronize(self) -> None:
        Transfer.waits += not self.query()


@pytest.fixture
def transfers(monkeypatch):
    """Replaces the way to the host by one that takes so many updates."""
    monkeypatch.setattr(Transfer, "sent", 0)
    monkeypatch.setattr(Transfer, "waits", 0)
    return lambda late: monkeypatch.setattr(readings, "_send", lambda values: (values, Transfer(late)))


def test_the_device_is_waited_for_only_at_reports(tmp_path, transfers):
    transfers(late=math.inf)
    config = replace(CONFIG, report_every=4, save_every=100, validate_every=100)
    stage = replace(make_stage(steps=8), validate=None)
    seen = []
    step = stage.step
    stage.step = lambda done, batch: seen.append(Transfer.waits) or step(done, batch)
    go(tmp_path, stage, config)
    assert seen == [0, 0, 0, 0, 4, 4, 4, 4]


@pytest.mark.parametrize("late", [None, 0, 2])
def test_a_loss_that_is_not_finite_is_found_without_waiting(late, tmp_path, transfers):
    """On a CPU at once, on a GPU as soon as the losses have come: no report, no checkpoint is needed."""
    if late is not None:
        transfers(late)
    seen = []
    config = replace(CONFIG, report_every=1000, save_every=1000, validate_every=1000)
    with pytest.raises(RunError, match=r"the loss fit is not finite at update 7; files of that batch: picture_6\.png;"):
        go(tmp_path, make_stage(90, break_at=6, on_step=seen.append), config)
    assert len(seen) == 7 + (late or 0)
    assert Transfer.waits == 0
