"""Configurations of a backend's kernels as candidates: the native loss stands for one that has them.

Triton's own are in tests/backends/test_launches.py and test_interpreter.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tuning import anew, backends, loss

import srkernels
from srkernels import _dispatch, _native
from srkernels.ops.weighted_loss import native
from srkernels.tuned import clock, report, store

CPU = torch.device("cpu")
LISTS = [["own", "wide", "deep", "tall", "flat", "last"], ["sums", "sums by=2", "sums by=4"]]

pytestmark = pytest.mark.skipif(_native.why_not(CPU) is not None, reason="the native loss stands for a backend")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Gives the native loss configurations. Which of them ran is in ``calls``; "faults": what is done to a result."""
    found: dict[str, Any] = {"calls": [], "faults": {}}
    forward, backward = native.forward, native.backward

    def configured(names: list[str]) -> SimpleNamespace:
        def run(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def noted(*arguments: Any) -> Any:
                found["calls"].append((what, *names))
                out = function(*arguments)
                for name in names:
                    out = found["faults"].get(name, lambda out: out)(out)
                return out

            return noted

        return SimpleNamespace(forward=run("forward", forward), backward=run("backward", backward))

    monkeypatch.setattr(native, "configurations", lambda operands: LISTS, raising=False)
    monkeypatch.setattr(native, "configured", configured, raising=False)
    monkeypatch.setattr(_dispatch, "_cache", {})
    return found


def test_the_best_of_each_pass_are_combined_and_run_forward_and_backward(told, ran, images) -> None:
    told |= {"native": 0.9, "native[deep]": 0.5, "native[deep, sums by=4]": 0.4}
    x = images[0].clone().requires_grad_()
    with srkernels.tuning() as tuner:
        loss(x, images[1])
    (record,) = tuner.found.values()
    best = "native[deep, sums by=4]"
    assert record.choice == best
    first = [f"native[{name}]" for name in LISTS[0][1:5]]  # not its own, and no more than are worth compiling
    assert list(record.seconds) == ["reference", "native", *first, "native[deep, sums by=2]", best]
    ran["calls"].clear()
    assert backends(lambda: loss(x, images[1]).backward()) == [best, best]
    assert ran["calls"] == [("forward", "deep", "sums by=4"), ("backward", "deep", "sums by=4")]
    torch.testing.assert_close(x.grad, (images[0] - images[1]).sign() / x.numel())
    said = srkernels.explain("weighted_l1_loss", x, images[1])
    assert said.splitlines()[0].endswith(f"{best} (measured on {record.day})")
    assert f"    {best}: can run, chosen: took 400000 us" in said
    assert "    native[wide]: can run: took 1000000 us" in said
    (header, row) = report.table(report.rows_of(tuner)).splitlines()
    assert header.split("  ")[-1] == "choice"
    assert header.count("native") == 1  # its best
    assert row.endswith(best)
    assert "400000" in row


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda out: [y.mul_(1.01) for y in out], "wrong: output 0: element 0 is"),
        (lambda out: torch.zeros(2)[5], "IndexError: index 5 is out of bounds"),
        (lambda out: (_ for _ in ()).throw(torch.OutOfMemoryError("no room\nfor it")), "OutOfMemoryError: no room"),
    ],
    ids=["wrong", "raises", "memory"],
)
def test_a_configuration_that_is_wrong_or_raises_is_dropped_by_name(fault, reason, told, ran, images) -> None:
    """Each would have been the fastest of its pass."""
    told |= {"native[wide]": 0.01, "native[deep]": 0.5, "native[deep, sums by=2]": 0.01}
    ran["faults"] = {"wide": fault, "sums by=2": fault}
    with srkernels.tuning() as tuner:
        loss(*images)
    (record,) = tuner.found.values()
    assert record.choice == "native[deep]"
    assert record.dropped.keys() == {"native[wide]", "native[deep, sums by=2]"}
    assert all(said.startswith(reason) for said in record.dropped.values())
    text = report.table(report.rows_of(tuner))
    assert f"native[wide] was dropped: {reason}" in text
    assert f"native[wide]: dropped when it was measured: {reason}" in srkernels.explain("weighted_l1_loss", *images)


def test_a_configuration_may_run_where_the_backends_own_does_not(told, ran, images, monkeypatch) -> None:
    told["native[tall]"] = 0.5
    monkeypatch.setattr(native, "forward", lambda *_: torch.zeros(2)[5])
    with srkernels.tuning() as tuner:
        loss(*images)
    (record,) = tuner.found.values()
    assert "native" in record.dropped
    assert record.choice == "native[tall]"
    assert backends(lambda: loss(*images)) == ["native[tall]"]


def test_rounds_are_compared_by_eager_pytorch_which_is_in_each(ran, images, monkeypatch) -> None:
    """The machine halves its speed from round to round: the time of whoever was in the first alone is scaled."""
    took, rounds = {"reference": 1.0, "native": 0.9, "native[flat]": 0.8, "native[wide]": 0.85}, []

    def medians(calls: dict[str, Any], device: torch.device) -> dict[str, float]:
        rounds.append(list(calls))
        return {name: 2 ** (len(rounds) - 1) * took.get(name, 0.95) for name in calls}

    monkeypatch.setattr(clock, "medians", medians)
    with srkernels.tuning() as tuner:
        loss(*images)
    (record,) = tuner.found.values()
    assert [names[:2] for names in rounds] == [["reference", "native"]] * 2 + [["reference", "native[flat]"]]
    assert record.seconds["native[wide]"] / record.seconds["reference"] == pytest.approx(0.85)
    assert record.choice == "native[flat]"


def _kept(images: Any, **seconds: float) -> None:
    """A file in which these candidates were measured."""
    with srkernels.tuning():
        loss(*images)
    file = store.path(CPU)
    content = json.loads(file.read_text())
    content["records"][0]["seconds"] |= seconds
    file.write_text(json.dumps(content))


def test_a_later_process_follows_the_configuration(told, ran, images, monkeypatch) -> None:
    told["native[tall]"] = 0.5
    _kept(images)
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) == ["native[tall]"]


@pytest.mark.parametrize(
    "candidate",
    [
        *(
            "native[gone]",
            "native[tall, gone]",
            "native[sums by=2, tall]",
            "native[tall, deep]",
            "native[tall,sums by=2]",
        ),
        *("native[tall", "native[", "native]", "native[]", "native[tall]]", "native[[tall]", "[tall]", "[" * 9000),
    ],
)
def test_a_record_whose_configuration_is_gone_or_malformed_is_not_followed(candidate, told, ran, images, monkeypatch):
    _kept(images, **{candidate: 0.001})
    anew(monkeypatch)
    assert backends(lambda: loss(*images)) in ([""], ["reference"])
    assert "weighted_l1_loss on cpu" in srkernels.explain("weighted_l1_loss", *images)


def test_calls_of_no_record_ask_for_no_configuration(ran, images, monkeypatch) -> None:
    monkeypatch.setattr(native, "configurations", lambda operands: pytest.fail("asked"))
    assert backends(lambda: loss(*images)) == [""]
    with srkernels.use_backend("native"):
        assert backends(lambda: loss(*images)) == ["native"]
