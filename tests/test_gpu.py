"""What only a GPU can show: graphs, streams, devices, peak memory, launches. Parity there is in the other gates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.calls import Target, gradients, present, subsets, values
from helpers.operands import cotangents, operands
from torch import Tensor

import srkernels
from srkernels._spec import BenchCase, Case, OpSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


def _skip_unless_on_gpu(target: Target) -> None:
    if target.device != "cuda":
        pytest.skip("CPU tensors need no GPU")
    if target.backend == "reference":
        pytest.skip("eager PyTorch is not what is tested here")


def _bench(spec: OpSpec) -> BenchCase:
    """The first benched case, or the first gate case of an op that is not benched."""
    return spec.bench[0] if spec.bench else BenchCase(spec.cases[0], "forward+backward", differentiable=spec.operands)


def _prepared(spec: OpSpec, case: Case, device: str = "cuda") -> tuple[list[Tensor | None], list[Tensor]]:
    xs = operands(case, torch.float32, device=device)
    return xs, cotangents(values(spec.oracle, case, xs))


def _both(spec: OpSpec, case: Case, xs: list[Tensor | None], cots: list[Tensor]) -> list[Tensor]:
    return [*values(spec.op, case, xs), *gradients(spec.op, case, xs, cots, present(xs))]


def _assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_cuda_graph(spec: OpSpec, target: Target) -> None:
    """Capture forward and backward, change the operands in place, replay: nothing synchronises, nothing is stale."""
    _skip_unless_on_gpu(target)
    case = spec.cases[0]
    xs, cots = _prepared(spec, case)
    with srkernels.use_backend(target.backend):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                _both(spec, case, xs, cots)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = _both(spec, case, xs, cots)
        others = operands(case, torch.float32, seed=9, device="cuda")
        for x, other in zip(xs, others, strict=True):
            if x is not None:
                x.copy_(other)
        graph.replay()
        _assert_same_bits(captured, _both(spec, case, xs, cots))


def test_side_stream(spec: OpSpec, target: Target) -> None:
    """Work is queued on the current stream: behind a long kernel there, it must see that kernel's result."""
    _skip_unless_on_gpu(target)
    case = _bench(spec).case
    xs, cots = _prepared(spec, case)
    with srkernels.use_backend(target.backend):
        expected = _both(spec, case, xs, cots)
        late = [None if x is None else torch.full_like(x, torch.nan) for x in xs]
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            for x, value in zip(late, xs, strict=True):
                if x is not None:
                    x.copy_(value)
            found = _both(spec, case, late, cots)
        _assert_same_bits(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_second_device(spec: OpSpec, target: Target) -> None:
    """Operands decide, not the current device."""
    _skip_unless_on_gpu(target)
    case = spec.cases[0]
    xs, cots = _prepared(spec, case)
    there = [None if x is None else x.to("cuda:1") for x in xs]
    with srkernels.use_backend(target.backend):
        found = _both(spec, case, there, [c.to("cuda:1") for c in cots])
        assert {y.device.index for y in found} == {1}
        assert torch.cuda.current_device() == 0
        _assert_same_bits([y.to("cuda:0") for y in found], _both(spec, case, xs, cots))


def test_peak_memory(spec: OpSpec, target: Target) -> None:
    """Forward allocates its outputs and what is saved, backward the gradients; workspaces stay under a megabyte."""
    _skip_unless_on_gpu(target)
    bench = _bench(spec)
    case, wanted = bench.case, tuple(spec.operands.index(name) for name in bench.differentiable)
    xs, cots = _prepared(spec, case)
    wanted = wanted or (0,)
    with srkernels.use_backend(target.backend):
        gradients(spec.op, case, xs, cots, wanted)
        outputs = sum(y.nbytes for y in values(spec.op, case, xs))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(spec.op, case, xs, cots, wanted)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    allowed = outputs + sum(xs[i].nbytes for i in wanted) + spec.saved_bytes(case, 4) + 2**20
    assert peak <= allowed, f"peak {peak}, outputs, gradients and saved {allowed}"


def _kernels(call: Callable[[], object]) -> list[str]:
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    events = (e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    return [e.name for e in events]


def test_one_launch_each_way(spec: OpSpec, target: Target) -> None:
    """One kernel forward and one backward, whichever gradients are asked for; no copies, no fills."""
    _skip_unless_on_gpu(target)
    case = _bench(spec).case
    xs, cots = _prepared(spec, case)
    with srkernels.use_backend(target.backend):
        forward = _kernels(lambda: values(spec.op, case, xs))
        assert len(forward) == 1, forward
        for wanted in subsets(present(xs)):
            leaves = [None if x is None else x.detach().requires_grad_(i in wanted) for i, x in enumerate(xs)]
            outputs = values(spec.op, case, leaves)
            inputs = [leaves[i] for i in wanted]
            backward = _kernels(lambda o=outputs, i=inputs: torch.autograd.grad(o, i, cots, retain_graph=True))
            assert len(backward) == 1, (wanted, backward)


def test_no_synchronisation(spec: OpSpec, target: Target) -> None:
    _skip_unless_on_gpu(target)
    case = spec.cases[0]
    xs, cots = _prepared(spec, case)
    with srkernels.use_backend(target.backend):
        _both(spec, case, xs, cots)
        torch.cuda.set_sync_debug_mode("error")
        try:
            _both(spec, case, xs, cots)
        finally:
            torch.cuda.set_sync_debug_mode("default")
