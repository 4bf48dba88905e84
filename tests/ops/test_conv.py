"""What the specs of the convolution ops do not cover: other kernel sizes, autocast, bad input, the modules."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers.calls import recorded
from helpers.operands import random
from helpers.process import environment, python
from torch import Tensor, nn
from torch.nn import functional as F

import srkernels
from srkernels import _triton, conv2d_act, dense_block, residual_block
from srkernels._dispatch import why_not
from srkernels._meter import saved_bytes
from srkernels.nn import RRDB, Conv2dAct, ResidualBlock, ResidualDenseBlock
from srkernels.ops import specs
from srkernels.ops.conv.support import amx_available

CPU = torch.device("cpu")


def _draw(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [random(s, dtype, i, low=-1) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("kernel", [(1, 1), (5, 5), (3, 1), (1, 7)], ids=str)
def test_other_kernel_sizes_run_in_eager(kernel: tuple[int, int]) -> None:
    x, weight, bias = _draw((2, 3, 6, 7), (4, 3, *kernel), (4,))
    expected = F.relu(F.conv2d(x, weight, bias, padding=(kernel[0] // 2, kernel[1] // 2)))
    assert torch.equal(conv2d_act(x, weight, bias), expected)
    assert "reference (automatic)" in srkernels.explain("conv2d_act", x, weight)
    assert f"this one {kernel[0]}x{kernel[1]}" in srkernels.explain("conv2d_act", x, weight)
    with srkernels.use_backend("native"), pytest.raises(RuntimeError, match=r"3x3|did not load|not there"):
        conv2d_act(x, weight, bias)


@pytest.mark.parametrize(
    ("dtype", "memory_format", "channels", "why"),
    [
        (torch.float64, torch.channels_last, 4, "only bf16 on Intel AMX was measured faster"),
        (torch.float32, torch.channels_last, 32, "only bf16 on Intel AMX was measured faster"),
        (torch.bfloat16, torch.contiguous_format, 32, "nothing is gained on an image that is not channels_last"),
        (torch.bfloat16, torch.channels_last, 4, "Intel AMX takes multiples of 32 channels"),
    ],
    ids=["fp64", "fp32", "NCHW", "channels"],
)
def test_where_nothing_is_gained_plain_eager_runs(
    dtype: torch.dtype, memory_format: torch.memory_format, channels: int, why: str
) -> None:
    filters = (channels, channels, 3, 3)
    x, w1, w2 = _draw((2, channels, 6, 7), filters, filters, dtype=dtype)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    with recorded() as calls:
        y = residual_block(x, w1, None, w2, None)
    assert not calls
    assert torch.equal(y, x + F.conv2d(F.relu(F.conv2d(x, w1, padding=1)), w2, padding=1))
    explained = srkernels.explain("residual_block", x, w1)
    assert "reference (automatic)" in explained
    assert why in explained or not amx_available()


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, r"weight must be \(Cout, 3, kh, kw\), got \(4, 5, 3, 3\)", {"weight": torch.zeros(4, 5, 3, 3)}),
        (ValueError, "odd kernel sizes", {"weight": torch.zeros(4, 3, 2, 2)}),
        (ValueError, "weight must have channels", {"weight": torch.zeros(0, 3, 3, 3)}),
        (ValueError, "weight must have channels", {"x": torch.zeros(2, 0, 5, 5), "weight": torch.zeros(4, 0, 3, 3)}),
        (ValueError, "weight must be 4-D", {"weight": torch.zeros(4, 3, 3)}),
        (ValueError, r"bias must be \(4,\)", {"bias": torch.zeros(3)}),
        (TypeError, r"bias must be a tensor", {"bias": 1.0}),
        (TypeError, "weight must have x's dtype", {"weight": torch.zeros(4, 3, 3, 3).double()}),
        (ValueError, "residual must be", {"residual": torch.zeros(2, 4, 5, 6)}),
        (TypeError, "residual must be a tensor", {"residual": 3}),
        (ValueError, "activation must be one of", {"activation": "gelu"}),
        (TypeError, r"slope must be a tensor \(1,\) or \(4,\)", {"activation": "prelu"}),
        (ValueError, r"slope must be \(1,\) or \(4,\)", {"activation": "prelu", "slope": torch.zeros(3)}),
        (TypeError, "slope must be a number", {"activation": "leaky_relu", "slope": torch.zeros(1)}),
        (ValueError, "slope has no meaning for 'relu'", {"slope": 0.1}),
        (TypeError, "x must be float16", {"x": torch.zeros(2, 3, 5, 5, dtype=torch.int64)}),
        (ValueError, "x must have height and width", {"x": torch.zeros(2, 3, 0, 5)}),
    ],
)
def test_conv2d_act_refuses(error: type[Exception], match: str, change: dict[str, object]) -> None:
    arguments = {"x": torch.zeros(2, 3, 5, 5), "weight": torch.zeros(4, 3, 3, 3), "bias": None, **change}
    x, weight, bias = (arguments.pop(name) for name in ("x", "weight", "bias"))
    with pytest.raises(error, match=match):
        conv2d_act(x, weight, bias, **arguments)


@pytest.mark.parametrize(
    ("error", "sentence", "change"),
    [
        (TypeError, "stride must be an integer, got 1.5", {"stride": 1.5}),
        (TypeError, "stride must be an integer, got (2, 2, 2)", {"stride": (2, 2, 2)}),
        (ValueError, "stride must be at least 1 and below 2**31, got 0", {"stride": (2, 0)}),
        (ValueError, "stride must be 1 where padding is 'same', got (2, 2)", {"stride": 2, "padding": "same"}),
        (ValueError, "padding must be one of valid, same, got 'full'", {"padding": "full"}),
        (ValueError, "padding must be at least 0 and below 2**31, got -1", {"padding": -1}),
        (ValueError, "dilation must be at least 1 and below 2**31, got 0", {"dilation": 0}),
        (ValueError, "groups must divide the 4 channels of x, got 3", {"groups": 3}),
        (ValueError, "groups must divide the 6 channels of weight, got 4", {"groups": 4}),
        (ValueError, "weight must be (Cout, 1, kh, kw), got (6, 2, 3, 3)", {"groups": 2, "x": (2, 2, 5, 4)}),
        (
            ValueError,
            "weight must have odd kernel sizes where padding is not given, got (6, 2, 4, 3)",
            {"weight": (6, 2, 4, 3)},
        ),
        (
            ValueError,
            "weight must fit the padded image, got one of [5, 5] for (5, 4) in x",
            {"dilation": 2, "padding": 0},
        ),
        (
            ValueError,
            "padding_mode must be one of zeros, reflect, replicate, circular, got 'mirror'",
            {"padding_mode": "mirror"},
        ),
        (
            ValueError,
            "padding must be at most [4, 3] for 'reflect', got [4, 4]",
            {"padding": 4, "padding_mode": "reflect"},
        ),
        (
            ValueError,
            "padding must be at most [5, 4] for 'circular', got [5, 5]",
            {"padding": 5, "padding_mode": "circular"},
        ),
        (
            ValueError,
            "residual must be (2, 6, 3, 2) on cpu, got (2, 6, 5, 4) torch.float32 on cpu",
            {"stride": 2, "residual": torch.zeros(2, 6, 5, 4)},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_conv2d_act_refuses_geometry(error: type[Exception], sentence: str, change: dict[str, object]) -> None:
    arguments: dict[str, Any] = {"x": (2, 4, 5, 4), "weight": (6, 2, 3, 3), "groups": 2, **change}
    x, weight = (torch.zeros(arguments.pop(name)) for name in ("x", "weight"))
    with pytest.raises(error) as raised:
        conv2d_act(x, weight, **arguments)
    assert str(raised.value) == f"conv2d_act: {sentence}"


@pytest.mark.parametrize(
    "same",
    [
        {"padding": 1},
        {"padding": "same"},
        {"stride": (1, 1), "padding": [1, 1], "dilation": [1, 1]},
        {"padding": None, "groups": 1, "padding_mode": "".join("zeros")},
    ],
    ids=str,
)
def test_what_is_3x3_and_keeps_the_size_runs_in_our_kernels(same: dict[str, Any]) -> None:
    """However it is said: the operator gets no geometry, which they would refuse."""
    x, weight = _draw((2, 3, 6, 7), (4, 3, 3, 3))
    for given, geometry in ((same, []), ({**same, "dilation": 2, "padding": 2}, [1, 1, 2, 2, 2, 2, 1, 0, 0])):
        with srkernels.use_backend("reference"), recorded() as calls:
            conv2d_act(x, weight, **given)
        assert list(calls[0].args[8]) == geometry


def test_explain_takes_what_decides() -> None:
    x, weight = _draw((2, 3, 6, 7), (4, 3, 3, 3))
    assert "this one" not in srkernels.explain(conv2d_act, x, weight, stride=1)
    assert "the fused kernel has stride 1, no dilation" in srkernels.explain(conv2d_act, x, weight, stride=2)
    with pytest.raises(TypeError, match="explain: conv2d_act takes no argument strides"):
        srkernels.explain(conv2d_act, x, weight, strides=2)
    with pytest.raises(ValueError, match="explain: inputs must be those of conv2d_act"):
        srkernels.explain(conv2d_act, x, weight, groups=2)


@pytest.mark.parametrize(
    ("op", "kernel", "runs"), [("conv2d_act", 5, True), ("residual_block", 5, True), ("dense_block", 5, False)]
)
def test_what_pointwise_runs(op: str, kernel: int, runs: bool) -> None:
    (spec,) = (spec for spec in specs() if spec.name == op)
    x, weight = _draw((2, 3, 6, 7), (4, 3, kernel, kernel))
    reason = spec.refuses("pointwise", CPU, torch.float32, spec.detail(x, weight), False)
    assert reason == (None if runs else "the fused block packs filters of 3x3, these are 5x5")


@pytest.mark.parametrize("padding", [0, 2, "valid", "same", (1, 3)], ids=str)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_is_that_of_a_module(padding: Any, mode: str) -> None:
    """One side gets more than the other where an even filter keeps the size. Under autocast as well."""
    (x,) = _draw((2, 3, 8, 7))
    module = nn.Conv2d(3, 4, (4, 5), padding=padding, padding_mode=mode)
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            expected = F.relu(module(x))
            found = conv2d_act(x, module.weight, module.bias, padding=padding, padding_mode=mode)
        assert found.dtype is expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, "weight1 must be", {"weight1": torch.zeros(4, 5, 3, 3)}),
        (ValueError, r"weight2 must be \(Cout, 4, kh, kw\)", {"weight2": torch.zeros(3, 5, 3, 3)}),
        (ValueError, r"weight2 must be \(3, 4, 3, 3\)", {"weight2": torch.zeros(5, 4, 3, 3)}),
        (ValueError, r"bias2 must be \(3,\)", {"bias2": torch.zeros(4)}),
        (ValueError, "save must be one of activations, recompute", {"save": "nothing"}),
    ],
)
def test_residual_block_refuses(error: type[Exception], match: str, change: dict[str, object]) -> None:
    arguments = {
        "x": torch.zeros(2, 3, 5, 5), "weight1": torch.zeros(4, 3, 3, 3), "bias1": None,
        "weight2": torch.zeros(3, 4, 3, 3), "bias2": None, **change,
    }  # fmt: skip
    with pytest.raises(error, match=match):
        residual_block(**arguments)


def _dense_weights() -> list[Tensor]:
    return [torch.zeros(2, 4 + 2 * k, 3, 3) for k in range(4)] + [torch.zeros(4, 12, 3, 3)]


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, "sequence of five tensors, got list of 4", {"weights": _dense_weights()[:4]}),
        (TypeError, r"weights\[0\] must be a tensor", {"weights": [1.0] * 5}),
        (ValueError, r"weights\[1\] must be \(Cout, 6, kh, kw\)", {"weights": _dense_weights()[:1] * 5}),
        (ValueError, r"weights\[4\] must be \(4, 12", {"weights": [*_dense_weights()[:4], torch.zeros(5, 12, 3, 3)]}),
        (ValueError, r"biases\[0\] must be \(2,\)", {"biases": [torch.zeros(3)] * 5}),
        (ValueError, "slope must be above 0, got 0.0", {"slope": 0.0}),
        (ValueError, "save must be one of", {"save": "all"}),
        (TypeError, r"weights\[0\] must have x's dtype", {"weights": [w.double() for w in _dense_weights()]}),
    ],
)
def test_dense_block_refuses(error: type[Exception], match: str, change: dict[str, object]) -> None:
    with pytest.raises(error, match=match):
        dense_block(**{"x": torch.zeros(1, 4, 5, 5), "weights": _dense_weights(), **change})


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_is_that_of_eager(given: torch.dtype) -> None:
    """Convolutions in bf16; what is added keeps its dtype, so an fp32 trunk stays fp32."""
    x, w1, b1, w2, b2 = _draw((2, 4, 6, 7), (4, 4, 3, 3), (4,), (4, 4, 3, 3), (4,))
    x = x.to(given)
    with torch.autocast("cpu", torch.bfloat16):
        h = F.relu(F.conv2d(x, w1, b1, padding=1))
        expected = x + 0.5 * F.conv2d(h, w2, b2, padding=1)
        found = residual_block(x, w1, b1, w2, b2, res_scale=0.5)
        single = conv2d_act(x, w1, b1)
    assert single.dtype == h.dtype == torch.bfloat16
    assert found.dtype == expected.dtype == given
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
    leaves = [t.clone().requires_grad_() for t in (x, w1, b1, w2, b2)]
    with torch.autocast("cpu", torch.bfloat16):
        y = residual_block(*leaves)
    grads = torch.autograd.grad(y.float().sum(), leaves)
    assert [g.dtype for g in grads] == [t.dtype for t in leaves]
    assert all(g.any() for g in grads)


def test_one_registered_op_each_way() -> None:
    x, w1, w2 = (t.requires_grad_() for t in _draw((2, 4, 6, 7), (4, 4, 3, 3), (4, 4, 3, 3)))
    with srkernels.use_backend("reference"), recorded() as calls:
        residual_block(x, w1, None, w2, None).sum().backward()
    assert [c.op._schema.name for c in calls] == [
        "srkernels::residual_block",
        "srkernels::residual_block_backward",
    ]


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "prelu"])
def test_conv2d_act_module(activation: str) -> None:
    module = Conv2dAct(3, 5, activation=activation, slopes=5)
    plain = nn.Conv2d(3, 5, 3, padding=1)
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if "prelu" not in k}, strict=True)
    act = {"none": nn.Identity(), "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.2), "prelu": module.prelu}[activation]
    x = random((2, 3, 6, 7), torch.float32, 0)
    torch.testing.assert_close(module(x), act(plain(x)))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))


@pytest.mark.parametrize(
    "arguments",
    [{"stride": 2}, {"groups": 3}, {"dilation": 2}, {"padding": 0}, {"padding_mode": "reflect"}],
    ids=lambda a: next(iter(a)),
)
def test_conv2d_act_module_of_other_filters(arguments: dict[str, object]) -> None:
    module = Conv2dAct(3, 6, activation="leaky_relu", slope=0.1, **arguments)
    x = random((2, 3, 6, 7), torch.float32, 0)
    with recorded() as calls:
        y = module(x)
    assert not calls  # eager PyTorch is the automatic choice
    assert torch.equal(y, F.leaky_relu(module._conv_forward(x, module.weight, module.bias), 0.1))
    with srkernels.use_backend("reference"), recorded() as calls:
        assert torch.equal(module(x), y)
    assert len(calls) == 1


def test_residual_block_module() -> None:
    assert list(ResidualBlock(4).state_dict()) == ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]
    module = ResidualBlock(4, activation="prelu", res_scale=0.1, save="recompute")
    assert list(module.state_dict())[-1] == "prelu.weight"
    x = random((2, 4, 6, 7), torch.float32, 0)
    expected = x + 0.1 * module.conv2(module.prelu(module.conv1(x)))
    torch.testing.assert_close(module(x), expected)
    with pytest.raises(ValueError, match="activation"):
        ResidualBlock(4, activation="elu")


def test_dense_modules() -> None:
    block, x = ResidualDenseBlock(8, 4, save="recompute"), random((2, 8, 6, 7), torch.float32, 0)
    assert list(block.state_dict()) == [f"conv{k}.{name}" for k in range(1, 6) for name in ("weight", "bias")]
    parts = [x]
    for k in range(1, 5):
        parts.append(F.leaky_relu(getattr(block, f"conv{k}")(torch.cat(parts, 1)), 0.2))
    torch.testing.assert_close(block(x), x + 0.2 * block.conv5(torch.cat(parts, 1)))
    with torch.autocast("cpu", torch.bfloat16):
        found = block(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, block(x), rtol=0.02, atol=0.02)
    rrdb = RRDB(8, 4)
    assert "rdb3.conv5.bias" in rrdb.state_dict()
    torch.testing.assert_close(rrdb(x), x + 0.2 * rrdb.rdb3(rrdb.rdb2(rrdb.rdb1(x))))


def test_dense_block_keeps_one_buffer() -> None:
    """192 channels instead of an eager block's 768, 64 with recompute (x, which is the caller's)."""
    torch.manual_seed(0)
    block = ResidualDenseBlock()
    x = random((1, 64, 4, 4), torch.float32, 0).requires_grad_()
    per_channel = x.nbytes // 64

    def channels_kept() -> int:
        return saved_bytes(lambda: block(x), block.parameters()) // per_channel

    with srkernels.use_backend("reference"):  # what every fused backend keeps
        assert channels_kept() == 192
    block.save = "recompute"
    assert channels_kept() == 64


@pytest.mark.parametrize("backend", [None, "reference", "native"])
def test_a_second_derivative_finds_its_way_past_the_features(backend: str | None) -> None:
    """They hold x without its history; the penalty's gradient still reaches what x was made of."""
    if backend == "native" and why_not("native", CPU, torch.float64) is not None:
        pytest.skip("no native core")
    block = ResidualDenseBlock(3, 2, dtype=torch.float64)
    before, x = torch.nn.Conv2d(3, 3, 1, dtype=torch.float64), random((1, 3, 4, 5), torch.float64, 0)
    found = []
    for save in ("activations", "recompute"):
        block.save = save
        parameters = [*before.parameters(), *block.parameters()]
        with srkernels.use_backend(backend):
            h = before(x)
            first = torch.autograd.grad(block(h).square().sum(), [h, *block.parameters()], create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in first), parameters))
    for kept, recomputed in zip(*found, strict=True):
        assert kept.any()
        torch.testing.assert_close(kept, recomputed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_permuted_filters_are_filters(dtype: torch.dtype) -> None:
    weights = [w.to(dtype) * 0.1 for w in _dense_weights()]
    x = random((1, weights[4].shape[0], 4, 5), dtype, 0)
    for backend in ("reference", "native") if why_not("native", CPU, dtype) is None else ("reference",):
        found = []
        for permuted in (False, True):
            leaves = [w.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) if permuted else w for w in weights]
            leaves = [w.detach().requires_grad_() for w in leaves]
            with srkernels.use_backend(backend):
                y = dense_block(x, leaves, save="recompute")
                found.append(torch.autograd.grad(y.sum(), leaves))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.skipif(why_not("native", CPU, torch.bfloat16) is not None, reason="no native core")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
def test_filters_in_another_layout_than_the_image(memory_format: torch.memory_format) -> None:
    """oneDNN returns a channels_last image for channels_last filters, whatever the input's layout."""
    x, w1, w2 = _draw((2, 32, 6, 17), (32, 32, 3, 3), (32, 32, 3, 3), dtype=torch.bfloat16)
    other = torch.channels_last if memory_format is torch.contiguous_format else torch.contiguous_format
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    w1, w2 = (w.mul(0.1).contiguous(memory_format=other).requires_grad_() for w in (w1, w2))
    found = []
    for backend in ("native", "reference"):
        with srkernels.use_backend(backend):
            y = residual_block(x, w1, None, w2, None, activation="leaky_relu", slope=0.9)
            found.append([y.detach(), *torch.autograd.grad(y.sum(), (x, w1, w2))])
    for ours, eager in zip(*found, strict=True):
        assert ours.stride() == eager.stride()
        torch.testing.assert_close(ours, eager, rtol=0.03, atol=0.03 * float(eager.abs().max()))


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "prelu"])
def test_frozen_filters_give_the_same_derivatives(activation: str) -> None:
    """Their backward pass needs no image; first and second derivatives, and the layout, are as with it."""
    x, weight, bias, residual = _draw((2, 4, 5, 6), (4, 4, 3, 3), (4,), (2, 4, 5, 6), dtype=torch.float64)
    slope = torch.full((4,), 0.25, dtype=torch.float64) if activation == "prelu" else None
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    found = []
    for frozen in (True, False):
        w = weight.clone().requires_grad_(not frozen)
        with srkernels.use_backend("reference"):
            y = conv2d_act(x, w, bias, activation=activation, slope=slope, residual=residual, scale=0.5)
            (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), x)
        assert first.stride() == x.stride()
        found.append((first.detach(), second))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


_CONFIGURATIONS = """
import torch
from srkernels.ops.conv.activation import LEAKY_RELU, PRELU, Epilogue
from srkernels.ops.conv.triton import launch
from srkernels.ops.conv.triton.configuration import configurations, configurations_of_shares

torch.manual_seed(0)


def drawn(*shape):
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def assert_right(found, eager, exact, how):
    error, of_eager = ((y.double() - exact).abs().max() for y in (found, eager))
    assert error <= 2 * of_eager + torch.finfo(dtype).eps * exact.abs().max(), (how, error, of_eager)
    print(how)


def interpreted(found):
    # Tiles in flight are nothing to the interpreter.
    return dict.fromkeys(how._replace(stages=3) for how in found.values())


def forward(x, w, bias, slopes, residual):
    z = torch.conv2d(x, w, bias, padding=1)
    return 0.5 * torch.nn.functional.prelu(z, slopes) + residual, z


def adjoint(g, w, kept, residual):
    gradient = torch.nn.functional.conv_transpose2d(g, w, padding=1)
    return 0.5 * torch.where(kept > 0, gradient, 0.2 * gradient) + residual


def wide(*tensors):
    return [t.double() for t in tensors]


for channels, out, dtype in ((5, 7, torch.bfloat16), (40, 35, torch.float32), (70, 40, torch.bfloat16)):
    x, g, w = drawn(2, channels, 3, 18), drawn(2, out, 3, 18), drawn(out, channels, 3, 3)
    bias, slopes, residual = drawn(out, 1, 1, 1).flatten(), drawn(out, 1, 1, 1).flatten(), drawn(2, out, 3, 18)
    eager, exact = forward(x, w, bias, slopes, residual), forward(*wide(x, w, bias, slopes, residual))
    epilogue, tensors = Epilogue(PRELU, scale=0.5), launch.EpilogueTensors(bias, slopes, residual=residual)
    for how in interpreted(configurations(x, out)):
        y, z = torch.full_like(g, torch.nan), torch.full_like(g, torch.nan)
        launch.convolve(x, w, y, epilogue, tensors._replace(z=z), how=how)
        assert_right(y, eager[0], exact[0], how)
        assert_right(z, eager[1], exact[1], how)
    kept, residual = drawn(2, channels, 3, 18), drawn(2, channels, 3, 18)
    eager, exact = adjoint(g, w, kept, residual), adjoint(*wide(g, w, kept, residual))
    epilogue, tensors = Epilogue(LEAKY_RELU, 0.2, 0.5), launch.EpilogueTensors(kept=kept, residual=residual)
    for how in interpreted(configurations(g, channels)):
        y = torch.full_like(x, torch.nan)
        launch.convolve(g, w, y, epilogue, tensors, adjoint=True, how=how)
        assert_right(y, eager, exact, how)
    eager, exact = (torch.nn.grad.conv2d_weight(a, w.shape, b, padding=1) for a, b in ((x, g), wide(x, g)))
    for how in interpreted(configurations_of_shares(x, out)):
        y = torch.full_like(w, torch.nan)
        launch.gradient_of_weight(x, g, y, how=how)
        assert_right(y, eager, exact, how)
"""


@pytest.mark.thorough
@pytest.mark.skipif(_triton.why_no_interpreter() is not None, reason=str(_triton.why_no_interpreter()))
def test_every_configuration_of_the_triton_kernels() -> None:
    """Those timed on a GPU, not only the chosen one. No worse than twice eager PyTorch's error.

    Triton's interpreter must be selected before triton is imported: a separate process.
    """
    done = python(_CONFIGURATIONS, env=environment(TRITON_INTERPRET="1"), timeout=600).stdout
    # Both kernels in blocks of the same sizes: neither may be mistaken for the other.
    same = "pixels=128, channels=32, outputs=32"
    assert all(f"kernel='{name}', {same}" in done for name in ("stream", "shift"))
    assert "kernel='gather'" in done and "nine=False" in done
