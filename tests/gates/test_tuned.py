"""Choices measured on the user's machine: what is measured, what is kept, and what stands in its way."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.calls import recorded
from helpers.operands import random
from helpers.process import ROOT, environment, python, ranks
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import srkernels
from srkernels import _native, _parity
from srkernels.ops.weighted_loss import native as weighted_loss_native
from srkernels.tuned import choose, clock, measure, report, store
from srkernels.tuned.records import Record, Records

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(_native.why_not(CPU) is not None, reason="one backend alone leaves nothing to choose")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, and a process that has measured nothing."""
    monkeypatch.setenv("SRKERNELS_CACHE", str(tmp_path / "cache"))
    anew(monkeypatch)
    return tmp_path / "cache"


def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_records", Records())
    monkeypatch.setattr(choose, "_loaded", set())
    monkeypatch.setattr(choose, "_quiet", set())
    monkeypatch.setattr(choose, "_choices", {})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a clock says of each backend, in seconds; 1 unless it is told."""
    times: dict[str, float] = {}

    def medians(calls: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
        for call in calls.values():
            call()
        return {name: times.get(name, 1.0) for name in calls}

    monkeypatch.setattr(clock, "medians", medians)
    return times


def loss(x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    return srkernels.weighted_l1_loss(x, y, **settings)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    return random((2, 3, 12, 16), torch.float32, 0), random((2, 3, 12, 16), torch.float32, 1)


def backends(call: Callable[[], Any]) -> list[str]:
    """Of the ops that a call runs, the backend that each carries: "" for an automatic choice that is not measured."""
    with recorded() as calls:
        call()
    return [call.backend for call in calls]


@pytest.mark.parametrize(
    ("native", "expected"),
    [(0.5, "native"), (0.96, "native"), (0.98, "reference"), (1.5, "reference"), (math.nan, "reference")],
)
def test_the_fastest_is_chosen_if_it_beats_eager_by_3_percent(native, expected, told, images) -> None:
    told["native"] = native
    assert backends(lambda: loss(*images)) == [""]
    with srkernels.tuning():
        measured = loss(*images)
    assert backends(lambda: loss(*images)) == [expected]
    assert measured == loss(*images)


@pytest.mark.parametrize("reference", [0.0, -1.0, math.nan, math.inf])
def test_a_clock_that_jumps_chooses_eager(reference, told, images) -> None:
    told["reference"] = reference
    with srkernels.tuning():
        loss(*images)
    assert backends(lambda: loss(*images)) == ["reference"]


def test_a_convolution_for_which_eager_was_fastest_records_pytorchs_own_graph(told) -> None:
    x, weight = random((1, 4, 8, 8), torch.float32, 0), random((4, 4, 3, 3), torch.float32, 1).requires_grad_()

    def convolution() -> Tensor:
        return srkernels.conv2d_act(x, weight, activation="relu")

    told["native"] = 0.5
    with srkernels.tuning():
        convolution()
    assert backends(convolution) == ["native"]
    with choose.paused():
        assert backends(convolution) == []
    told["native"] = 2.0
    with torch.no_grad(), srkernels.tuning():  # another class: no gradient is recorded
        convolution()
        assert backends(convolution) == []


def test_a_class_is_what_a_measurement_holds_for(told) -> None:
    told["native"] = 2.0

    def measured(height: int = 12, channels: int = 3, dtype: torch.dtype = torch.float32, **settings: Any) -> bool:
        x = random((2, channels, height, 16), dtype, 0)
        return backends(lambda: loss(x, x, **settings)) == ["reference"]

    with srkernels.tuning():
        loss(*(random((2, 3, 12, 16), torch.float32, seed) for seed in (0, 1)))
    assert measured()
    assert measured(height=16)  # 384 and 512 pixels are up to 2**9
    assert not measured(height=17)
    assert not measured(channels=4)
    assert not measured(dtype=torch.bfloat16)
    assert not measured(reduction="sum")
    x = random((2, 3, 12, 16), torch.float32, 0)
    assert backends(lambda: loss(x.clone().requires_grad_(), x)) == [""]
    assert backends(lambda: loss(x.contiguous(memory_format=torch.channels_last), x)) == [""]


def test_a_backward_pass_takes_the_backend_of_its_forward_pass(told, images) -> None:
    told["native"] = 0.1
    x = images[0].clone().requires_grad_()
    with srkernels.tuning():
        loss(x, images[1])
    assert backends(lambda: loss(x, images[1]).backward()) == ["native", "native"]
    assert backends(lambda: srkernels.haar_highpass(x).sum().backward()) == ["", ""]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda out: [y.mul_(1.01) for y in out], "wrong: output 0: element 0 is"),
        (lambda out: [y.double() for y in out], "wrong: output 0: dtype torch.float64"),
        (lambda out: torch.zeros(2)[5], "IndexError: index 5 is out of bounds"),
        (lambda out: (_ for _ in ()).throw(torch.OutOfMemoryError("no room\nfor it")), "OutOfMemoryError: no room"),
    ],
    ids=["wrong", "dtype", "raises", "memory"],
)
def test_a_backend_that_is_wrong_or_raises_is_dropped_and_named(fault, reason, told, images, monkeypatch) -> None:
    """It would have been the fastest."""
    told["native"] = 0.01
    forward = weighted_loss_native.forward
    monkeypatch.setattr(weighted_loss_native, "forward", lambda *arguments: fault(forward(*arguments)))
    with srkernels.tuning() as tuner:
        y = loss(*images)
    (record,) = tuner.found.values()
    assert record.choice == "reference"
    assert record.dropped.keys() == {"native"}
    assert record.dropped["native"].startswith(reason)
    assert "for it" not in record.dropped["native"]
    assert f"dropped when it was measured: {reason}" in srkernels.explain("weighted_l1_loss", *images)
    torch.testing.assert_close(y, (images[0] - images[1]).abs().mean())


def test_the_callers_tensors_and_random_numbers_are_left_alone(told, images) -> None:
    x = images[0].clone().requires_grad_()
    before, state = x.detach().clone(), torch.random.get_rng_state()
    with srkernels.tuning():
        y = loss(x, images[1])
    assert x.grad is None
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    y.backward()
    assert torch.equal(x.grad, (x - images[1]).sign() / x.numel())


def test_nothing_is_measured_where_nothing_may_be(told, images) -> None:
    x, y = images
    with srkernels.tuning() as tuner:
        torch.func.grad(lambda x: loss(x, y))(x)
        torch.vmap(lambda x: loss(x, y))(torch.stack([x, y]))
        torch.compile(lambda x: loss(x, y), backend="aot_eager", fullgraph=True)(x)
        with srkernels.use_backend("native"):
            loss(x, y)
    assert not tuner.found


def test_each_class_is_measured_once(told, images) -> None:
    for expected in (1, 0):
        with srkernels.tuning() as tuner:
            loss(*images)
            loss(*images)
        assert len(tuner.found) == expected


def test_explain_says_which_record_decided(told, images) -> None:
    told["native"] = 0.25
    assert "native (automatic)" in srkernels.explain("weighted_l1_loss", *images)
    with srkernels.tuning() as tuner:
        loss(*images)
    (record,) = tuner.found.values()
    head, *lines = srkernels.explain("weighted_l1_loss", *images).splitlines()
    assert head == f"weighted_l1_loss on cpu float32: native (measured on {record.day})"
    assert lines[0].split(maxsplit=1) == ["reference", "can run: took 1000000 us"]
    assert lines[1].split(maxsplit=1) == ["native", "can run, chosen: took 250000 us"]
    with srkernels.use_backend("reference"):
        assert "reference (asked for by name)" in srkernels.explain("weighted_l1_loss", *images)
    # Of a class that was not measured, and of too few inputs for a call.
    assert "(automatic)" in srkernels.explain("weighted_l1_loss", *(x[:, :1] for x in images))
    assert "(automatic)" in srkernels.explain("conv2d_act", images[0])


def test_checkpointing_and_other_hooks_see_nothing_of_a_measurement(told, images) -> None:
    weight, packed = random((3, 3, 3, 3), torch.float32, 2).requires_grad_(), []

    def block(x: Tensor) -> Tensor:
        return srkernels.conv2d_act(x, weight, activation="relu") * 2

    x = images[0].clone().requires_grad_()
    with srkernels.tuning() as tuner:
        checkpoint(block, x, use_reentrant=False).sum().backward()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
            loss(x, images[1])
    assert len(tuner.found) == 2
    assert len(packed) < 6


def _under_tuning(call: Callable[[], Tensor], times: int) -> list[Tensor]:
    with srkernels.tuning() as tuner:
        found = [call() for _ in range(times)]
    assert not tuner.found
    return found


def test_a_measurement_that_fails_is_a_warning_and_the_call_goes_on(told, images, monkeypatch) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room in fp64\nfor it")

    monkeypatch.setattr(_parity, "draw", fails)
    with pytest.warns(UserWarning, match="could not be measured: OutOfMemoryError: no room in fp64$") as said:
        found = _under_tuning(lambda: loss(*images), times=2)
    assert len(said) == 1
    assert found == [loss(*images)] * 2


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_operands_that_are_not_finite_tell_nothing(value, told, images) -> None:
    bad = images[0].clone()
    bad[0, 0, 0, 0] = value
    with srkernels.tuning() as tuner:
        loss(bad, images[1])
        assert not tuner.found
    with srkernels.tuning() as tuner:
        loss(*images)
    assert len(tuner.found) == 1


def test_an_activation_s_kink_makes_no_backend_wrong() -> None:
    """A few elements of many whose derivative is the other one; more, or a few of a few, are wrong."""
    exact = torch.rand(400_000, dtype=torch.float64)
    allowed = _parity.Error(1e-4, 1e-2)
    gradient = exact.float()
    gradient[[5, 77, 399_999]] = 0.0
    found = measure._without_kinks(gradient, exact, allowed)
    assert torch.equal(found, exact.float())
    gradient[:50] = -1.0
    assert torch.equal(measure._without_kinks(gradient, exact, allowed), gradient)
    few = exact[:100].float()
    few[5] = -1.0
    assert torch.equal(measure._without_kinks(few, exact[:100], allowed), few)


def test_traces_transforms_and_forward_mode_are_as_untuned(told) -> None:
    """Whatever was measured before, and while something is measured."""
    told["native"] = 0.1
    x, weight = random((1, 3, 8, 8), torch.float32, 0), random((3, 3, 3, 3), torch.float32, 1)

    def convolution(x: Tensor) -> Tensor:
        return srkernels.conv2d_act(x, weight, activation="relu")

    def tried() -> None:
        _, tangent = torch.func.jvp(convolution, (x,), (torch.ones_like(x),))
        assert tangent.any()
        traced = torch.jit.trace(convolution, (x,), check_trace=False)
        torch.testing.assert_close(traced(x), convolution(x))
        make_fx(lambda x: srkernels.haar_highpass(x), tracing_mode="symbolic")(x)

    tried()
    with srkernels.tuning() as tuner:
        tried()
        convolution(x)
        srkernels.haar_highpass(x)
    assert {record.choice for record in tuner.found.values()} == {"native"}
    tried()


def test_a_record_of_what_cannot_run_here_is_not_followed(told, images, monkeypatch) -> None:
    """Another environment of the same versions has a compiler, say."""
    file = _kept(images)
    content = json.loads(file.read_text())
    content["records"][0]["seconds"]["triton"] = 0.001
    file.write_text(json.dumps(content))
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == [""]
    assert "native (automatic)" in srkernels.explain("weighted_l1_loss", *images)


def test_one_measurement_at_a_time(told, images) -> None:
    with srkernels.tuning(), pytest.raises(RuntimeError, match="already inside"), srkernels.tuning():
        pass
    with srkernels.tuning() as tuner:
        loss(*images)
    assert len(tuner.found) == 1
    assert choose._tuner is None


def test_explain_in_one_thread_leaves_others_alone(told, images) -> None:
    with srkernels.tuning():
        loss(*images)
    errors: list[BaseException] = []
    ended = threading.Event()

    def calls() -> None:
        while not ended.is_set():
            try:
                loss(*images)
            except BaseException as error:
                errors.append(error)

    thread = threading.Thread(target=calls)
    thread.start()
    for _ in range(200):
        assert "measured on" in srkernels.explain("weighted_l1_loss", *images)
    ended.set()
    thread.join()
    assert not errors


def test_each_number_of_threads_is_a_class(told, images) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with srkernels.tuning():
            loss(*images)
        assert backends(lambda: loss(*images)) == ["reference"]
        torch.set_num_threads(2)
        assert backends(lambda: loss(*images)) == [""]
    finally:
        torch.set_num_threads(before)


def test_what_a_call_saves_and_how_operands_lie_are_part_of_its_class(told) -> None:
    x, weight = random((1, 4, 8, 8), torch.float32, 0).requires_grad_(), random((4, 4, 3, 3), torch.float32, 1)
    counts = []
    with srkernels.tuning() as tuner:
        for save in ("activations", "recompute"):
            srkernels.residual_block(x, weight, None, weight, None, save=save)
            counts.append(len(tuner.found))
        for slope in (0.2, 0.1, -0.2, 0.0):
            srkernels.conv2d_act(x, weight, activation="leaky_relu", slope=slope)
            counts.append(len(tuner.found))
        for y in (x.detach()[..., ::2], x.detach()[..., ::2].contiguous()):
            loss(y, y)
            counts.append(len(tuner.found))
    assert counts == [1, 2, 3, 3, 4, 5, 6, 7]


# files

TUNE = """
import sys, torch, srkernels
from srkernels.tuned import clock
clock.medians = lambda calls, device: {name: 2.0 if name == "native" else 1.0 for name in calls}
for channels in map(int, sys.argv[1:]):
    x = torch.rand(1, channels, 8, 8)
    with srkernels.tuning():
        srkernels.weighted_l1_loss(x, x)
"""
SAY = """
import sys, torch, srkernels
for channels in map(int, sys.argv[1:]):
    print(srkernels.explain("weighted_l1_loss", *[torch.rand(1, channels, 8, 8)] * 2).splitlines()[0])
"""


def test_a_second_process_starts_tuned(cache: Path) -> None:
    python(TUNE, "3", "4")
    first, second, third = python(SAY, "3", "4", "5").stdout.splitlines()
    assert "reference (measured on" in first
    assert "reference (measured on" in second
    assert "native (automatic)" in third
    assert len(list(cache.glob("*.json"))) == 1
    assert not list(cache.glob("*.tmp"))


def test_two_processes_that_tune_at_once_both_keep_theirs(cache: Path) -> None:
    channels = [[str(2 * n + k) for n in range(1, 9)] for k in (0, 1)]
    command = [sys.executable, "-c", TUNE]
    running = [subprocess.Popen([*command, *each], env=environment(), cwd=ROOT) for each in channels]
    assert [process.wait(120) for process in running] == [0, 0]
    said = python(SAY, *channels[0], *channels[1]).stdout.splitlines()
    assert len(said) == 16
    assert all("reference (measured on" in line for line in said)


def test_an_environment_variable_measures_whatever_comes(cache: Path) -> None:
    source = "import torch, srkernels; x = torch.rand(1, 3, 8, 8); srkernels.weighted_l1_loss(x, x)"
    python(source, env=environment(SRKERNELS_TUNE="1"))
    (file,) = cache.glob("*.json")
    assert [row["op"] for row in json.loads(file.read_text())["records"]] == ["weighted_loss"]


def _kept(images: tuple[Tensor, Tensor]) -> Path:
    with srkernels.tuning():
        loss(*images)
    return store.path(CPU)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: bytes(len(text)),
        lambda text: b"[1, 2]",
        lambda text: b"\xff\xfe" + text,
        lambda text: text.replace(b'"records": [', b'"records": 7, "old": ['),
        lambda text: b'{"a":' * 100_000,
    ],
    ids=["empty", "cut", "zeros", "another shape", "no text", "no list", "deep"],
)
def test_a_damaged_file_is_set_aside_with_a_warning(damage, told, images, monkeypatch) -> None:
    file = _kept(images)
    file.write_bytes(damage(file.read_bytes()))
    anew(monkeypatch)
    with pytest.warns(UserWarning, match="is damaged"):
        assert backends(lambda: loss(*images)) == [""]
    assert file.with_suffix(".damaged").exists()
    assert not file.exists()
    _kept(images)  # and tuning goes on
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == ["reference"]


@pytest.mark.parametrize(
    "change",
    [
        {"shape": ["float33", 1]},
        {"shape": ["nn"]},
        {"shape": None},
        {"seconds": 3},
        {"seconds": {"native": "soon"}},
        {"needs": "x"},
        {"needs": math.inf},
        {"threads": "many"},
        {"op": None, "shape": [None]},
    ],
    ids=str,
)
def test_a_damaged_record_is_passed_over(change, told, images, monkeypatch) -> None:
    file = _kept(images)
    content = json.loads(file.read_text())
    content["records"].insert(0, content["records"][0] | change)
    file.write_text(json.dumps(content))
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == ["reference"]


def test_a_record_of_a_backend_that_is_gone_is_not_followed(told, images, monkeypatch) -> None:
    file = _kept(images)
    content = json.loads(file.read_text())
    content["records"][0]["seconds"] |= {"warp": 0.001}
    file.write_text(json.dumps(content))
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == ["reference"]


@pytest.mark.parametrize("what", ["torch", "srkernels", "device", "instructions"])
def test_records_of_other_versions_and_machines_do_not_count(what, told, images, monkeypatch) -> None:
    _kept(images)
    made = store.made_on(CPU) | {what: "another"}
    monkeypatch.setattr(store, "made_on", lambda device: made)
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == [""]


def test_no_home_is_no_cache(told, images, monkeypatch) -> None:
    for name in ("SRKERNELS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    assert backends(lambda: loss(*images)) == [""]
    with pytest.warns(UserWarning, match="not kept: Could not determine home"), srkernels.tuning():
        loss(*images)


def test_a_folder_that_cannot_be_written_is_a_warning(told, images, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SRKERNELS_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="what was measured is not kept"), srkernels.tuning():
        loss(*images)
    assert backends(lambda: loss(*images)) == ["reference"]  # in this process


# whole networks


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(srkernels.nn.ResidualBlock(8), srkernels.nn.ResidualBlock(8))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.drop(self.body(self.norm(self.first(x))))
        return {"image": y, "bands": [srkernels.haar_highpass(y)]}


def test_tune_runs_a_network_and_leaves_it_as_it_was(told) -> None:
    told |= {"native": 0.5, "before": 0.002, "after": 0.001}
    net, x = _Net(), random((2, 3, 12, 16), torch.float32, 0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    report = srkernels.tune(net, x)
    assert [(row.modules, row.call.op) for row in report.rows] == [
        (("body.0", "body.1"), "residual_block"),
        (("",), "haar_analysis"),
    ]
    assert {row.record.choice for row in report.rows} == {"native"}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    text = str(report)
    assert "body.0 and 1 more" in text
    assert "8 channels, up to 512 pixels, float32, training" in text
    assert text.splitlines()[-1] == "forward and backward 2000 us, tuned 1000 us (2.00x)"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_tune_measures_patched_blocks(told) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(torch.relu(self.conv1(x)))

    net = nn.Sequential(Block(), Block())
    assert len(srkernels.patch(net).taken) == 2
    report = srkernels.tune(net, random((1, 8, 6, 5), torch.float32, 0))
    # Two classes: the first block's input needs no gradient.
    assert [(row.modules, row.call.op) for row in report.rows] == [((name,), "residual_block") for name in "01"]


@pytest.mark.parametrize(
    ("arrange", "said"),
    [
        (lambda x: x, "float32"),
        (lambda x: x.contiguous(memory_format=torch.channels_last), "float32, channels_last"),
        (lambda x: x[..., ::2], "float32, strided"),
    ],
)
def test_a_report_says_how_images_lie(arrange, said, told, images) -> None:
    with srkernels.tuning() as tuner:
        loss(*map(arrange, images))
    (row,) = report.rows_of(tuner)
    assert report.table([row]).splitlines()[1].split("pixels, ")[1].split("  ")[0] == said


@pytest.mark.parametrize("network", [nn.Conv2d(3, 3, 1), nn.Identity()], ids=["no op of ours", "no parameters"])
def test_tune_takes_networks_without_our_ops(network: nn.Module) -> None:
    report = srkernels.tune(network, torch.rand(1, 3, 8, 8))
    assert report.rows == ()
    assert "forward and backward" in str(report)


def test_tune_hands_on_what_the_network_raises() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("broken")

    with pytest.raises(ZeroDivisionError, match="broken"):
        srkernels.tune(Broken(), torch.rand(1))
    assert choose._tuner is None


def test_the_real_clock_measures_what_is_chosen() -> None:
    """Without a told clock: every time is one, and the choice follows from them."""
    report = srkernels.tune(_Net(), random((2, 3, 12, 16), torch.float32, 0))
    for row in report.rows:
        assert set(row.record.seconds) == {"reference", "native"}
        assert all(0 < t < 10 for t in row.record.seconds.values())
        assert row.record.choice == Record(row.record.seconds).choice
    assert report.before > 0
    assert report.after > 0


RANK = """
import os, sys, torch, srkernels
import torch.distributed as dist
from srkernels.tuned import clock
rank, store = int(sys.argv[1]), sys.argv[2]
clock.medians = lambda calls, device: {name: (2.0, 0.1)[rank] if name == "native" else 1.0 for name in calls}
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
x = torch.rand(1, 3, 8, 8)
with srkernels.tuning():
    srkernels.weighted_l1_loss(x, x)
    assert "(automatic)" in srkernels.explain("weighted_l1_loss", x, x), "ranks differ while they measure"
print(srkernels.explain("weighted_l1_loss", x, x).splitlines()[0], flush=True)
dist.destroy_process_group()
os._exit(0)
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch was built without gloo")
def test_every_rank_takes_what_rank_0_measured(tmp_path: Path, cache: Path) -> None:
    outputs = ranks(RANK, str(tmp_path / "store"))
    assert all("reference (measured on" in output for output in outputs), outputs
    assert len(list(cache.glob("*.json"))) == 1


RANKS_APART = """
import os, sys, torch, srkernels
import torch.distributed as dist
from datetime import timedelta
from srkernels.tuned import clock
rank, store, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["SRKERNELS_CACHE"] = os.path.join(os.path.dirname(store), "cache" + str(rank))
clock.medians = lambda calls, device: {name: 2.0 if name == "native" and rank == 0 else 1.0 for name in calls}
x = torch.rand(1, 3, 8, 8)
if what == "files" and rank == 0:
    with srkernels.tuning():
        srkernels.weighted_l1_loss(x, x)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
try:
    with srkernels.tuning() as tuner:
        srkernels.weighted_l1_loss(x, x)
        if what == "raises":
            raise ZeroDivisionError("on both ranks, at once")
except ZeroDivisionError as error:
    print(error, flush=True)
print(srkernels.explain("weighted_l1_loss", x, x).splitlines()[0], flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch was built without gloo")
@pytest.mark.parametrize(
    ("what", "expected"),
    [("files", ["reference (measured on"] * 2), ("raises", ["on both ranks, at once"] * 2)],
)
def test_ranks_whose_files_differ_agree_and_an_error_waits_for_nobody(what, expected, tmp_path: Path) -> None:
    outputs = ranks(RANKS_APART, str(tmp_path / "store"), what, timeout=50)
    assert all(words in output for words, output in zip(expected, outputs, strict=True)), outputs
