"""Prepared launches hand the driver what ``kernel[grid]`` does; without a GPU, by a driver that notes what it gets."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from helpers.calls import detail_of
from torch import Tensor

from srkernels import _triton, use_backend
from srkernels._spec import BenchCase, Case, OpSpec
from srkernels.ops import specs

if importlib.util.find_spec("triton") is None or _triton.interpreting():
    pytest.skip("needs triton, not interpreting", allow_module_level=True)

import triton

from bench.gpu import convolutions
from bench.ops.launches import Device, by_triton, without_gpu
from bench.ops.providers import Problem, on_triton, problem
from srkernels import _launch
from srkernels._launch import redirected
from srkernels.ops.conv.activation import RELU, Epilogue
from srkernels.ops.conv.triton import launch

CPU = torch.device("cpu")


@pytest.fixture
def device() -> Iterator[Device]:
    with without_gpu() as device:
        yield device


@pytest.fixture
def by_triton_itself(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of kernels that were launched by ``kernel[grid]``."""
    names: list[str] = []
    run = triton.JITFunction.run

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        names.append(self.fn.__name__)
        return run(self, *args, **options)

    monkeypatch.setattr(triton.JITFunction, "run", counted)
    return names


def received(device: Device, call: Callable[[], Any], *operands: Tensor | None) -> list[Any]:
    """What the driver is given: tensors by their form, those of the caller by their place too."""
    places = {x.data_ptr(): i for i, x in enumerate(operands) if x is not None}
    found: list[Any] = []

    def argument(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return type(value), value
        at = value.data_ptr()
        return places.get(at), value.shape, value.stride(), value.dtype, at % 16

    def note(*launched: Any) -> None:
        *handles, metadata, enter, leave = launched[:9]
        found.append((handles, metadata and metadata.get(), enter, leave, [argument(x) for x in launched[9:]]))

    device.launch = note
    try:
        call()
    finally:
        device.launch = lambda *launched: None
    return found


def assert_same(device: Device, call: Callable[[], Any], *operands: Tensor | None) -> int:
    """That a call's launches are those of ``kernel[grid]``, the first time and prepared; how many."""
    with redirected(by_triton):
        expected = received(device, call, *operands)
    assert received(device, call, *operands) == expected
    assert received(device, call, *operands) == expected
    return len(expected)


_OPS = [pytest.param(spec, backend, id=f"{spec.name}-{backend}") for spec, backend in on_triton()]
# Beyond the small cases: channels that take ``shift``, rows and columns in pairs.
_DENSE = [(16, 64 + 16 * k, 3, 3) for k in range(4)], [(16,)] * 4
OTHERS = {
    "conv2d_act": Case("wide", ((1, 96, 4, 5), (8, 96, 3, 3), (8,), None, None), {"activation": "relu"}),
    "dense_block": Case("wide", ((1, 64, 3, 5), *_DENSE[0], (64, 128, 3, 3), *_DENSE[1], (64,))),
    "haar_highpass": Case("even", ((1, 8, 4, 16),)),
}


def calls(spec: OpSpec, backend: str, dtypes: Sequence[str], layouts: Sequence[bool]) -> Iterator[tuple[str, Problem]]:
    for case in (*spec.small, *filter(None, [OTHERS.get(spec.name)])):
        if spec.refuses(backend, CPU, torch.float32, detail_of(spec, case), False) is not None:
            continue
        for dtype in dtypes:
            for last in layouts:
                bench = BenchCase(case, "forward+backward", dtype, last, spec.operands)
                yield f"{case.id} {dtype} {last}", problem(spec, bench, CPU)


@pytest.mark.parametrize(("spec", "backend"), _OPS)
def test_the_driver_gets_what_triton_hands_it(
    device: Device, by_triton_itself: list[str], spec: OpSpec, backend: str
) -> None:
    """Every op, forward and backward, in both layouts and in elements of all sizes."""
    count = 0
    with use_backend(backend):
        for name, given in calls(spec, backend, ("float32", "bfloat16", "float64"), (False, True)):
            call = given.call(spec.op)
            count += assert_same(device, call, *given.operands, *given.cotangents)
            by_triton_itself.clear()
            call()
            assert not by_triton_itself, f"{name}: not prepared"
    assert count


def test_every_kernel_was_compared() -> None:
    """A kernel that no call of the test above reaches is seen here."""
    launched: set[str] = set()
    for spec, backend in on_triton():
        for _, given in calls(spec, backend, ("bfloat16", "float64"), (False,)):
            note = redirected(lambda one, *tensors: launched.add(one.kernel.fn.__name__))
            with without_gpu(), use_backend(backend), note:
                given.call(spec.op)()
    modules = [f"{spec.package}.triton.launch" for spec in specs()] + ["srkernels.ops.conv.triton.around"]
    kernels = [vars(importlib.import_module(module)) for module in modules]
    assert launched == {name for names in kernels for name, found in names.items() if hasattr(found, "arg_names")}


def _image(*shape: int, offset: int = 0) -> Tensor:
    """channels_last, ``offset`` elements behind an address that is divisible by 16."""
    n, c, h, w = shape
    return torch.zeros(n * c * h * w + offset)[offset:].view(n, h, w, c).permute(0, 3, 1, 2)


def _convolving(x: Tensor, bias: Tensor) -> Callable[[], Any]:
    weight, y = _image(8, 8, 3, 3), _image(x.shape[0], 8, *x.shape[2:])
    return lambda: launch.convolve(x, weight, y, Epilogue(RELU), launch.EpilogueTensors(bias))


def test_addresses_and_shapes_that_change(device: Device) -> None:
    """Kernels compiled for addresses divisible by 16 never get others, whatever came before; nor those of a shape."""
    bias, kernels = torch.zeros(9), set()
    for shape in ((1, 8, 4, 5), (2, 8, 4, 5), (1, 8, 5, 4)):
        for offset in (0, 1, 0, 2, 4):
            for b in (bias[:8], bias[1:]):
                x = _image(*shape, offset=offset)
                call = _convolving(x, b)
                assert_same(device, call, x, b)
                ((handles, *_),) = received(device, call)
                kernels.add((shape, x.data_ptr() % 16 == 0, b.data_ptr() % 16 == 0, handles[4]))
    assert len(kernels) == 3 * 4, "one for each pair of alignments"


@pytest.fixture
def cudnn() -> Iterator[Any]:
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    yield conv
    conv.fp32_precision = before


def test_another_stream_and_another_precision(device: Device, cudnn: Any) -> None:
    """The stream is the current one, as in a graph's capture; how fp32 is multiplied may be set at any time."""
    x = _image(1, 8, 4, 5)
    call = _convolving(x, torch.zeros(8))
    for stream in (0, 7, 0):
        device.stream = stream
        assert_same(device, call, x)
        assert received(device, call)[0][0][3] == stream
    kernels = []
    for precision in ("ieee", "tf32", "ieee"):
        cudnn.fp32_precision = precision
        assert_same(device, call, x)
        kernels.append(received(device, call)[0][0][4])
    assert kernels[0] == kernels[2] != kernels[1]


def test_hooks_around_a_launch(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set after a launch was prepared, they are handed to the driver with what they are told."""
    x = _image(1, 8, 4, 5)
    call = _convolving(x, torch.zeros(8))
    call(), call()

    def hook(metadata: Any) -> None: ...

    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", hook)
    assert_same(device, call, x)
    ((_, told, enter, _, _),) = received(device, call)
    assert enter is hook
    assert told["name"] in ("stream", "gather")


def test_a_form_that_is_not_known(device: Device, by_triton_itself: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Then launches go Triton's way, with their arguments worked out once."""
    monkeypatch.setattr(_launch, "_TAKES_ALL", False)
    x = _image(1, 8, 4, 5)
    call = _convolving(x, torch.zeros(8))
    assert_same(device, call, x)
    assert len(by_triton_itself) == 3
    monkeypatch.setattr(launch, "choose", lambda *operands: pytest.fail("planned again"))
    call()


def test_this_triton_is_known() -> None:
    """A release that nobody has read takes the slow road until its form was compared here."""
    assert _launch._TAKES_ALL or torch.version.hip


def test_what_is_remembered_is_bounded(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "_MOST", 3)
    for width in range(1, 9):
        x = _image(1, 8, 4, width)
        assert_same(device, _convolving(x, torch.zeros(8)), x)
        assert len(_launch._ready) <= 3


def test_what_the_acceptance_compiles_ahead_is_what_is_launched(device: Device) -> None:
    x = _image(1, 8, 4, 5)
    call = _convolving(x, torch.zeros(8))
    launched: list[Any] = []
    device.launch = lambda *one: launched.append(one)
    with convolutions._compiling():
        call()
    assert (device.kernels, len(launched)) == (1, 0)
    call()
    assert (device.kernels, len(launched)) == (1, 1)
