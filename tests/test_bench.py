"""The benchmark harness itself: its arithmetic, its parity gate, its tables, and full runs of its three commands."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tuning import anew

import srkernels
from bench import machine, report, tables, timing
from bench.gpu import report as gpu_report
from bench.gpu import run as gpu
from bench.gpu.context import Context
from bench.ops import harness
from bench.ops.providers import Gate, ParityError, Provider, baselines, problem, tiny
from bench.record import OURS, verdicts, write_json
from bench.scaling import ops as scaling_ops
from bench.scaling import plan as scaling
from bench.scaling import slopes
from bench.scaling.plan import Plan, Size, Times
from srkernels._parity import flat
from srkernels._spec import BenchCase, Case, OpSpec
from srkernels.ops import specs
from srkernels.tuned import store
from srkernels.tuned.records import Call, Record

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
HIGHPASS: OpSpec = next(s for s in specs() if s.name == "haar_highpass")
L1: OpSpec = next(s for s in specs() if s.name == "weighted_l1_loss")
SMALL = BenchCase(
    Case("2x3x16x16", ((2, 3, 16, 16),), {"convention": "dasr"}), "forward+backward", differentiable=("x",)
)
QUICK: dict[str, Any] = {"seconds": 0.05, "rounds": (3, 4), "compiled": False}


def _bench(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    # One thread: the other core is taken, and two threads that wait for each other on one core take many times as long.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)


# Arithmetic


def test_median_spread_and_passes() -> None:
    stats = timing.summarise([[1.0, 2.0, 3.0], [4.0, 5.0, 100.0]], "host clock")
    assert stats.median_us == 3.5
    assert (stats.p20_us, stats.p80_us) == (2.0, 5.0)
    assert stats.passes_us == (2.0, 5.0)
    assert stats.samples == 6


def test_one_sample_is_its_own_spread() -> None:
    stats = timing.summarise([[7.0], []], "host clock")
    assert (stats.median_us, stats.p20_us, stats.p80_us, stats.passes_us) == (7.0, 7.0, 7.0, (7.0,))


def test_ratio_is_of_medians() -> None:
    slow, fast = (timing.summarise([[t, t, 50.0]], "") for t in (12.0, 3.0))
    assert timing.ratio(slow, fast) == 4.0


def test_interleaved_times_tell_providers_apart() -> None:
    calls = {"short": [lambda: time.sleep(1e-3)], "long": [lambda: time.sleep(8e-3)]}
    times = timing.time_calls(calls, CPU, seconds=0, rounds=(5, 5))
    assert times["short"].samples == times["long"].samples == 5
    assert timing.ratio(times["long"], times["short"]) > 2


def test_every_round_calls_everyone_inside_its_context() -> None:
    seen: list[str] = []

    class Around:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            seen.append(f"enter {self.name}")

        def __exit__(self, *_: object) -> None:
            seen.append(f"exit {self.name}")

    calls = {name: [lambda name=name: seen.append(f"call {name}")] for name in "ab"}
    timing.time_calls(calls, CPU, seconds=0, rounds=(3, 3), around=Around)
    for name in "ab":
        of_name = [s for s in seen if s.endswith(name)]
        calls_made = [i for i, s in enumerate(of_name) if s.startswith("call")]
        assert len(calls_made) == 5, "two to warm up, three rounds"
        assert of_name[2:4] == [f"call {name}", f"exit {name}"]
    assert {s[-1] for s in seen[-6:]} == {"a", "b"}


def test_verdicts() -> None:
    providers = {"srkernels": {"ratio": 1.0, "share": 0.95}, "eager": {"ratio": 7.9}}
    found = {v["against"]: v for v in verdicts({"eager": 8.0, "compile": 1.8, "copy": 0.9}, providers)}
    assert found["eager"]["met"] is False
    assert found["compile"]["met"] is None, "a provider that did not run neither meets nor misses"
    assert found["copy"]["met"] is True


def test_saved_bytes_leaves_out_operands_and_outputs() -> None:
    x = torch.rand(1000, requires_grad=True)
    assert timing.saved_bytes(lambda: [x * x], [x]) == 0
    assert timing.saved_bytes(lambda: [x.exp()], [x]) == 0, "exp saves its output"
    assert timing.saved_bytes(lambda: [x.exp().sin()], [x]) == 4000


def test_over_fp32_pairs_the_same_case() -> None:
    def record(dtype: str, layout: str, eager: float, ours: float, target: float | None = None) -> dict[str, Any]:
        providers = {"eager": {"median_us": eager}, OURS: {"median_us": ours}}
        case = {"op": "made_up", "case": "1x3x8x8", "passes": "forward", "over_fp32_target": target}
        return {**case, "dtype": dtype, "layout": layout, "providers": providers}

    fused = record("bfloat16", "channels_last", 8.0, 5.0, 4.0)
    (check,) = harness.over_fp32([record("float32", "contiguous", 30.0, 29.0), fused])
    assert (check["measured"], check["met"]) == (6.0, True)
    assert harness.over_fp32([record("float32", "channels_last", 30.0, 29.0), fused]) == []


def test_bf16_per_byte_pairs_the_same_case() -> None:
    def record(dtype: str, gbps: float) -> dict[str, Any]:
        key = {"op": "o", "case": "c", "passes": "forward", "layout": "contiguous", "dtype": dtype}
        return {**key, "providers": {"srkernels": {"gbps": gbps}}}

    (check,) = harness.bf16_per_byte([record("float32", 20.0), record("bfloat16", 15.0)])
    assert (check["measured"], check["met"]) == (0.75, False)
    assert harness.bf16_per_byte([record("bfloat16", 15.0)]) == []


def test_peak_bytes_counts_what_is_alive_at_one_time() -> None:
    def call() -> torch.Tensor:
        first = torch.ones(1000)
        second = first + 1
        del first
        return second + 1

    assert 8000 <= timing.peak_bytes(call, CPU) < 8100  # the 1 is a tensor, too


# How cost grows


def _times(eager: float, ours: float) -> Times:
    return {name: {"median_us": us, "p20_us": us, "p80_us": us} for name, us in (("eager", eager), (OURS, ours))}


def _curve(exponents: tuple[float, float], sides: tuple[int, ...] = Plan().sides, **more: Any) -> dict[str, Any]:
    """Times of 3 ns a pixel to these powers; up to 128x128, calls of 1 ms hide them."""
    points = [
        {
            "batch": 1,
            "side": side,
            "times": _times(*(max(3e-3 * side ** (2 * k), 1000.0 * (side <= 128)) for k in exponents)),
        }
        for side in sides
    ]
    about = {"subject": "made_up", "axis": "side", "dtype": "float32", "device": "cpu", "threads": 1, "ranks": 1}
    return {**about, "points": points, "left_out": {}, **more}


def test_slope_is_the_exponent_of_the_larger_half() -> None:
    points = _curve((1.0, 1.25))["points"]
    assert [point["side"] for point in points[:3]] == [32, 64, 128], "the sizes that calls hide"
    assert slopes.slope(points, "eager") == pytest.approx(1.0)
    assert slopes.slope(points, OURS) == pytest.approx(1.25)
    assert slopes.slope(points[:3], OURS) == pytest.approx(0.0), "calls alone"
    assert slopes.slope(points[-2:], OURS) == pytest.approx(1.25)
    assert slopes.slope(points[-1:], OURS) is None and slopes.slope([], OURS) is None


def test_slope_over_batches_counts_pixels() -> None:
    points = [{"batch": n, "side": 64, "times": _times(5.0 * n, 5.0 * n)} for n in (4, 8, 16)]
    assert slopes.slope(points, "eager") == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("exponents", "expected"),
    [
        ((1.0, 1.0), []),
        ((1.09, 1.09), []),
        ((1.0, 1.04), []),
        ((1.0, 1.06), ["ours above eager"]),
        ((1.08, 1.12), ["ours above 1.1"]),
        ((1.2, 1.0), ["eager above 1.1"]),
        ((1.2, 1.4), ["eager above 1.1", "ours above 1.1", "ours above eager"]),
    ],
)
def test_what_grows_faster_than_its_work_is_flagged(exponents: tuple[float, float], expected: list[str]) -> None:
    curve = _curve(exponents)
    assert slopes.flags(curve) == expected
    headers, (row,) = tables.scaling([curve])
    assert row[headers.index("flagged")] == (", ".join(expected) or "-")
    assert row[headers.index("ours slope")] == f"{exponents[1]:.2f}"
    assert row[headers.index("sizes")] == "1x32x32 to 1x2048x2048"


def test_a_curve_of_few_sizes_has_no_slope_and_no_row_without_any() -> None:
    headers, (row,) = tables.scaling([_curve((1.0, 2.0), sides=(512,)), _curve((1.0, 1.0), sides=())])
    assert row[headers.index("eager slope")] == row[headers.index("flagged")] == "-"
    assert row[headers.index("eager ns")] == "3.00"


def test_climbing_ends_where_a_size_costs_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(scaling.time, "monotonic", lambda: clock[0])

    def measure(size: Size) -> dict[tuple[int, int], Times]:
        if size.side < 64:
            raise scaling.Unfit("too small for its discriminator")
        clock[0] += 1 + size.pixels / 64**2  # a second for whatever the size
        return {(1, 1): _times(1, 1)}

    sizes = Plan().axes(1)["side"]
    # 2, 5 and 17 s; the next one's 65 s are known beforehand, its fixed second not counted four times.
    found, left_out = scaling.climb(sizes, measure, lambda size: size.pixels, Plan(deadline=24 + 64))
    assert [size.side for size in found] == [64, 128, 256]
    assert left_out["1x32x32"] == "too small for its discriminator"
    assert left_out["1x512x512"] == left_out["1x2048x2048"] == "expected to take 65 s, 64 s are left"
    clock[0] = 0.0
    assert len(scaling.climb(sizes, measure, lambda size: size.pixels, Plan(deadline=24 + 65))[0]) == 4
    found, left_out = scaling.climb(sizes, measure, lambda size: size.pixels, Plan(size_bytes=64**2))
    assert [size.side for size in found] == [64] and left_out["1x128x128"].startswith("counts 0 MB")
    clock[0] = 9.0
    assert scaling.climb(sizes, measure, lambda size: size.pixels, Plan(deadline=8))[1]["1x64x64"] == scaling.USED_UP


def test_time_that_is_not_used_goes_to_the_later_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling.time, "monotonic", lambda: 40.0)
    assert [scaling.share(100.0, parts) for parts in (3, 2, 1)] == [60.0, 70.0, 100.0]


@pytest.mark.parametrize("spec", specs(), ids=lambda s: s.name)
def test_every_op_can_be_resized(spec: OpSpec) -> None:
    """The pictures have the size, filters are untouched by it, the map or the bands keep their proportion."""
    small, large = (scaling_ops.resized(spec, size, CPU).case for size in (Size(1, 32), Size(3, 64)))
    assert spec.eager(*(s and torch.rand(s) for s in small.shapes), **small.kwargs) is not None
    for name, one, other in zip(spec.operands, small.shapes, large.shapes, strict=True):
        if one is not None and other is not None and name not in spec.parameters:
            assert (one[0], other[0]) == (1, 3) and [2 * n for n in one[-2:]] == list(other[-2:])
        else:
            assert one == other
    outputs = flat(spec.eager(*(None if s is None else torch.rand(s) for s in large.shapes), **large.kwargs))
    pictures = [s[-2:] for s in large.shapes if s is not None] + [tuple(y.shape[-2:]) for y in outputs]
    assert (64, 64) in pictures
    assert spec.bytes_moved(large, 4, "forward+backward") > 8 * spec.bytes_moved(small, 4, "forward+backward")


def test_a_curve_of_a_wrong_op_has_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*_: Any, **__: Any) -> None:
        pytest.fail("something was timed before parity was green")

    monkeypatch.setattr(timing, "time_calls", timed)
    with pytest.raises(ParityError, match="off by"):
        scaling_ops.measure(dataclasses.replace(HIGHPASS, op=_scaled), CPU, scaling.quick())


def test_threads_are_set_and_set_back() -> None:
    before = torch.get_num_threads()
    curves = scaling_ops.measure(HIGHPASS, CPU, dataclasses.replace(scaling.quick(), threads=(1, 2), sides=(32,)))
    assert torch.get_num_threads() == before
    assert [(c["axis"], c["threads"], c["ranks"]) for c in curves] == [
        ("batch", 1, 1),
        ("batch", 2, 1),
        ("side", 1, 1),
        ("side", 2, 1),
    ]
    assert all(p["times"][name]["median_us"] > 0 for c in curves for p in c["points"] for name in ("eager", OURS))
    assert json.loads(json.dumps(curves)) == curves


def test_a_curve_of_a_wrong_step_has_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = pytest.importorskip("bench.scaling.steps")
    make = steps.STEPS["DASR DSN"]

    def wrong(form: str, size: Size, device: torch.device) -> Any:
        step, batch = make(form, size, device)
        return step, batch if form == "plain" else {name: 0.9 * value for name, value in batch.items()}

    monkeypatch.setitem(steps.STEPS, "DASR DSN", wrong)
    monkeypatch.setattr(timing, "time_calls", lambda *_, **__: pytest.fail("timed before the losses agreed"))
    with pytest.raises(AssertionError, match=r"DASR DSN 1x32x32: the .* loss is"):
        steps.measure("DASR DSN", CPU, dataclasses.replace(scaling.quick(), batches=()))


def test_sizes_that_a_step_does_not_take_are_named() -> None:
    steps = pytest.importorskip("bench.scaling.steps")
    curves = steps.measure("USR-DA", CPU, dataclasses.replace(scaling.quick(), batches=(), sides=(32,)))
    (line,) = tables.sizes_left_out(curves)
    assert line == "USR-DA over side without 1x32x32: --discriminator-f does not work on 1 crops of 8 pixels"


@pytest.mark.thorough
def test_ranks_share_the_batch() -> None:
    steps = pytest.importorskip("bench.scaling.steps")
    plan = dataclasses.replace(scaling.quick(), threads=(1,), ranks=2, sides=(32, 64))
    curves = steps.measure("DASR SRN", CPU, plan)
    assert [(c["axis"], c["threads"], c["ranks"]) for c in curves] == [
        ("batch", 1, 1),
        ("batch", 1, 2),
        ("side", 1, 1),
        ("side", 1, 2),
    ]
    assert all([p["batch"] for p in c["points"]] == [2] * (1 if c["axis"] == "batch" else 2) for c in curves)
    assert tables.sizes_left_out(curves) == []


def test_a_failed_rank_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = pytest.importorskip("bench.scaling.steps")
    monkeypatch.setattr(steps.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="USR-DA: a rank failed"):
        steps._on_ranks("USR-DA", [Size(2, 64)], Plan())


def test_ranks_that_take_too_long_are_stopped_and_leave_what_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = pytest.importorskip("bench.scaling.steps")
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\necho '{json.dumps(_times(2, 1))}'\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(steps.sys, "executable", str(slow))
    monkeypatch.setattr(steps, "_LONGEST", 1.0)
    monkeypatch.setattr(steps, "_START", 0.5)
    begin = time.monotonic()
    found, why = steps._on_ranks("USR-DA", [Size(2, 64), Size(4, 64)], Plan())
    assert time.monotonic() - begin < 20
    assert found == {Size(2, 64): {(1, 2): _times(2, 1)}} and why == "1 s were too few"


# Training steps, which need the extra train


def test_kept_bytes_of_a_graph_that_is_dropped() -> None:
    form = pytest.importorskip("bench.steps.form")
    x = torch.rand(1000, requires_grad=True)

    def call() -> None:
        for _ in range(3):
            x.exp()  # keeps its output, which is freed with it

    assert form.kept_bytes(call) == 4000


def test_a_step_that_does_not_fit_is_measured_on_half_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = pytest.importorskip("bench.steps")
    name = "usrda paper-unpaired"
    bench = steps.configurations()[name]

    def measured(name: str, bench: Any, device: torch.device, count: int, *_: Any) -> dict[str, Any]:
        if count > 2:
            raise torch.cuda.OutOfMemoryError
        return {"batch": count}

    monkeypatch.setattr(steps.form, "_measure", measured)
    assert steps.form.measure(name, bench, CPU, seconds=0, count=8) == {"batch": 2, "batch_wanted": 8}
    assert steps.form.measure(name, bench, CPU, seconds=0, count=1) == {"batch": 1}


def test_plain_networks_of_usrda_are_ours() -> None:
    plain = pytest.importorskip("bench.steps.plain").PLAIN
    from models.networks import Decoder, Encoder

    torch.manual_seed(0)
    for network, channels in ((Encoder(6, 3), 3), (Decoder(6, 2, 4, scale=4), 6), (Decoder(6, 1, 4, scale=1), 6)):
        for parameter in network.double().parameters():
            torch.nn.init.normal_(parameter, std=0.15)
        x = torch.rand(2, channels, 7, 10, dtype=torch.float64)
        torch.testing.assert_close(plain[type(network)](network, x), network(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"detach_source": True, "halve": True, "real_twice": True}], ids=str)
def test_naive_step_has_the_gradients_of_ours(options: dict[str, bool]) -> None:
    """Without spectral norm, whose estimate depends on the number of calls."""
    usrda_steps = pytest.importorskip("bench.steps.usrda")
    from models.usrda.config import load_preset

    config = load_preset("tiny")
    norms = {
        f"discriminator_{name}": dataclasses.replace(getattr(config, f"discriminator_{name}"), norm="none")
        for name in "fty"
    }
    config = dataclasses.replace(config, num_feat=4, num_grow_ch=4, crop=64, **norms, **options)
    step = usrda_steps.make(config, "naive eager", CPU)
    batch = usrda_steps.make_batch(config, 2, "naive eager", CPU)
    batch = {name: value.double() for name, value in batch.items()}
    for network in (step.players.generator, step.players.discriminator):
        network.double()
    other = copy.deepcopy(step)
    losses = {name: loss.item() for name, loss in usrda_steps.naive_step(step, batch).items()}
    wanted = {name: loss.item() for name, loss in other(batch).items()}
    assert losses == pytest.approx({name: wanted[name] for name in losses})
    for made, ours in (
        (step.players.generator, other.players.generator),
        (step.players.discriminator, other.players.discriminator),
    ):
        for (name, parameter), (_, of_ours) in zip(made.named_parameters(), ours.named_parameters(), strict=True):
            assert of_ours.grad is not None and float(of_ours.grad.abs().max()) > 0, name
            torch.testing.assert_close(parameter.grad, of_ours.grad, rtol=1e-8, atol=1e-12)
            torch.testing.assert_close(parameter, of_ours, rtol=1e-8, atol=1e-12)


# Parity gate


def test_right_op_passes_and_gets_numbers() -> None:
    record = harness.measure(HIGHPASS, SMALL, CPU, **QUICK)
    assert {"published", "eager", "reference", "srkernels"} <= record["providers"].keys()
    assert record["providers"]["srkernels"]["ratio"] == 1.0
    assert record["bytes"] == HIGHPASS.bytes_moved(SMALL.case, 4, SMALL.passes)
    assert json.loads(json.dumps(record)) == record


def _scaled(x: torch.Tensor, **kwargs: Any) -> Any:
    return HIGHPASS.eager(x, **kwargs) * 1.001


def _no_gradient(x: torch.Tensor, **kwargs: Any) -> Any:
    return HIGHPASS.eager(x.detach(), **kwargs) + 0 * x.sum()


def _not_a_number(x: torch.Tensor, **kwargs: Any) -> Any:
    return HIGHPASS.eager(x, **kwargs) * float("nan")


@pytest.mark.parametrize("wrong", [_scaled, _no_gradient, _not_a_number])
def test_wrong_op_gets_no_number(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*_: Any, **__: Any) -> None:
        pytest.fail("something was timed before parity was green")

    monkeypatch.setattr(timing, "time_calls", timed)
    with pytest.raises(ParityError, match=r"off by|NaN at other places"):
        harness.measure(dataclasses.replace(HIGHPASS, op=wrong), SMALL, CPU, **QUICK)


def test_wrong_baseline_is_left_out_with_the_reason() -> None:
    other = dataclasses.replace(HIGHPASS, published=lambda x, **_: srkernels.haar_highpass(x, "mwcnn"))
    record = harness.measure(other, SMALL, CPU, **QUICK)
    assert "published" not in record["providers"]
    assert "off by" in record["skipped"]["published"]


def test_missing_peer_is_left_out_with_the_reason() -> None:
    def absent() -> Any:
        raise ImportError("no such package", name="wavelets_of_yore")

    found, skipped = baselines(dataclasses.replace(HIGHPASS, peers={"yore": absent}), compiled=False)
    assert [p.name for p in found] == ["published", "eager"]
    assert skipped == {"yore": "not installed (wavelets_of_yore)"}


@pytest.mark.parametrize("spec", [s for s in specs() if s.bench], ids=lambda s: s.name)
def test_papers_form_equals_the_oracle(spec: OpSpec) -> None:
    Gate(spec, tiny(spec), problem(spec, tiny(spec), CPU)).check(Provider("published", spec.published))


def test_a_scalar_loss_is_differentiated_without_a_cotangent() -> None:
    given = problem(L1, tiny(L1), CPU)
    assert given.cotangents == ()
    (grad,) = given.call(L1.op)()
    assert grad.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("spec", specs(), ids=lambda s: s.name)
def test_every_op_has_a_tiny_call(spec: OpSpec) -> None:
    bench = tiny(spec)
    assert all(s is None or 0 < torch.Size(s).numel() <= 192 for s in bench.case.shapes)
    assert flat(problem(spec, bench, CPU).call(spec.op)())


# Tables, report, commands


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results file of two ops, two cases each, with a target met and one missed."""
    cases = []
    for spec in (HIGHPASS, L1):
        for factor in (1, 2):
            record = harness.measure(spec, tiny(spec), CPU, **QUICK)
            record["case"] += "" if factor == 1 else " again"
            record["targets"] = verdicts({"eager": 1e-9 if factor == 1 else 1e9}, record["providers"])
            cases.append(record)
    content = {
        **machine.describe(CPU, "pytest bench --benchmark"),
        "cases": cases,
        "host": harness.host_cost(HIGHPASS, CPU, batches=2, batch=3),
        "checks": [harness.reused_buffer(CPU, seconds=0.02, shape=(1, 3, 16, 16))],
    }
    path = tmp_path / "machine-2026-01-01.json"
    write_json(path, content)
    return path


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "-"), (0, "0"), (1234.5, "1234"), (12.345, "12.3"), (0.004567, "0.00457")]
)
def test_numbers_have_three_significant_digits(value: float | None, expected: str) -> None:
    assert tables.number(value) == expected


def test_host_time_of_launches(results: Path, tmp_path: Path) -> None:
    """Without a GPU: as many launches as on one, and a row for each pass in both renderings."""
    pytest.importorskip("triton")
    from bench.ops.launches import launch_cost

    rows = launch_cost(HIGHPASS, "triton", CPU, batches=2, batch=3)
    assert [row["launches"] for row in rows] == [1, 2]
    headers, found = tables.launches(rows)
    assert all(len(row) == len(headers) for row in found)
    alone = tmp_path / "launches-2026-01-01.json"
    write_json(alone, json.loads(results.read_text()) | {"launches": rows})
    assert "| haar_highpass | triton | forward+backward | 1x3x8x8 | 2 |" in report.to_markdown(report.load(alone))


def test_results_name_no_host(results: Path) -> None:
    assert os.uname().nodename not in results.read_text()


def test_report_renders_tables_and_picture(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = report.render([results], tmp_path / "out")
    assert "| 1x3x8x8 float32 | forward+backward |" in text
    assert "met" in text and "MISSED" in text
    assert f"torch {torch.__version__}" in text and "pytest bench --benchmark" in text
    assert (tmp_path / "out" / "BENCH.md").read_text() == text
    picture = (tmp_path / "out" / "machine-2026-01-01.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_report_writes_its_page_and_the_chart(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    content = json.loads(results.read_text())
    timed = {"median_us": 2e3, "p20_us": 1e3, "p80_us": 3e3, "kept_bytes": 1e6}
    forms = {form: {**timed, "ratio": ratio} for form, ratio in (("published", 3.0), ("plain", 1.5), ("ours", 1.0))}
    forms["recompute"] = forms["ours"]
    content["steps"] = [{"step": "made up", "batch": 2, "providers": forms, "targets": []}]
    results.write_text(json.dumps(content))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    report.write_page([results], page)
    text = page.read_text()
    assert text == f"before\n<!-- bench:begin -->\n{report.page_block([results])}<!-- bench:end -->\nafter\n"
    assert "**`haar_highpass`**" in text and "**Training steps**" in text and "](bench-machine.png)" in text
    for picture in ("bench-machine.png", "bench.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    page.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        report.write_page([results], page)


def test_report_has_a_section_of_how_cost_grows_where_it_was_measured(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:begin -->\n<!-- bench:end -->\n")
    report.write_page([results], page)
    assert "cost grows" not in page.read_text() and not list(tmp_path.glob("*curves.png"))

    left_out = {"1x2048x2048": "expected to take 90 s, 4 s are left"}
    curves = [
        _curve((1.0, 1.2), threads=threads, ranks=ranks, axis=axis, left_out=left_out)
        for axis in ("batch", "side")
        for threads, ranks in ((1, 1), (2, 1), (1, 2))
    ]
    content = json.loads(results.read_text()) | {"scaling": curves}
    both, alone = tmp_path / "both-2026-01-01.json", tmp_path / "alone-2026-01-01.json"
    write_json(both, content)
    write_json(alone, {key: value for key, value in content.items() if key not in ("cases", "host", "checks")})
    report.write_page([both, alone], page)
    text = page.read_text()
    assert text.count("cost grows") == 2 and "**How cost grows**" in text and ": how cost grows\n" in text
    assert text.count("| ours above 1.1, ours above eager |") == 12
    assert "- made_up over side without 1x2048x2048: expected to take 90 s, 4 s are left" in text
    pictures = re.findall(r"\]\((.*?)\)", text)
    assert pictures == ["bench-both.png", "bench-both-curves.png", "bench-alone-curves.png"]
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_a_run_of_scaling_alone_leaves_the_cases_of_the_day() -> None:
    conditions = {"machine": {"cpu": "Fast(R) CPU", "threads": 2}, "date": "2026-01-01"}
    assert machine.result_name(conditions) == "fast-cpu-2-threads-2026-01-01.json"
    assert machine.result_name(conditions, "scaling") == "fast-cpu-2-threads-scaling-2026-01-01.json"


def test_steps_of_methods_with_different_targets_share_a_table() -> None:
    def record(first: str, targets: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        timed = {"median_us": 2e3, "p20_us": 1e3, "p80_us": 3e3, "ratio": 1.0}
        providers = {
            form: {**timed, "kept_bytes": mb * 1e6, **({"peak_bytes": 2e6 * mb} if "peak" in first else {})}
            for form, mb in ((first, 10), ("ours", 4), ("recompute", 2))
        }
        return {"step": f"made up {first}", "batch": 3, "providers": providers, "targets": targets, **more}

    kept = record("published", [{"against": "memory", "target": 3.0, "measured": 5.0, "met": True}])
    headers, rows = tables.steps([kept])
    assert "peak MB" not in headers
    assert rows[0][-4:] == ["10.0", "5.00x", "3.00x", "met"] and rows[1][-2:] == ["-", "-"]
    peak = [{"against": "peak ours", "target": 0.35, "measured": 0.4, "met": False}]
    headers, rows = tables.steps([kept, record("peak", peak, batch_wanted=8)])
    assert [row[1] for row in rows] == ["3", "3", "3", "3 of 8", "3 of 8", "3 of 8"]
    assert rows[1][-4:] == ["-", "-", "-", "-"]
    assert rows[4][-4:] == ["8.00", "40%", "<= 35%", "MISSED"]


def test_report_on_stdout_needs_no_matplotlib(results: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; from bench.report import *; print(render([Path(sys.argv[1])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(results)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "**`haar_highpass`**" in done.stdout


def test_report_names_an_unreadable_file(tmp_path: Path) -> None:
    done = _bench("bench", "report", str(tmp_path / "absent.json"))
    assert done.returncode == 2 and "absent.json" in done.stderr


@pytest.mark.thorough
def test_gpu_acceptance_runs_through(tmp_path: Path) -> None:
    done = _bench("bench", "gpu", "--out", str(tmp_path / "out"), "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(content["sections"]) == list(gpu.SECTIONS)
    for name, section in content["sections"].items():
        assert section["status"] in ("ok", "skipped"), (name, section)
        assert section["status"] == "ok" or section["reason"], name
    text = (tmp_path / "out" / "REPORT.md").read_text()
    assert "## ceilings" in text and "**matrix product, random data**" in text
    assert len(list((tmp_path / "out").iterdir())) <= 8
    assert "**`weighted_l1_loss`**" in report.render([tmp_path / "out" / "results.json"], None)
    said = _bench("bench", "gpu", "--report", str(tmp_path / "out" / "results.json"))
    assert said.returncode == 0 and "### The fastest of each pass" in said.stdout, said.stderr
    kernels = content["sections"]["kernels"]
    if kernels["status"] == "ok":
        assert {row["pass"] for row in kernels["data"]["kernels"]} == {
            "forward",
            "data gradient",
            "weight gradient",
            "activation gradient",
        }
        assert not [row for row in kernels["data"]["kernels"] if row.get("failed")]


def _kernel(kernel: str, *passes_us: float) -> dict[str, Any]:
    row = {"shape": "1x64->64x8x8", "dtype": "bf16", "pass": "forward", "kernel": kernel, "floor_us": 1.0}
    return row | {"us": sum(passes_us) / len(passes_us), "passes_us": list(passes_us)}


def test_gpu_report_chooses_and_tells_what_was_missed() -> None:
    wrong = {**_kernel("worse", 1.0), "failed": "WRONG: error 1, allowed 0.1"}
    del wrong["us"]

    def results(*rows: dict[str, Any]) -> dict[str, Any]:
        target = {"against": "eager", "target": 2.0, "measured": 1.5, "met": False}
        case = {"op": "op", "case": "c", "dtype": "float32", "layout": "contiguous", "passes": "forward"}
        data = {
            "kernels": [*rows, wrong],
            "scaling": [_curve((1.0, 1.2))],
            "cases": [case | {"targets": [target, target | {"met": True}]}],
        }
        failed = {"status": "timed out", "reason": "late"}
        return {"sections": {"kernels": {"status": "ok", "data": data}, "build": failed}}

    faster = results(_kernel(gpu_report.PYTORCH, 10, 11), _kernel("ours", 8, 9), _kernel("slower", 12, 12))
    assert [choice["kernel"] for choice in gpu_report.choices(faster)] == ["ours"]
    assert gpu_report.convolutions(faster)[1] == [
        ["1x64->64x8x8", "bf16", "forward", "10.5", "8.50", "1.24x", "1.00", "ours"]
    ]
    within = results(_kernel(gpu_report.PYTORCH, 10, 11), _kernel("ours", 8, 10.5))
    assert [choice["kernel"] for choice in gpu_report.choices(within)] == [gpu_report.PYTORCH]
    assert gpu_report.missed(faster) == [
        "1x64->64x8x8 bf16 forward, worse: WRONG: error 1, allowed 0.1",
        "op c float32 forward: 1.50 against eager, wanted 2",
        "slope of made_up over the side: ours above 1.1, ours above eager",
        "section build timed out: late",
    ]


def test_gpu_report_writes_the_table_of_choices_that_the_library_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"srkernels": "0", "torch": "2.11.0+cu130", "device": "a card", "cores": 7, "triton": "3.6.1"}
    cuda = torch.device("cuda")
    call = Call("conv2d_act", cuda, 0, (torch.bfloat16, 64, 14, 1), 3)
    record = Record({"reference": 2.0, "triton[shift pixels=64]": 1.0}, {"triton": "wrong"}, "2000-01-01")
    data = {"choices": json.loads(store.written(made, {call: record}))}
    results = {"sections": {"choices": {"status": "ok", "data": data}}}
    file = gpu_report.write_table(results, tmp_path)
    assert file is not None and file.parent == tmp_path
    monkeypatch.setattr(store, "TABLES", tmp_path)
    monkeypatch.setattr(store, "made_on", lambda device: made | {"torch": "2.11.3"})
    assert store.shipped(cuda) == {call: dataclasses.replace(record, table=file.stem)}
    assert store.shipped(cuda)[call].choice == "triton[shift pixels=64]"
    assert gpu_report.write_table({"sections": {"choices": {"data": {}}}}, tmp_path) is None
    data["choices"]["records"] = [{}]
    with pytest.raises(ValueError, match="no record that can be read"):
        gpu_report.write_table(results, tmp_path)


def test_the_acceptance_s_choices_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRKERNELS_CACHE", str(tmp_path / "cache"))
    anew(monkeypatch)
    assert gpu.run_all(tmp_path / "out", quick=True, only=["choices"]) == 0
    section = json.loads((tmp_path / "out" / "results.json").read_text())["sections"]["choices"]
    assert [row[0] for row in section["data"]["tables"][0]["rows"]] == ["haar_highpass", "conv2d_act"]
    assert "choices" not in section["data"]  # of sizes that nobody trains
    assert not (tmp_path / "cache").exists()


@pytest.mark.thorough
def test_gpu_report_names_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    done = _bench("bench", "gpu", "--report", str(tmp_path / "other.json"))
    assert done.returncode == 2 and "not a results file" in done.stderr
    assert _bench("bench", "gpu").returncode == 2


def test_a_section_in_its_own_process(tmp_path: Path) -> None:
    assert gpu.run_all(tmp_path, only=["environment"], minutes=2) == 0
    section = json.loads((tmp_path / "results.json").read_text())["sections"]["environment"]
    assert section["status"] == "ok" and section["data"]["tables"][0]["title"] == "machine"


def test_a_section_that_outlasts_its_time_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    monkeypatch.setattr(gpu.subprocess, "Popen", lambda command, **kw: real(["/bin/sleep", "30"], **kw))
    begin = time.monotonic()
    outcome = gpu._run_process("environment", tmp_path, False, 0.5)
    assert time.monotonic() - begin < 10
    assert outcome["status"] == "timed out" and "stopped after" in outcome["reason"]


def test_a_failing_section_leaves_its_traceback_and_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(context: Context) -> None:
        context.table("half", ["a"])("1")
        raise ValueError("midway")

    monkeypatch.setattr(
        gpu,
        "SECTIONS",
        {"one": gpu.Section(failing, 20, "fails"), "two": gpu.Section(lambda _: None, 20, "runs")},
    )
    assert gpu.run_all(tmp_path, quick=True) == 1
    sections = json.loads((tmp_path / "results.json").read_text())["sections"]
    assert sections["one"]["reason"] == "ValueError: midway" and "in failing" in sections["one"]["traceback"]
    assert sections["one"]["data"]["tables"][0]["rows"] == [["1"]]
    assert sections["two"]["status"] == "ok"


@pytest.mark.thorough
def test_benchmark_option_is_registered_and_prints(tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    done = _bench(
        "pytest",
        "bench",
        "--benchmark",
        "-q",
        "-k",
        "host_cost or reused",
        f"--benchmark-save-results={saved}",
        "--benchmark-device=cpu",
        "--benchmark-seconds=0.1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "host time of a tiny call" in done.stdout and "<= 1.1x" in done.stdout
    content = json.loads(saved.read_text())
    assert {row["op"] for row in content["host"]} == {spec.name for spec in specs()}
