"""What only the C++ core has: several instruction sets, streaming stores for large outputs, signs kept for backward."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import srkernels
from srkernels import _native, info
from srkernels.ops import specs

CPU = torch.device("cpu")
REASON = _native.why_not(CPU)
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"native: {REASON}")

# Above the size from which csrc/cpu/simd.h streams: 11.8 MB of fp32.
LARGE = (2, 3, 768, 640)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    core = _native.extension("cpu")
    best = core.isa()
    try:
        core.set_isa(request.param)
    except ValueError as reason:
        pytest.skip(str(reason))
    yield request.param
    core.set_isa(best)


@pytest.fixture(autouse=True)
def _on_native() -> Iterator[None]:
    with srkernels.use_backend("native"):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.name)
def test_every_instruction_set_is_within_the_budget(isa: str, spec: srkernels._spec.OpSpec, dtype: torch.dtype) -> None:
    # fp16's sums of squares, which this measure differentiates, overflow in the larger cases.
    limit = 250 if dtype is torch.float16 else 50_000
    for case in spec.cases:
        sizes = [torch.Size(s).numel() for s in case.shapes if s is not None]
        if min(sizes) > 0 and max(sizes) < limit:
            assert info.worst_error(spec, case, dtype, CPU) <= 1, case.id


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_streamed_outputs_equal_stored_ones(isa: str, dtype: torch.dtype) -> None:
    """Images one by one stay below the streaming size, the batch is above: same bits, forward and backward."""
    scale = 4 // dtype.itemsize  # the halves need twice the elements
    generator = torch.Generator().manual_seed(3)
    n, c, h, w = LARGE
    x = torch.rand(n * scale, c, h, w, generator=generator).to(dtype).requires_grad_()
    target = torch.rand(x.shape, generator=generator).to(dtype)
    weight = torch.rand(n * scale, 1, h // 8, w // 8, generator=generator)
    assert x.numel() * dtype.itemsize >= 8 << 20 > x[:1].numel() * dtype.itemsize

    high = srkernels.haar_highpass(x)
    cotangent = torch.rand(high.shape, generator=generator).to(dtype)
    (grad,) = torch.autograd.grad(high, x, cotangent)
    (slope,) = torch.autograd.grad(srkernels.weighted_l1_loss(x, target, weight, reduction="sum"), x)
    for i in range(n * scale):
        one = slice(i, i + 1)
        alone = x.detach()[one].requires_grad_()
        part = srkernels.haar_highpass(alone)
        assert torch.equal(part, high[one])
        assert torch.equal(torch.autograd.grad(part, alone, cotangent[one])[0], grad[one])
        loss = srkernels.weighted_l1_loss(alone, target[one], weight[one], reduction="sum")
        assert torch.equal(torch.autograd.grad(loss, alone)[0], slope[one])


@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (3, 5, 4, 12), (2, 16, 5, 3), (1, 1, 48, 7)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("normalize", ["numel", "weight_sum"])
def test_gradients_from_signs_equal_those_from_images(
    isa: str, shape: tuple[int, ...], channels_last: bool, normalize: str
) -> None:
    generator = torch.Generator().manual_seed(5)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, t = (torch.rand(shape, generator=generator).contiguous(memory_format=memory_format) for _ in range(2))
    t[0, 0, 0] = x[0, 0, 0]  # sign(0)
    x[0, 0, -1, -1] = torch.nan  # sign(NaN) = 0
    weight = torch.rand(shape[0], 1, 2, 3, generator=generator)

    def gradients(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, t = x.detach().requires_grad_(), t.detach().requires_grad_()
        return torch.autograd.grad(srkernels.weighted_l1_loss(x, t, weight, normalize=normalize), (x, t))

    def sliced(x: torch.Tensor) -> torch.Tensor:  # not dense, so the backward pass reads the images
        return torch.cat((x, x), dim=3)[..., : shape[3]]

    for kept, read in zip(gradients(x, t), gradients(sliced(x), sliced(t)), strict=True):
        torch.testing.assert_close(kept, read, rtol=0, atol=0, equal_nan=True)


_AMX = pytest.mark.skipif(
    REASON is not None or not _native.extension("cpu").amx_available(), reason="no Intel AMX on this machine"
)


def _filters_gradient(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    weight = x.new_empty(grad.shape[1], x.shape[1], 3, 3)
    one = [1, 1]
    arguments = (grad, x, weight, None, one, one, one, False, [0, 0], 1, [False, True, False])
    return torch.ops.aten.convolution_backward(*arguments)[1]


@_AMX
@pytest.mark.parametrize(
    ("n", "ci", "co", "h", "w"),
    [(1, 32, 32, 1, 2), (1, 32, 64, 5, 7), (2, 64, 32, 9, 33), (3, 96, 64, 17, 31), (2, 64, 64, 24, 96)],
    ids=lambda v: str(v),
)
def test_amx_weight_gradient(n: int, ci: int, co: int, h: int, w: int) -> None:
    """Within the budget, for slices of channels too, the same bits on any number of threads."""
    core = _native.extension("cpu")
    generator = torch.Generator().manual_seed(7)

    def image(channels: int) -> torch.Tensor:
        x = torch.empty(n, channels + 32, h, w).uniform_(-1, 1, generator=generator).bfloat16()
        return x.contiguous(memory_format=torch.channels_last)[:, 32:]

    x, grad = image(ci), image(co)
    results = []
    for threads in (1, 2, 3):
        out = torch.full((co, ci, 3, 3), torch.nan, dtype=torch.bfloat16)
        core.amx_weight_gradient(x, grad, out, 0.5, threads)
        results.append(out)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    exact, eager = 0.5 * _filters_gradient(x.double(), grad.double()), 0.5 * _filters_gradient(x, grad)
    error, allowed = (results[0] - exact).norm(), 2 * (eager - exact).norm() + 2**-9 * exact.norm()
    assert error <= allowed
    assert error > 0


@_AMX
def test_a_block_of_64_channels_takes_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of real networks, which the gates' small cases do not reach, against eager PyTorch in fp64."""
    from srkernels.ops.conv import native

    calls = []
    launch = native.launch
    monkeypatch.setattr(native, "launch", lambda x, name, *args: (calls.append(name), launch(x, name, *args)))
    generator = torch.Generator().manual_seed(11)
    shapes = ((2, 64, 20, 96), (64, 64, 3, 3), (64,), (64, 64, 3, 3), (64,))
    operands = [torch.empty(s).uniform_(-0.1, 0.1, generator=generator).bfloat16() for s in shapes]
    x = operands[0].contiguous(memory_format=torch.channels_last)
    results = []
    for op, dtype in ((_eager_block, torch.float64), (_eager_block, torch.bfloat16), (None, torch.bfloat16)):
        leaves = [t.to(dtype).requires_grad_() for t in (x, *operands[1:])]
        y = op(*leaves) if op else srkernels.residual_block(*leaves, res_scale=0.5)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    assert calls.count("amx_weight_gradient") == 2
    for exact, eager, found in zip(*results, strict=True):
        error, allowed = (found - exact).norm(), 2 * (eager - exact).norm() + 2**-9 * exact.norm()
        assert 0 < error <= allowed


def _eager_block(
    x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor
) -> torch.Tensor:
    conv2d = torch.nn.functional.conv2d
    return x + 0.5 * conv2d(conv2d(x, w1, b1, padding=1).relu(), w2, b2, padding=1)
