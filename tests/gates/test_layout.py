"""Channels_last in, channels_last out, and every gradient in its tensor's layout, whatever layout others have.

By automatic choice too, which for convolutions means PyTorch's own operations, and compiled as in eager mode.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import prod

import pytest
import torch
from helpers.calls import why_not
from helpers.operands import arranged, cotangents, operands
from torch import Tensor

import srkernels
from srkernels import _dispatch
from srkernels._parity import flat, gradients, present, values
from srkernels._spec import Case, OpSpec
from srkernels.ops import specs

CPU = torch.device("cpu")
FORMATS = ("contiguous", "channels_last")


def _is_channels_last(x: Tensor) -> bool:
    """Dense NHWC but not also NCHW, of each of three bands or of the image that two channel axes make up."""
    orders = {4: [(0, 2, 3, 1)], 5: [(0, 3, 4, 1, 2), (0, 1, 3, 4, 2)]}
    return not x.is_contiguous() and any(x.permute(order).is_contiguous() for order in orders.get(x.dim(), ()))


def _follows(x: Tensor, source: Tensor) -> bool:
    return _is_channels_last(x) if _is_channels_last(source) else x.is_contiguous()


def _cases(spec: OpSpec) -> list[Case]:
    """A few, of several channels and of one, with sizes that tell layouts apart."""
    told = [c for c in spec.cases if min(s[-1] for s in c.shapes[:1] if s) > 1 and prod(c.shapes[0] or (0,)) > 0]
    of_one_channel = [c for c in told if c.shapes[0][1] == 1]
    return [*told[:2], *of_one_channel[:1], told[-1]]


def _mixtures(case: Case, xs: Sequence[Tensor | None]) -> Iterator[list[Tensor | None]]:
    """The operands in every mixture of layouts; in some mixtures if there are more than four images."""
    images = [i for i, x in enumerate(xs) if x is not None and x.dim() > 3]
    mixtures = list(itertools.product(FORMATS, repeat=len(images)))
    for formats in mixtures if len(images) <= 4 else (mixtures[1], mixtures[-2], mixtures[len(mixtures) // 2]):
        at = dict(zip(images, formats, strict=True))
        yield [x if i not in at else arranged(x, at[i]) for i, x in enumerate(xs)]


def _check(spec: OpSpec, case: Case, xs: list[Tensor | None], cots: list[Tensor]) -> list[tuple[int, ...]]:
    """Strides of outputs and gradients, which follow the rule."""
    wanted = present(xs)
    likes = {i: xs[i] for i in wanted}
    if spec.name == "conv2d_act" and _is_channels_last(xs[1]):
        likes[0] = xs[1]  # the image takes its filters' layout, as in F.conv2d
    outputs = values(spec.op, case, xs)
    grads = gradients(spec.op, case, xs, cots, wanted)
    for i, y in enumerate(outputs):
        assert y.dim() < 4 or _follows(y, likes[wanted[0]]), f"output {i}: {y.stride()}"
    for i, grad in zip(wanted, grads, strict=True):
        added = any(grad.data_ptr() == c.data_ptr() for c in cots)  # its gradient is the cotangent itself
        follows = grad.dim() < 4 or _follows(grad, likes[i])
        assert added or follows, f"gradient of {spec.operands[i]}: {grad.stride()}"
        assert grad.shape == xs[i].shape
    return [t.stride() for t in (*outputs, *grads)]


@pytest.mark.parametrize("backend", [None, "reference", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("spec", specs(), ids=lambda s: s.name)
def test_layouts_follow_their_tensors(spec: OpSpec, dtype: torch.dtype, backend: str | None) -> None:
    reason = why_not(spec, None, backend or "reference", dtype=dtype)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    for case in _cases(spec):
        if why_not(spec, case, backend or "reference", dtype=dtype) is not None:
            continue
        for xs in _mixtures(case, operands(case, dtype)):
            # Where PyTorch's own operations run, gradients from a cotangent in another layout are also PyTorch's own.
            own = "channels_last" if _is_channels_last(xs[0]) else "contiguous"
            for format in FORMATS if backend else (own,):
                cots = [arranged(c, format) for c in cotangents(flat(values(spec.eager, case, xs)))]
                with srkernels.use_backend(backend):
                    _check(spec, case, xs, cots)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    ("image", "filters", "which"),
    [
        ((2, 4, 5, 6), (3, 4, 1, 1), 1),
        ((2, 1, 5, 6), (3, 1, 5, 5), 0),
        ((2, 1, 5, 6), (3, 1, 5, 5), 1),
        ((2, 4, 1, 1), (3, 4, 3, 3), 0),
    ],
)
def test_what_is_in_both_layouts_is_contiguous(
    backend: str | None, image: tuple[int, ...], filters: tuple[int, ...], which: int
) -> None:
    """Along an axis of size 1 strides mean nothing, but PyTorch's convolution reads them: its result would follow."""
    xs = [torch.rand(shape).requires_grad_() for shape in (image, filters)]
    xs[which] = xs[which].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert all(x.is_contiguous() for x in xs)
    with srkernels.use_backend(backend):
        y = srkernels.conv2d_act(*xs)
    for t in (y, *torch.autograd.grad(y, xs, torch.ones_like(y))):
        _, c, h, w = t.shape
        assert t.stride() == (c * h * w, h * w, w, 1)


@pytest.mark.thorough
@pytest.mark.parametrize("spec", specs(), ids=lambda s: s.name)
def test_compiled_calls_have_the_strides_of_eager_ones(spec: OpSpec) -> None:
    torch._dynamo.reset()  # the recompilation limit counts those of other ops too
    case = _cases(spec)[0]

    def call(*xs: Tensor | None, **kwargs: object) -> object:
        return spec.op(*xs, **kwargs)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    mixtures = list(_mixtures(case, operands(case, torch.float32)))
    for xs in (mixtures[len(mixtures) // 2], mixtures[-1]):
        leaves = [None if x is None else x.detach().requires_grad_() for x in xs]
        found = []
        for run in (spec.op, compiled):
            outputs = flat(run(*leaves, **case.kwargs))
            cots = [torch.empty_like(y).copy_(c) for y, c in zip(outputs, cotangents(outputs), strict=True)]
            grads = torch.autograd.grad(outputs, [x for x in leaves if x is not None], cots)
            found.append([t.stride() for t in (*outputs, *grads)])
        assert found[0] == found[1]


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_vectors_may_have_gaps(backend: str) -> None:
    """Biases and slopes that are every other element of a longer vector."""
    if _dispatch.why_not(backend, CPU, torch.float32) is not None:
        pytest.skip("no native core")
    for spec in specs():
        for case in (case for case in spec.small if why_not(spec, case, backend) is None):
            xs = operands(case, torch.float32)
            apart = [x if x is None or x.dim() != 1 else arranged(x, "strided") for x in xs]
            cots = cotangents(values(spec.eager, case, xs))
            with srkernels.use_backend(backend):
                for a, b in zip(
                    [*values(spec.op, case, xs), *gradients(spec.op, case, xs, cots, present(xs))],
                    [*values(spec.op, case, apart), *gradients(spec.op, case, apart, cots, present(xs))],
                    strict=True,
                ):
                    assert torch.equal(a, b), case.id
