"""What only a GPU can show: graphs, streams, devices, peak memory, launches. Parity on it is in the other gates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.calls import Target, subsets
from helpers.operands import cotangents, operands
from torch import Tensor

import srkernels
from srkernels._parity import gradients, present, values
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


def _prepared(
    spec: OpSpec, case: Case, dtype: torch.dtype = torch.float32, layout: str = "contiguous"
) -> tuple[list[Tensor | None], list[Tensor]]:
    xs = operands(case, dtype, layout, device="cuda")
    return xs, cotangents(values(spec.eager, case, xs))


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
    """Work is queued on the current stream: after a long kernel there, it must see that kernel's result."""
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
    """The operands decide, not the current device."""
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
    """Forward allocates its outputs and what it saves, backward the gradients; workspaces stay under a megabyte.

    Convolutions: no more than eager PyTorch and a share of a weight gradient for each multiprocessor.
    """
    _skip_unless_on_gpu(target)
    bench = _bench(spec)
    case, wanted = bench.case, tuple(spec.operands.index(name) for name in bench.differentiable)
    layout = "channels_last" if spec.convolves else "contiguous"
    xs, cots = _prepared(spec, case, layout=layout)
    wanted = wanted or (0,)

    def peak(op: Callable[..., object]) -> int:
        gradients(op, case, xs, cots, wanted)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(op, case, xs, cots, wanted)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    with srkernels.use_backend(target.backend):
        ours = peak(spec.op)
        outputs = sum(y.nbytes for y in values(spec.op, case, xs))
    allowed = outputs + sum(xs[i].nbytes for i in wanted) + spec.saved_bytes(case, 4) + 2**20
    if spec.convolves:
        share = 4 * 9 * 64 * 64
        allowed = peak(spec.eager) + share * torch.cuda.get_device_properties(0).multi_processor_count
    assert ours <= allowed, f"peak {ours}, allowed {allowed}"


def _kernels(call: Callable[[], object]) -> list[str]:
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    events = (e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    return [e.name for e in events]


def test_one_launch_each_way(spec: OpSpec, target: Target) -> None:
    """One kernel forward and one backward, whichever gradients are requested; no copies, no fills.

    In Triton the gradient of a weight map is another.
    """
    _skip_unless_on_gpu(target)
    if spec.convolves:
        pytest.skip("convolutions take several launches")
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
            kinds = {spec.operands[i] == "weight" for i in wanted} if target.backend == "triton" else {False}
            assert len(backward) == len(kinds), (wanted, backward)


def test_launches(spec: OpSpec, target: Target) -> None:
    """As many as the spec says; tests/backends/test_launches.py has their names."""
    _skip_unless_on_gpu(target)
    if not spec.convolves or target.backend != "triton":
        pytest.skip("Triton's convolutions are meant")
    case = _bench(spec).case
    xs, cots = _prepared(spec, case, torch.bfloat16, "channels_last")
    with srkernels.use_backend(target.backend):
        leaves = [None if x is None else x.detach().requires_grad_() for x in xs]
        forward = _kernels(lambda: values(spec.op, case, leaves))
        assert len(forward) <= spec.launches[0], forward
        outputs, inputs = values(spec.op, case, leaves), [x for x in leaves if x is not None]
        backward = _kernels(lambda: torch.autograd.grad(outputs, inputs, cots, retain_graph=True))
        assert len(backward) <= spec.launches[1], backward


# (batch, channels in, channels out, height, width): bands of many rows, several blocks of input channels, seams.
_LARGE = ((2, 64, 64, 150, 130), (2, 160, 32, 131, 100), (2, 192, 64, 64, 129), (1, 32, 160, 90, 257))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", _LARGE, ids=str)
def test_kernels_of_convolutions_at_large_sizes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Each configuration, forward and gradients, against fp64: no more than twice PyTorch's own error."""
    launch = pytest.importorskip("srkernels.ops.conv.triton.launch")
    from triton.runtime.errors import OutOfResources

    from srkernels.ops.conv.triton.configuration import configurations, configurations_of_shares

    n, cin, cout, height, width = shape
    generator = torch.Generator("cuda").manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        x = torch.rand(shape, generator=generator, device="cuda", dtype=torch.float64) - 0.5
        return x.to(dtype).contiguous(memory_format=torch.channels_last)

    def assert_right(found: Tensor, eager: Tensor, exact: Tensor, how: object) -> None:
        error, of_eager = ((y.double() - exact).abs().max() for y in (found, eager))
        assert error <= 2 * of_eager + torch.finfo(dtype).eps * exact.abs().max(), how

    def backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        run = torch.ops.aten.convolution_backward
        return run(g, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])[:2]

    x, g, w = drawn(n, cin, height, width), drawn(n, cout, height, width), drawn(cout, cin, 3, 3)
    if dtype is torch.bfloat16 and cin == 64:
        assert launch.choose(x, cout).kernel == "stream" or not launch.is_hopper(x.device)
    eager, exact = (torch.conv2d(*pair, padding=1) for pair in ((x, w), (x.double(), w.double())))
    of_eager, of_exact = backward(g, x, w), backward(g.double(), x.double(), w.double())
    for adjoint, source, expected in ((False, x, (eager, exact)), (True, g, (of_eager[0], of_exact[0]))):
        out = cin if adjoint else cout
        for how in configurations(source, out).values():
            y = torch.full_like(expected[0], torch.nan)
            try:
                launch.convolve(source, w, y, adjoint=adjoint, how=how)
            except OutOfResources:  # a candidate may need more than this card has
                if how == launch.choose(source, out):
                    raise
                continue
            assert_right(y, *expected, how)
    for how in configurations_of_shares(x, cout).values():
        y = torch.full_like(w, torch.nan)
        try:
            launch.gradient_of_weight(x, g, y, how=how)
        except OutOfResources:
            if how == launch.choose_shares(x, cout):
                raise
            continue
        assert_right(y, of_eager[1], of_exact[1], how)


def test_small_calls(spec: OpSpec, target: Target) -> None:
    """What compute-sanitizer watches: forward and backward of the small cases."""
    _skip_unless_on_gpu(target)
    with srkernels.use_backend(target.backend):
        for case in spec.small[:2]:
            for dtype in (torch.float32, torch.bfloat16):
                xs, cots = _prepared(spec, case, dtype)
                assert all(torch.isfinite(y).all() for y in _both(spec, case, xs, cots))


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


def test_a_replayed_training_step_is_the_eager_one() -> None:
    """DASR's SR step, both players and their optimisers: ten updates, six of them replays, to the same bits."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    pytest.importorskip("yaml", reason="models needs the extra train")
    from bench.steps.dasr import make, make_batch
    from models.dasr.config import load_preset
    from models.train import graph

    device, config = torch.device("cuda", 0), load_preset("tiny")
    batch, weights = make_batch("srn", config, 2, "ours", device), []
    for graphed in (False, True):
        step = make("srn", config, "ours", device)
        for optimizer in (step.players.optimizer_g, step.players.optimizer_d):
            graph.make_capturable(optimizer)
        capture = graph.CUDACapture(device)
        replayed = graph.GraphedStep(lambda _, batch, step=step: step(batch), lambda _: None, capture, pytest.fail)
        for done in range(10):
            inputs = {name: x + 0.01 * done for name, x in batch.items()}
            replayed(done, inputs) if graphed else step(inputs)
        networks = (step.players.generator, step.players.discriminator)
        weights.append([p.detach().clone() for network in networks for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
