"""Specs of the convolution ops: shapes to test, figures to bench, algebra that must hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._spec import BenchCase, Case, OpSpec
from . import aot, reference, support
from .activation import ACTIVATIONS, LEAKY_RELU, Epilogue, activate
from .api import conv2d_act, dense_block, residual_block
from .arguments import Block, Convolution, ConvolutionSettings, Dense, DenseSettings
from .checks import DEFAULT_LEAKY_SLOPE, Passes, check_groups, geometry_of

Shape = tuple[int, ...]

_BAD_VALUES_SPREAD = {"triton": "padding is multiplied like pixels: zero times inf in the weight gradient"}
_THREADS = "oneDNN cuts the weight gradient's sum by the number of threads"


def _call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    slopes: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    slope: float | None = None,
    **kwargs: object,
) -> Tensor:
    """``conv2d_act`` with every tensor positional."""
    return conv2d_act(x, weight, bias, slope=slope if slopes is None else slopes, residual=residual, **kwargs)  # type: ignore[arg-type]


_call.__name__ = "conv2d_act"


def eager(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    slopes: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "relu",
    slope: float | None = None,
    scale: float = 1.0,
    **passes: Any,
) -> Tensor:
    """``conv2d_act`` by ``F.conv2d`` and eager arithmetic."""
    code = ACTIVATIONS[activation]
    settings = ConvolutionSettings(code, _negative_slope(code, slope), scale)
    if not passes:
        return reference.block(Convolution(x, weight, bias, slopes, residual), settings)
    y = activate(_convolution(x, weight, bias, **passes), settings, slopes) * scale
    return y if residual is None else residual + y


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding_mode: str = "zeros", **passes: Any) -> Tensor:
    """What ``nn.Conv2d`` computes, with padding that keeps height and width where none is given."""
    if padding_mode == "zeros":
        passes.setdefault("padding", [passes.get("dilation", 1) * (k // 2) for k in weight.shape[2:]])
        return F.conv2d(x, weight, bias, **passes)
    return F.conv2d(_padded(x, passes.pop("padding"), padding_mode), weight, bias, **passes)


def _padded(x: Tensor, padding: int | tuple[int, int], padding_mode: str) -> Tensor:
    rows, columns = padding if isinstance(padding, tuple) else (padding, padding)
    return F.pad(x, (columns, columns, rows, rows), padding_mode)


def _negative_slope(code: int, slope: float | None) -> float:
    if code != LEAKY_RELU:
        return 0.0
    return DEFAULT_LEAKY_SLOPE if slope is None else slope


def _case(
    id: str, x: Shape, out: int, *, bias: bool = True, slopes: int = 0, residual: bool = False,
    **kwargs: object,
) -> Case:  # fmt: skip
    n, c, h, w = x
    shapes = (
        x,
        (out, c, 3, 3),
        (out,) if bias else None,
        (slopes,) if slopes else None,
        (n, out, h, w) if residual else None,
    )
    return Case(id, shapes, kwargs, centred=(1,))


def _pass(
    id: str, x: Shape, weight: Shape, residual: Shape | None = None, *, slopes: int = 0, **kwargs: object
) -> Case:
    """Of other filters, or filters that pass over the image in another way."""
    shapes = (x, weight, weight[:1], (slopes,) if slopes else None, residual)
    return Case(id, shapes, kwargs, centred=(1,))


_PASSES = (
    _pass("4x4-stride-2", (2, 3, 6, 5), (4, 3, 4, 4), activation="leaky_relu", stride=2, padding=1),
    _pass("1x1", (2, 5, 4, 3), (7, 5, 1, 1), (2, 7, 4, 3), scale=0.5),
    _pass("5x5", (2, 3, 6, 5), (4, 3, 5, 5), activation="prelu", slopes=4),
    _pass("depthwise", (2, 6, 5, 4), (6, 1, 3, 3), groups=6),
    _pass("dilated", (2, 4, 5, 5), (6, 4, 3, 3), dilation=2, activation="leaky_relu", slope=0.05),
    _pass(
        "reflect-stride-3-2", (2, 4, 5, 5), (6, 2, 3, 2), (2, 6, 3, 3),
        stride=(3, 2), padding=(2, 1), groups=2, padding_mode="reflect",
    ),
)  # fmt: skip


# Batches of two or none: on CPU PyTorch convolves a single image on another path, whose padding makes weights NaN.
_CASES = (
    _case("relu", (2, 8, 7, 9), 8),
    _case("relu-no-bias", (2, 8, 6, 5), 4, bias=False),
    _case("none", (2, 8, 7, 9), 8, activation="none"),
    _case("none-residual-scaled", (2, 8, 7, 9), 8, activation="none", residual=True, scale=0.25),
    _case("leaky", (2, 16, 5, 8), 24, activation="leaky_relu"),
    _case("leaky-0.05", (2, 16, 5, 8), 3, activation="leaky_relu", slope=0.05),
    _case("leaky-negative", (2, 4, 5, 6), 4, activation="leaky_relu", slope=-0.5),
    _case("prelu-shared", (2, 4, 5, 7), 6, activation="prelu", slopes=1),
    _case("prelu", (2, 4, 5, 7), 6, activation="prelu", slopes=6),
    _case("prelu-residual", (2, 6, 5, 7), 6, activation="prelu", slopes=6, residual=True, scale=0.5),
    _case("relu-residual", (2, 6, 5, 7), 6, residual=True),
    _case("relu-scaled", (2, 6, 5, 7), 6, scale=0.5),
    _case("relu-scaled-negative", (2, 6, 5, 7), 6, scale=-0.5),
    _case("rgb", (2, 3, 8, 8), 20),
    _case("to-rgb", (2, 20, 8, 8), 3, activation="none"),
    _case("prime-17x31", (2, 5, 17, 31), 7),
    _case("1-wide", (2, 3, 6, 1), 4),
    _case("1x1-image", (2, 3, 1, 1), 4, activation="leaky_relu"),
    _case("no-batch", (0, 3, 4, 4), 5),
    _case("32-to-64", (2, 32, 5, 18), 64, activation="leaky_relu"),  # enough channels for Intel AMX
    *_PASSES,
)
_SMALL = (
    _case("relu", (2, 2, 4, 3), 3),
    _case("leaky-residual", (1, 2, 3, 3), 2, activation="leaky_relu", residual=True, scale=0.5),
    _case("prelu", (1, 2, 3, 3), 2, activation="prelu", slopes=2),
    _case("prelu-shared", (1, 2, 3, 2), 2, activation="prelu", slopes=1),
    _case("none", (1, 2, 3, 3), 1, activation="none", bias=False),
    _pass("replicate", (1, 2, 3, 2), (2, 2, 3, 2), (1, 2, 3, 3), padding=1, padding_mode="replicate"),
    _pass("stride-2", (1, 2, 4, 3), (2, 1, 2, 2), stride=2, padding=1, groups=2, activation="leaky_relu"),
)


def _sizes(case: Case) -> tuple[int, int, int, int]:
    """(pixels, input channels, output channels, filter size) of a case whose output has its image's size."""
    x, weight = case.shapes[:2]
    assert x is not None and weight is not None
    return x[0] * x[2] * x[3], x[1], weight[0], weight[2] * weight[3]


def _bytes(case: Case, itemsize: int, passes: str) -> int:
    pixels, inputs, outputs, filters = _sizes(case)
    residual = case.shapes[4] is not None
    weights = inputs * outputs * filters
    forward = pixels * (inputs + outputs * (2 if residual else 1)) + weights
    if passes == "forward":
        return itemsize * forward
    # Gradient and kept output or pre-activation are read, the masked gradient is written once and read twice.
    masked = case.kwargs.get("activation") != "none"
    backward = pixels * (outputs * (5 if masked else 2) + 2 * inputs) + 3 * weights
    return itemsize * (forward + backward)


def _flops(case: Case, passes: str) -> int:
    pixels, inputs, outputs, filters = _sizes(case)
    return 2 * pixels * inputs * outputs * filters * (3 if passes == "forward+backward" else 1)


def _saved(case: Case, itemsize: int) -> int:
    code = ACTIVATIONS[str(case.kwargs.get("activation", "relu"))]
    if code == 0:
        return 0
    tensors: list[Any] = [None if shape is None else torch.empty(shape, device="meta") for shape in case.shapes]
    saved = eager(*tensors, **case.kwargs).numel()  # the output, or the pre-activation in its place
    mode = case.kwargs.get("padding_mode", "zeros")
    if mode != "zeros":
        saved += _padded(tensors[0], case.kwargs["padding"], mode).numel()
    return itemsize * saved


def _bench() -> tuple[BenchCase, ...]:
    both = "forward+backward"
    block = _case("4x64x96x96", (4, 64, 96, 96), 64)
    grads = ("x", "weight", "bias")
    return (
        BenchCase(block, both, "bfloat16", True, grads),
        BenchCase(block, both, "float32", True, grads),
        BenchCase(block, both, "float32", False, grads),
        BenchCase(block, "forward", "bfloat16", True),
    )


def _draw(*shapes: Shape) -> list[Tensor]:
    generator = torch.Generator().manual_seed(20203)
    return [torch.rand(s, generator=generator, dtype=torch.float64) - 0.3 for s in shapes]


def _identity_filter() -> None:
    (x,) = _draw((2, 4, 5, 6))
    weight = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
    weight[range(4), range(4), 1, 1] = 1
    assert torch.equal(conv2d_act(x, weight, activation="none"), x)
    assert torch.equal(conv2d_act(x, weight), x.relu())


def _zero_scale() -> None:
    x, weight, residual = _draw((1, 3, 5, 6), (3, 3, 3, 3), (1, 3, 5, 6))
    assert torch.equal(conv2d_act(x, weight, residual=residual, scale=0.0), residual)


def _prelu_of_one_slope() -> None:
    x, weight, bias = _draw((1, 3, 5, 6), (4, 3, 3, 3), (4,))
    leaky = conv2d_act(x, weight, bias, activation="leaky_relu", slope=0.25)
    for slopes in (1, 4):
        slope = torch.full((slopes,), 0.25, dtype=torch.float64)
        assert torch.equal(conv2d_act(x, weight, bias, activation="prelu", slope=slope), leaky)


def _homogeneous() -> None:
    x, weight = _draw((1, 3, 5, 6), (4, 3, 3, 3))
    assert torch.equal(conv2d_act(4 * x, weight), 4 * conv2d_act(x, weight))


def _detail(x: Tensor, weight: Tensor | None = None, *_: Tensor | None, **settings: Any) -> tuple[int, ...]:
    given = {name: settings[name] for name in Passes._fields if name in settings}
    if weight is None or not given:
        return support.detail(x, weight)
    passes = Passes(**given)
    passes = passes._replace(groups=check_groups("conv2d_act", x, weight, passes.groups))
    convolved = geometry_of("conv2d_act", x, weight, passes)
    return support.detail_of_convolution(x, weight, ConvolutionSettings(geometry=convolved.geometry))


CONV2D_ACT = OpSpec(
    name="conv2d_act",
    package=__package__,
    op=_call,
    oracle=eager,  # the formula by PyTorch's own convolution
    eager=eager,
    operands=("x", "weight", "bias", "slope", "residual"),
    cases=_CASES,
    small=_SMALL,
    bench=_bench(),
    bytes_moved=_bytes,
    flops=_flops,
    published=eager,
    saved_bytes=_saved,
    invariants={
        "identity filter": _identity_filter,
        "scale of zero": _zero_scale,
        "prelu of one slope is leaky relu": _prelu_of_one_slope,
        "positive homogeneity": _homogeneous,
    },
    aot=aot.cases,
    parameters=("weight", "bias", "slope"),
    refuses=support.refuses,
    bad_values_spread=_BAD_VALUES_SPREAD,
    detail=_detail,
    threads_matter=_THREADS,
    launches=(1, 6),
)


def _block_call(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    slopes: Tensor | None,
    *,
    slope: float | None = None,
    **kwargs: object,
) -> Tensor:
    """``residual_block`` with every tensor positional."""
    slope_ = slope if slopes is None else slopes
    return residual_block(x, weight1, bias1, weight2, bias2, slope=slope_, **kwargs)  # type: ignore[arg-type]


_block_call.__name__ = "residual_block"


def eager_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    slopes: Tensor | None = None,
    *,
    activation: str = "relu",
    slope: float | None = None,
    res_scale: float = 1.0,
    save: str = "activations",
) -> Tensor:
    """``residual_block`` by ``F.conv2d`` and eager arithmetic."""
    code = ACTIVATIONS[activation]
    operands = Block(x, weight1, bias1, weight2, bias2, slopes)
    return reference.two_convolutions(operands, Epilogue(code, _negative_slope(code, slope), res_scale))


def block_case(
    id: str, x: Shape, middle: int, *, bias: bool = True, slopes: int = 0, kernel: int = 3, **kwargs: object
) -> Case:
    c = x[1]
    biases = ((middle,), (c,)) if bias else (None, None)
    filters = (middle, c, kernel, kernel), (c, middle, kernel, kernel)
    shapes = (x, filters[0], biases[0], filters[1], biases[1], (slopes,) if slopes else None)
    return Case(id, shapes, kwargs, centred=(1, 3))


# The interpreter runs cases of up to 250 elements: 16 channels, the fewest a Triton product has, on six pixels.
_BLOCK_CASES = (
    block_case("tiny-relu-scaled", (2, 16, 3, 2), 16, res_scale=0.5),
    block_case("relu", (2, 8, 7, 9), 8),
    block_case("relu-recompute", (2, 8, 7, 9), 8, save="recompute"),
    block_case("relu-no-bias-scaled", (2, 8, 6, 5), 8, bias=False, res_scale=0.1),
    block_case("leaky", (2, 16, 5, 8), 24, activation="leaky_relu"),
    block_case("prelu-shared", (2, 4, 5, 7), 6, activation="prelu", slopes=1),
    block_case("prelu-recompute", (2, 4, 5, 7), 6, activation="prelu", slopes=6, save="recompute", res_scale=0.5),
    block_case("none", (2, 5, 5, 7), 3, activation="none"),
    block_case("prime-17x31", (2, 5, 17, 31), 7),
    block_case("1-wide", (2, 16, 9, 1), 4),
    block_case("leaky-negative-no-bias", (2, 8, 5, 7), 4, activation="leaky_relu", slope=-0.5, bias=False),
    block_case("no-batch", (0, 3, 4, 4), 5),
    block_case("32", (2, 32, 5, 18), 32, activation="leaky_relu", res_scale=0.2),
    block_case("tiny-prelu", (2, 16, 3, 2), 16, activation="prelu", slopes=16, res_scale=0.5),
    block_case("tiny-5x5", (2, 16, 3, 2), 4, kernel=5, activation="leaky_relu"),
)
_BLOCK_SMALL = (
    block_case("relu", (2, 2, 3, 3), 2),
    block_case("leaky-recompute", (1, 2, 3, 3), 2, activation="leaky_relu", save="recompute", res_scale=0.5),
    block_case("prelu", (1, 2, 3, 2), 3, activation="prelu", slopes=3),
)


def _block_sizes(case: Case) -> tuple[int, int, int]:
    """(pixels, channels, channels in the middle) of a case."""
    x, weight1 = case.shapes[:2]
    assert x is not None and weight1 is not None
    return x[0] * x[2] * x[3], x[1], weight1[0]


def _block_bytes(case: Case, itemsize: int, passes: str) -> int:
    pixels, c, middle = _block_sizes(case)
    weights = 18 * c * middle
    # x and the middle, each written or read once by each convolution; the skip is read with x's own tile.
    forward = pixels * (3 * c + 2 * middle) + weights
    if passes == "forward":
        return itemsize * forward
    # Data gradients read grad and the middle's sign, and the middle with the skip; weight gradients both sides of each.
    backward = pixels * ((c + 2 * middle) + (middle + 2 * c) + 2 * (c + middle)) + 3 * weights
    return itemsize * (forward + backward)


def _block_flops(case: Case, passes: str) -> int:
    pixels, c, middle = _block_sizes(case)
    return 36 * pixels * c * middle * (3 if passes == "forward+backward" else 1)


def _block_saved(case: Case, itemsize: int) -> int:
    if case.kwargs.get("save") == "recompute":
        return 0
    pixels, _, middle = _block_sizes(case)
    return itemsize * pixels * middle  # besides x, which is the caller's


def _block_bench() -> tuple[BenchCase, ...]:
    both = "forward+backward"
    block = block_case("4x64x96x96", (4, 64, 96, 96), 64)
    grads = ("x", "weight1", "bias1", "weight2", "bias2")
    return (
        BenchCase(block, both, "bfloat16", True, grads, {"eager": 1.2}, over_fp32=5.0),
        BenchCase(block, both, "float32", True, grads),
        BenchCase(block, both, "float32", False, grads),
        BenchCase(block, "forward", "bfloat16", True),
    )


def _zero_weights() -> None:
    x, weight1 = _draw((2, 3, 5, 6), (4, 3, 3, 3))
    assert torch.equal(residual_block(x, weight1, None, torch.zeros(3, 4, 3, 3, dtype=x.dtype), None), x)


def _as_two_calls() -> None:
    x, w1, b1, w2, b2 = _draw((2, 3, 5, 6), (4, 3, 3, 3), (4,), (3, 4, 3, 3), (3,))
    h = conv2d_act(x, w1, b1, activation="leaky_relu")
    expected = conv2d_act(h, w2, b2, activation="none", residual=x, scale=0.5)
    found = residual_block(x, w1, b1, w2, b2, activation="leaky_relu", res_scale=0.5)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def _recompute_is_the_same() -> None:
    x, w1, b1, w2, b2 = (t.requires_grad_() for t in _draw((2, 3, 5, 6), (4, 3, 3, 3), (4,), (3, 4, 3, 3), (3,)))
    both = [
        torch.autograd.grad(residual_block(x, w1, b1, w2, b2, save=save).square().sum(), (x, w1, b1, w2, b2))
        for save in ("activations", "recompute")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


RESIDUAL_BLOCK = OpSpec(
    name="residual_block",
    package=__package__,
    op=_block_call,
    oracle=eager_block,  # the formula by PyTorch's own convolution
    eager=eager_block,
    operands=("x", "weight1", "bias1", "weight2", "bias2", "slope"),
    cases=_BLOCK_CASES,
    small=_BLOCK_SMALL,
    bench=_block_bench(),
    bytes_moved=_block_bytes,
    flops=_block_flops,
    published=eager_block,
    saved_bytes=_block_saved,
    invariants={
        "zero weights": _zero_weights,
        "two calls of conv2d_act": _as_two_calls,
        "recomputing changes nothing": _recompute_is_the_same,
    },
    parameters=("weight1", "bias1", "weight2", "bias2", "slope"),
    refuses=support.refuses,
    bad_values_spread=_BAD_VALUES_SPREAD,
    detail=lambda x, weight1=None, *_, **settings: support.detail(x, weight1),
    threads_matter=_THREADS,
    launches=(2, 6),
    composed=True,
)


_DENSE_OPERANDS = ("x", *(f"weight{k}" for k in range(1, 6)), *(f"bias{k}" for k in range(1, 6)))


def _dense_call(x: Tensor, *parameters: Tensor | None, **kwargs: object) -> Tensor:
    """``dense_block`` with every tensor positional."""
    return dense_block(x, parameters[:5], parameters[5:], **kwargs)  # type: ignore[arg-type]


_dense_call.__name__ = "dense_block"


def eager_dense(
    x: Tensor,
    *parameters: Tensor | None,
    slope: float = DEFAULT_LEAKY_SLOPE,
    res_scale: float = 0.2,
    save: str = "activations",
) -> Tensor:
    """``dense_block`` by ``F.conv2d``, ``torch.cat`` and eager arithmetic."""
    return reference.five_convolutions(Dense(x, *parameters), DenseSettings(slope, res_scale))  # type: ignore[arg-type]


def dense_case(id: str, x: Shape, growth: int, *, bias: bool = True, **kwargs: object) -> Case:
    c = x[1]
    outs = [growth] * 4 + [c]
    weights = [(out, c + k * growth, 3, 3) for k, out in enumerate(outs)]
    biases = [(out,) if bias else None for out in outs]
    return Case(id, (x, *weights, *biases), kwargs, centred=(1, 2, 3, 4, 5))


_DENSE_CASES = (
    dense_case("8+4", (2, 8, 6, 7), 4),
    dense_case("8+4-recompute", (2, 8, 6, 7), 4, save="recompute"),
    dense_case("no-bias", (2, 5, 5, 6), 3, bias=False, slope=0.1, res_scale=1.0),
    dense_case("1-wide", (2, 16, 9, 1), 4),
    dense_case("no-batch", (0, 3, 4, 4), 2),
    dense_case("32+32", (2, 32, 5, 6), 32, slope=0.5),  # rounding loses a few of its many signs
    dense_case("tiny", (2, 8, 3, 2), 4, bias=False),
)
_DENSE_SMALL = (
    dense_case("2+1", (1, 2, 3, 3), 1),
    dense_case("2+1-no-bias", (1, 2, 3, 2), 1, bias=False, save="recompute"),
)


def _dense_sizes(case: Case) -> tuple[int, int, int]:
    """(pixels, channels, growth) of a case."""
    x, weight1 = case.shapes[:2]
    assert x is not None and weight1 is not None
    return x[0] * x[2] * x[3], x[1], weight1[0]


def _dense_weights(case: Case) -> int:
    _, c, g = _dense_sizes(case)
    return 9 * (sum((c + k * g) * g for k in range(4)) + (c + 4 * g) * c)


def _dense_bytes(case: Case, itemsize: int, passes: str) -> int:
    """Each convolution reads the filled part of one buffer and writes its slot; first and last also touch x and y."""
    pixels, c, g = _dense_sizes(case)
    reads = sum(c + k * g for k in range(5))
    forward = pixels * (reads + 4 * g + 3 * c) + _dense_weights(case)
    if passes == "forward":
        return itemsize * forward
    # Backward is the same block over a buffer of gradients, the features' signs read, then both buffers once more.
    backward = pixels * (reads + 8 * g + 3 * c + 2 * (c + 4 * g)) + 3 * _dense_weights(case)
    return itemsize * (forward + backward)


def _dense_flops(case: Case, passes: str) -> int:
    return 2 * _dense_sizes(case)[0] * _dense_weights(case) * (3 if passes == "forward+backward" else 1)


def _dense_saved(case: Case, itemsize: int) -> int:
    if case.kwargs.get("save") == "recompute":
        return 0
    pixels, c, g = _dense_sizes(case)
    return itemsize * pixels * (c + 4 * g)


def _dense_bench() -> tuple[BenchCase, ...]:
    both = "forward+backward"
    block = dense_case("4x64x48x48", (4, 64, 48, 48), 32)
    return (
        BenchCase(block, both, "bfloat16", True, _DENSE_OPERANDS, {"eager": 1.15}, over_fp32=6.0),
        BenchCase(block, both, "float32", True, _DENSE_OPERANDS),
        BenchCase(block, both, "float32", False, _DENSE_OPERANDS),
        BenchCase(block, "forward", "bfloat16", True),
    )


def _dense_identity() -> None:
    shapes = [s for s in _DENSE_SMALL[0].shapes if s is not None]
    x, *parameters = _draw(*shapes)
    assert torch.equal(dense_block(x, parameters[:5], parameters[5:], res_scale=0.0), x)


def _dense_recompute() -> None:
    shapes = [s for s in _DENSE_SMALL[0].shapes if s is not None]
    x, *parameters = (t.requires_grad_() for t in _draw(*shapes))
    both = [
        torch.autograd.grad(dense_block(x, parameters[:5], parameters[5:], save=save).square().sum(), (x, *parameters))
        for save in ("activations", "recompute")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


DENSE_BLOCK = OpSpec(
    name="dense_block",
    package=__package__,
    op=_dense_call,
    oracle=eager_dense,  # the formula by PyTorch's own convolution
    eager=eager_dense,
    operands=_DENSE_OPERANDS,
    cases=_DENSE_CASES,
    small=_DENSE_SMALL,
    bench=_dense_bench(),
    bytes_moved=_dense_bytes,
    flops=_dense_flops,
    published=eager_dense,
    saved_bytes=_dense_saved,
    invariants={"scale of zero": _dense_identity, "recomputing changes nothing": _dense_recompute},
    parameters=_DENSE_OPERANDS[1:],
    refuses=support.refuses_dense,
    bad_values_spread=_BAD_VALUES_SPREAD,
    detail=lambda x, weight=None, *_, **settings: support.detail(
        x, weight[0] if isinstance(weight, (list, tuple)) else weight
    ),
    threads_matter=_THREADS,
    launches=(6, 9),
    composed=True,
)

SPECS = (CONV2D_ACT, RESIDUAL_BLOCK, DENSE_BLOCK)
