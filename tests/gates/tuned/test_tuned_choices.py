"""Choices measured on the user's machine: what is measured, when, and which call follows it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.operands import random
from helpers.tuning import backends, loss
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import srkernels
from srkernels import _native, _parity
from srkernels.ops.weighted_loss import native as weighted_loss_native
from srkernels.tuned import choose, measure

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(_native.why_not(CPU) is not None, reason="one backend alone leaves nothing to choose")


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


def test_how_filters_pass_is_part_of_a_class(told) -> None:
    """Only backends that run a convolution are measured, and only what the fastest was measured for follows it."""
    x, weight = random((1, 4, 8, 8), torch.float32, 0), random((4, 4, 3, 3), torch.float32, 1)
    told["native"] = 0.5
    given = ({"padding": 1}, {"stride": 2}, {"stride": (2, 1)}, {"dilation": 2}, {"padding": 2}, {"stride": (2, 2)})
    found = []
    with srkernels.tuning() as tuner:
        for passes in given:
            srkernels.conv2d_act(x, weight, **passes)
            found.append(len(tuner.found))
    assert found == [1, 2, 3, 4, 5, 5]
    assert [record.choice for record in tuner.found.values()] == ["native", *["reference"] * 4]
    assert "measured on" in srkernels.explain("conv2d_act", x, weight, stride=2)
    assert "(automatic)" in srkernels.explain("conv2d_act", x, weight, stride=3)
