"""Steps captured and replayed, with a stand-in for the capture: the same bits as without, and what can go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_loop import CONFIG, CPU, go, make_stage, same, weights

from models.train import graph, loop
from models.train.graph import WARMUP, GraphedStep
from models.train.run import Run, read_table


class StandIn:
    """A capture that runs nothing, and a replay that runs the step again on the buffers it was captured with."""

    def __init__(self, device: object = None, error: Exception | None = None) -> None:
        self.error, self.warmed, self.recorded, self.replayed = error, 0, 0, 0

    def warm(self, run: graph.Run) -> dict:
        self.warmed += 1
        return run()

    def record(self, run: graph.Run) -> tuple[dict, Callable[[], None]]:
        if self.error is not None:
            raise self.error
        self.recorded += 1
        losses: dict[str, torch.Tensor] = {}

        def replay() -> None:
            self.replayed += 1
            for name, value in run().items():
                losses.setdefault(name, torch.empty_like(value)).copy_(value)

        return losses, replay


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the loop captures with; the last one made."""
    made = SimpleNamespace(last=None, error=None)

    def make(device: torch.device) -> StandIn:
        made.last = StandIn(device, made.error)
        return made.last

    monkeypatch.setattr(graph, "why_not", lambda device, ranks: None)
    monkeypatch.setattr(graph, "CUDACapture", make)
    monkeypatch.setattr(graph, "make_capturable", lambda optimizer: None)  # rates in fp32 are other bits
    return made


GRAPH = replace(CONFIG, cuda_graph=True)


def test_replayed_updates_are_the_eager_ones(stand_in, tmp_path):
    go(tmp_path / "eager", make_stage())
    go(tmp_path / "graph", make_stage(), GRAPH)
    capture = stand_in.last
    assert (capture.warmed, capture.recorded, capture.replayed) == (WARMUP, 1, 9 - WARMUP)
    for name in ("generator", "discriminator", "generator_ema"):
        assert same(weights(tmp_path / "eager", 9, name), weights(tmp_path / "graph", 9, name)), name
    eager, graphed = (
        [(row["fit"], row["learning_rate"]) for row in read_table(tmp_path / name / "toy" / "losses.csv")]
        for name in ("eager", "graph")
    )
    assert eager == graphed


def test_a_run_resumed_under_a_graph_ends_with_the_same_bits(stand_in, tmp_path):
    go(tmp_path / "whole", make_stage())
    go(tmp_path / "cut", make_stage(steps=5), GRAPH)
    go(tmp_path / "cut", make_stage(), GRAPH)
    assert same(weights(tmp_path / "whole", 9, "generator"), weights(tmp_path / "cut", 9, "generator"))


def test_a_step_that_cannot_be_captured_says_why_once_and_trains_on(stand_in, tmp_path, capsys):
    stand_in.error = RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")
    go(tmp_path / "eager", make_stage())
    go(tmp_path / "graph", make_stage(), GRAPH)
    said = capsys.readouterr().out
    why = "runs eagerly: RuntimeError: operation not permitted when stream is capturing"
    assert said.count(why) == 1
    assert "might be" not in said
    assert same(weights(tmp_path / "eager", 9, "generator"), weights(tmp_path / "graph", 9, "generator"))


def test_without_a_gpu_the_run_says_so(tmp_path, capsys):
    go(tmp_path, make_stage(steps=2), GRAPH)
    assert "toy: no CUDA graph: CUDA graphs need a GPU, training runs on the CPU" in capsys.readouterr().out
    assert "ranks" in graph.why_not(torch.device("cuda"), 2)


def test_each_phase_and_each_shape_is_captured_apart():
    capture = StandIn()
    calls: list[tuple[bool, tuple[int, ...]]] = []

    def step(done: int, batch: dict) -> dict:
        calls.append((done < 10, tuple(batch["x"].shape)))
        return {"sum": batch["x"].sum() * (1 if done < 10 else 2)}

    graphed = GraphedStep(step, lambda done: done < 10, capture, pytest.fail)
    for done in range(20):
        for side in (2, 3):
            x = torch.full((side, side), float(done))
            assert graphed(done, {"x": x})["sum"] == x.sum() * (1 if done < 10 else 2)
    assert capture.recorded == 4
    assert capture.replayed == 4 * (10 - WARMUP)


def test_losses_of_a_replay_are_not_written_by_the_next():
    graphed = GraphedStep(lambda done, batch: {"x": batch["x"] * 2}, lambda done: 0, StandIn(), pytest.fail)
    found = [graphed(done, {"x": torch.tensor(float(done))})["x"] for done in range(8)]
    assert [float(x) for x in found] == [2.0 * done for done in range(8)]


def test_an_input_is_copied_where_the_capture_reads_it():
    """Whatever the loader does with its tensors afterwards."""
    graphed = GraphedStep(lambda done, batch: {"x": batch["x"] + 0}, lambda done: 0, StandIn(), pytest.fail)
    for done in range(8):
        x = torch.tensor(float(done))
        found = graphed(done, {"x": x})["x"]
        x.fill_(-1)
        assert float(found) == done


def test_rates_are_tensors_that_the_schedule_fills(tmp_path, monkeypatch):
    """As a capture needs them: the same tensor at every update, also behind a checkpoint of a run without."""
    monkeypatch.setattr(graph, "why_not", lambda device, ranks: None)
    monkeypatch.setattr(graph, "CUDACapture", StandIn)
    go(tmp_path, make_stage(steps=2))
    stage = make_stage(steps=9)
    for optimizer in stage.optimizers.values():
        for group in optimizer.param_groups:
            group["fused"] = True  # without which Adam takes no such rate on a CPU
    seen: list[tuple[int, float]] = []
    original = stage.step

    def step(done: int, batch: dict) -> dict:
        groups = [group for optimizer in stage.optimizers.values() for group in optimizer.param_groups]
        assert all(group["capturable"] and isinstance(group["lr"], torch.Tensor) for group in groups)
        seen.append((id(groups[0]["lr"]), float(groups[0]["lr"])))
        for group in groups:
            group["capturable"] = False  # a CPU has none
        found = original(done, batch)
        for group in groups:
            group["capturable"] = True
        return found

    stage.step = step
    run = Run(tmp_path)
    loop.train(stage, run, tmp_path / "toy", GRAPH, {"rate": 1}, CPU)
    run.close()
    assert len({tensor for tensor, _ in seen}) == 1
    assert [rate for _, rate in seen] == pytest.approx([1e-3 * 0.5 ** (done // 4) for done in range(2, 9)])
