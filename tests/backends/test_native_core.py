"""What only the C++ core has: several instruction sets, streaming stores for large outputs, signs kept for backward."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers.calls import why_not
from helpers.marks import thorough
from helpers.operands import DTYPES

import srkernels
from srkernels import _native, info
from srkernels.ops import specs
from srkernels.ops.conv.activation import Epilogue, activate, derivative
from srkernels.ops.conv.arguments import Dense, DenseSettings
from srkernels.ops.conv.reference import five_convolutions
from srkernels.ops.haar.arguments import Analysis
from srkernels.ops.haar.conventions import HIGH, PADS, linear, plan_id
from srkernels.ops.weighted_loss.allocate import signs as signs_of
from srkernels.ops.weighted_loss.arguments import BILINEAR, L1, SUM

CPU = torch.device("cpu")
REASON = _native.why_not(CPU)
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"native: {REASON}")

# Above the size from which csrc/cpu/streaming.h streams: 11.8 MB of fp32, and 16.6 MB, whose planes and rows of 16-bit
# values do not start on cache line boundaries.
LARGE = [(2, 3, 768, 640), (24, 3, 240, 240)]


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


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.name)
def test_every_instruction_set_is_within_the_budget(isa: str, spec: srkernels._spec.OpSpec, dtype: torch.dtype) -> None:
    # fp16 sums of squares, which this measure differentiates, overflow in the larger cases.
    limit = 250 if dtype is torch.float16 else 50_000
    for case in spec.cases:
        sizes = [torch.Size(s).numel() for s in case.shapes if s is not None]
        if min(sizes) > 0 and max(sizes) < limit and why_not(spec, case, "native") is None:
            info.answers(spec, case, dtype, CPU).check(spec.op, case)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("convention", ["dasr", "orthonormal", "wct2"])  # no sums: compilers order them
@pytest.mark.parametrize(("channels", "width"), [(2, 12), (3, 12), (3, 13), (4, 7), (35, 12)])
def test_pixels_equal_planes(isa: str, channels: int, width: int, convention: str, dtype: torch.dtype) -> None:
    """Channels_last takes channels in vectors, threes and ones, with bands side by side or apart: the same bits."""
    generator = torch.Generator().manual_seed(4)
    planes = torch.randn(2, channels, 5, width, generator=generator).to(dtype)
    planes[0, :, 1, 2] = torch.nan
    cotangents: list[torch.Tensor] = []
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = planes.clone(memory_format=memory_format).requires_grad_()
        low, high = srkernels.haar_dwt2d(x, convention)
        bands = [low, *(high if isinstance(high, tuple) else (high,))]
        cotangents = cotangents or [torch.randn(y.shape, generator=generator).to(dtype) for y in bands]
        like_bands = [torch.empty_like(y).copy_(g) for y, g in zip(bands, cotangents, strict=True)]
        found.append([*bands, *torch.autograd.grad(bands, x, like_bands)])
    for plane, pixel in zip(*found, strict=True):
        assert plane.nan_to_num().any()
        assert torch.allclose(plane, pixel, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, thorough(torch.float16)], ids=["fp32", "bf16", "fp16"]
)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_streamed_outputs_equal_stored_ones(
    isa: str, shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype
) -> None:
    """Single images stay below the streaming size, the batch is above it: same bits, forward and backward."""
    n, c, h, w = shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.rand(2, n * (4 // dtype.itemsize), c, h, w, generator=torch.Generator().manual_seed(3)).to(dtype)
    x, target = (image.contiguous(memory_format=memory_format) for image in images)
    weight = images[0, :, :1, : h // 8, : w // 8].float().contiguous()
    one = x[:1].numel() * dtype.itemsize
    assert len(x) * one >= 8 << 20 > one

    # Outputs that have been written before: nothing is streamed into fresh pages.
    plan, pad = plan_id("dasr"), PADS.index("reflect")
    haar = importlib.import_module("srkernels.ops.haar.native")
    bands = torch.ones(len(x), 3 * c, h // 2, w // 2, dtype=dtype).contiguous(memory_format=memory_format)
    (high,) = haar.analysis_into(x, [bands], Analysis(plan, pad, HIGH))
    grad, slope = torch.ones_like(x), torch.ones_like(x)
    _native.launch(x, "haar_synthesis", grad, None, high, *haar._plan("cpu", linear(plan)), pad)
    signs, loss = signs_of(x), torch.empty(())
    operands = (x, target, weight)
    _native.launch(x, "weighted_loss_forward", *operands, loss, None, (SUM, BILINEAR, L1, 0.0), signs)
    _native.launch(
        x, "weighted_loss_backward", torch.ones(()), *operands, None, slope, None, None, (SUM, BILINEAR, L1, 0.0), signs
    )
    for i in range(len(x)):
        one_of = slice(i, i + 1)
        alone = x[one_of].clone().requires_grad_()
        part = srkernels.haar_highpass(alone)
        assert torch.equal(part, high[one_of])
        assert torch.equal(torch.autograd.grad(part, alone, high[one_of])[0], grad[one_of])
        loss = srkernels.weighted_l1_loss(alone, target[one_of], weight[one_of], reduction="sum")
        assert torch.equal(torch.autograd.grad(loss, alone)[0], slope[one_of])


# The last two: an odd number of words, and a single column, whose channels_last runs are read as planes.
@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (3, 5, 4, 12), (2, 16, 5, 3), (1, 1, 48, 7), (1, 2, 96, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("normalize", ["numel", "weight_sum"])
def test_gradients_from_signs_equal_those_from_images(
    isa: str, shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, normalize: str
) -> None:
    generator = torch.Generator().manual_seed(5)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, t = (torch.rand(shape, generator=generator).to(dtype, memory_format=memory_format) for _ in range(2))
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


def _pixels(n: int, channels: int, h: int, w: int, beside: int = 32, fill: float | None = None) -> torch.Tensor:
    """A channel slice of a bf16 channels_last image, with ``beside`` more channels on both sides."""
    shape = (n, channels + 2 * beside, h, w)
    whole = torch.empty(shape).uniform_(-1, 1) if fill is None else torch.full(shape, fill)
    return whole.bfloat16().contiguous(memory_format=torch.channels_last)[:, beside : beside + channels]


def _whole(x: torch.Tensor) -> torch.Tensor:
    n, _, h, w = x.shape
    return torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).view(n, h, w, -1)


def _convolved(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: int,
    scale: float,
    kept: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """What the AMX convolution computes, in the dtype of ``x``, with a slope of 0.2."""
    z = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    epilogue = Epilogue(activation, 0.2)
    z = derivative(z, kept, epilogue, None) if kept is not None else activate(z, epilogue, None)
    z = scale * z
    return z if residual is None else z + residual


@_AMX
@pytest.mark.parametrize("adjoint", [False, True], ids=["forward", "adjoint"])
@pytest.mark.parametrize(("activation", "derive"), [(0, False), (1, False), (1, True), (2, False), (2, True)])
@pytest.mark.parametrize(
    ("n", "ci", "co", "h", "w"),
    [
        (1, 32, 16, 1, 1),
        (2, 64, 48, 5, 15),
        (1, 96, 32, 9, 17),
        (2, 64, 64, 8, 48),
        (1, 32, 64, 3, 96),
        (1, 64, 32, 6, 130),
    ],
    ids=lambda v: str(v),
)
def test_amx_convolution(
    n: int, ci: int, co: int, h: int, w: int, activation: int, derive: bool, adjoint: bool
) -> None:
    """Every epilogue within the budget, on channel slices whose neighbours stay unchanged, on any number of threads."""
    core = _native.extension("cpu")
    torch.manual_seed(3)
    x = _pixels(n, ci, h, w)
    weight = torch.empty((ci, co, 3, 3) if adjoint else (co, ci, 3, 3)).uniform_(-0.1, 0.1).bfloat16()
    bias = None if adjoint else torch.empty(co).uniform_(-1, 1).bfloat16()
    kept = _pixels(n, co, h, w, beside=16) if derive else None
    residual = _pixels(n, co, h, w, beside=8) if activation == 1 else None
    results = []
    for threads in (1, 2, 3):
        y = _pixels(n, co, h, w, beside=16, fill=7)
        sums = torch.empty(co, dtype=torch.float64)
        core.amx_convolution(x, weight, adjoint, bias, y, activation, 0.2, 0.5, kept, residual, sums, threads)
        results.append((_whole(y), sums))
        assert (_whole(y)[..., :16] == 7).all()
        assert (_whole(y)[..., -16:] == 7).all()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    filters = weight.transpose(0, 1).flip(2, 3) if adjoint else weight

    def like(t: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        return None if t is None else t.to(dtype)

    exact, eager = (
        _convolved(
            x.to(dtype), filters.to(dtype), like(bias, dtype), activation, 0.5, like(kept, dtype), like(residual, dtype)
        )
        for dtype in (torch.float64, torch.bfloat16)
    )
    error, allowed = (y - exact).norm(), 2 * (eager - exact).norm() + 2**-9 * exact.norm()
    assert error <= allowed
    torch.testing.assert_close(sums, exact.sum((0, 2, 3)), rtol=0, atol=1e-6 * float(exact.abs().sum()))
    # Filters in another layout are the same filters.
    again = _pixels(n, co, h, w)
    strided = weight.contiguous(memory_format=torch.channels_last)
    core.amx_convolution(x, strided, adjoint, bias, again, activation, 0.2, 0.5, kept, residual, None, 1)
    assert torch.equal(again, y)


@_AMX
@pytest.mark.parametrize("activation", [0, 1, 2])
@pytest.mark.parametrize("derive", [False, True])
def test_amx_convolution_of_nan_and_infinity(activation: int, derive: bool) -> None:
    """They appear where eager PyTorch has them, and nowhere else."""
    core = _native.extension("cpu")
    torch.manual_seed(5)
    x, weight, kept = _pixels(1, 32, 7, 20), torch.rand(16, 32, 3, 3).bfloat16(), _pixels(1, 16, 7, 20)
    x[0, 3, 0, 0], x[0, 5, 6, 19], x[0, 7, 3, 9] = torch.nan, torch.inf, -torch.inf
    kept[0, :, 5, 5] = torch.nan
    kept[0, :, 5, 6] = 0
    y = _pixels(1, 16, 7, 20)
    derive = derive and activation != 0
    core.amx_convolution(x, weight, False, None, y, activation, 0.2, 1.0, kept if derive else None, None, None, 2)
    expected = _convolved(x.float(), weight.float(), None, activation, 1.0, kept.float() if derive else None, None)
    torch.testing.assert_close(y.float(), expected, rtol=2**-7, atol=1e-2, equal_nan=True)


@_AMX
def test_amx_refuses_what_it_would_misread() -> None:
    core = _native.extension("cpu")
    x, y, weight = _pixels(1, 32, 4, 8), _pixels(1, 16, 4, 8), torch.zeros(16, 32, 3, 3).bfloat16()
    rest = (0, 0.0, 1.0, None, None, None, 1)
    for wrong in (
        (x[..., :6], weight, False, None, y[..., :6], *rest),
        (x.contiguous(), weight, False, None, y, *rest),
        (x[:, :16], weight[:, :16], False, None, y, *rest),
        (x, weight.float(), False, None, y, *rest),
        (x, weight, True, None, y, *rest),
        (x, weight, False, torch.zeros(8).bfloat16(), y, *rest),
        (x, weight, False, None, y[:, :, :3], *rest),
    ):
        with pytest.raises(ValueError, match=r"AMX|filters|bias|images"):
            core.amx_convolution(*wrong)
    for outs, scales in (([weight], [1.0]), ([weight[:, :, :2]], [1.0]), ([], [1.0])):
        with pytest.raises(ValueError, match=r"AMX|channels"):
            core.amx_weight_gradient(x, x, outs, scales, 1)


def _filters_gradient(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    weight = x.new_empty(grad.shape[1], x.shape[1], 3, 3)
    one = [1, 1]
    arguments = (grad, x, weight, None, one, one, one, False, [0, 0], 1, [False, True, False])
    return torch.ops.aten.convolution_backward(*arguments)[1]


@_AMX
@pytest.mark.parametrize(
    ("n", "ci", "filters", "h", "w"),
    [
        (1, 32, ((32, 32),), 1, 1),
        (1, 32, ((64, 32),), 5, 7),
        (2, 64, ((32, 64),), 9, 33),
        (3, 96, ((64, 96),), 17, 31),
        (2, 64, ((64, 64),), 24, 96),
        (2, 128, ((64, 128), (32, 96), (32, 64)), 10, 48),
    ],
    ids=lambda v: str(v),
)
def test_amx_weight_gradient(n: int, ci: int, filters: tuple[tuple[int, int], ...], h: int, w: int) -> None:
    """Within the budget, for channel slices too, and the same bits on any number of threads."""
    core = _native.extension("cpu")
    torch.manual_seed(7)
    x, grad = _pixels(n, ci, h, w), _pixels(n, sum(co for co, _ in filters), h, w)
    scales = [0.5 + k for k in range(len(filters))]
    results = []
    for threads in (1, 2, 3):
        outs = [torch.full((*shape, 3, 3), torch.nan, dtype=torch.bfloat16) for shape in filters]
        core.amx_weight_gradient(x, grad, outs, scales, threads)
        results.append(outs)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    first = 0
    for out, scale in zip(results[0], scales, strict=True):
        read, part = x[:, : out.shape[1]], grad[:, first : first + out.shape[0]]
        first += out.shape[0]
        exact = scale * _filters_gradient(read.double(), part.double())
        eager = scale * _filters_gradient(read.contiguous(), part.contiguous())
        error, allowed = (out - exact).norm(), 2 * (eager - exact).norm() + 2**-9 * exact.norm()
        assert 0 < error <= allowed


def _eager_block(
    x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor
) -> torch.Tensor:
    conv2d = torch.nn.functional.conv2d
    return x + 0.5 * conv2d(conv2d(x, w1, b1, padding=1).relu(), w2, b2, padding=1)


def _eager_dense(x: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
    return five_convolutions(Dense(x, *operands), DenseSettings(0.2, 0.5))


_RESIDUAL = ((64, 64), (64,), (64, 64), (64,))
_DENSE = tuple((32 if k < 4 else 64, 64 + 32 * k) for k in range(5)) + tuple((32 if k < 4 else 64,) for k in range(5))


@_AMX
@pytest.mark.parametrize(
    ("op", "eager", "shapes", "convolutions", "gradients"),
    [
        (lambda *t: srkernels.residual_block(*t, res_scale=0.5), _eager_block, _RESIDUAL, 4, 2),
        (
            lambda x, *t: srkernels.dense_block(x, t[:5], t[5:], slope=0.2, res_scale=0.5),
            _eager_dense,
            _DENSE,
            10,
            1,
        ),
    ],
    ids=["residual_block", "dense_block"],
)
def test_blocks_of_64_channels_take_amx(
    monkeypatch: pytest.MonkeyPatch,
    op: Callable[..., torch.Tensor],
    eager: Callable[..., torch.Tensor],
    shapes: tuple[tuple[int, ...], ...],
    convolutions: int,
    gradients: int,
) -> None:
    """The sizes of real networks, which the gates' small cases do not reach, against eager PyTorch in fp64."""
    from srkernels.ops.conv import amx

    calls = []
    launch = amx.launch
    monkeypatch.setattr(amx, "launch", lambda x, name, *args: (calls.append(name), launch(x, name, *args)))
    generator = torch.Generator().manual_seed(11)
    sizes = [(2, 64, 24, 48), *((*s, 3, 3) if len(s) == 2 else s for s in shapes)]
    operands = [torch.empty(s).uniform_(-0.1, 0.1, generator=generator).bfloat16() for s in sizes]
    x = operands[0].contiguous(memory_format=torch.channels_last)
    results = []
    for run, dtype in ((eager, torch.float64), (eager, torch.bfloat16), (op, torch.bfloat16)):
        leaves = [t.to(dtype).requires_grad_() for t in (x, *operands[1:])]
        y = run(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    assert calls.count("amx_convolution") == convolutions
    assert calls.count("amx_weight_gradient") == gradients
    for exact, plain, found in zip(*results, strict=True):
        error, allowed = (found - exact).norm(), 2 * (plain - exact).norm() + 2**-9 * exact.norm()
        assert 0 < error <= allowed
