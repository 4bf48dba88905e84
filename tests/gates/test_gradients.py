"""First and second derivatives against finite differences, and under ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.calls import Target
from helpers.operands import operands
from helpers.oracle import answers
from torch import Tensor

import srkernels
from srkernels._parity import check, check_magnitude, flat, gradients, present
from srkernels._spec import Case, OpSpec, Shape


def _function(
    spec: OpSpec, case: Case, target: Target, xs: list[Tensor | None]
) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """The op as a function of the operands that the case has."""
    positions = present(xs)

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        arguments = list(xs)
        for position, leaf in zip(positions, leaves, strict=True):
            arguments[position] = leaf
        with srkernels.use_backend(target.backend):
            return tuple(flat(spec.op(*arguments, **case.kwargs)))

    leaves = [xs[i].clone().requires_grad_() for i in positions]
    return call, leaves


def test_gradcheck(spec: OpSpec, small: Case, target: Target) -> None:
    # Central differences with step 1e-6 in fp64 round off at 1e-16 / 1e-6 and the ops have no third derivative.
    call, leaves = _function(spec, small, target, operands(small, torch.float64, device=target.device))
    # In the interpreter a call takes a hundred times as long: random directions instead of every entry.
    assert torch.autograd.gradcheck(call, leaves, atol=1e-8, rtol=1e-6, fast_mode=target.interpreted)


def test_gradgradcheck(spec: OpSpec, small: Case, target: Target) -> None:
    call, leaves = _function(spec, small, target, operands(small, torch.float64, device=target.device))
    assert torch.autograd.gradgradcheck(call, leaves, atol=1e-8, rtol=1e-6)


def test_func_grad_equals_autograd(spec: OpSpec, small: Case, target: Target) -> None:
    """``torch.func`` always requests a second derivative too, so an op may take another path: same budget."""
    expected = answers(spec, small, torch.float32, "contiguous", target.device)
    draw = expected.draws[0]
    call, leaves = _function(spec, small, target, draw.operands)

    def scalar(*inner: Tensor) -> Tensor:
        return sum((y * c).sum() for y, c in zip(call(*inner), draw.cotangents, strict=True))

    found = torch.func.grad(scalar, argnums=tuple(range(len(leaves))))(*[x.detach() for x in leaves])
    for k, (i, grad) in enumerate(zip(expected.wanted, found, strict=True)):
        what, exact = f"gradient of {spec.operands[i]}", draw.exact_gradients[k]
        check(what, grad, exact, draw.eager_gradients[k], expected.gradients[k])
        check_magnitude(what, grad, exact, expected.gradients[k])


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_vmap_is_a_loop(spec: OpSpec, small: Case, target: Target, channels_last: bool) -> None:
    """Outputs, and per-sample gradients of the first operand."""
    xs = operands(small, torch.float32, device=target.device)
    position = present(xs)[0]
    call, leaves = _function(spec, small, target, xs)
    rest = [x.detach() for x in leaves[1:]]
    many = torch.stack([xs[position], 2 * xs[position] + 1, -xs[position]])
    if channels_last and many.dim() == 5:
        many = many.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)

    def total(x: Tensor) -> Tensor:
        return sum(y.square().sum() for y in call(x, *rest))

    for function in (lambda x: call(x, *rest), torch.func.grad(total)):
        found, one_by_one = torch.vmap(function)(many), [function(x) for x in many]
        for k, y in enumerate(flat(found)):
            torch.testing.assert_close(y, torch.stack([flat(each)[k] for each in one_by_one]))


def test_a_derivative_around_vmap(spec: OpSpec, small: Case, target: Target) -> None:
    """Inside, a batched tensor does not tell that it requires a gradient; the gradient must not get lost."""
    xs = operands(small, torch.float32, device=target.device)
    position = present(xs)[0]
    call, leaves = _function(spec, small, target, xs)
    rest = [x.detach() for x in leaves[1:]]
    many = torch.stack([xs[position], 2 * xs[position] + 1, -xs[position]])

    def mapped(x: Tensor) -> Tensor:
        return sum(y.square().sum() for y in flat(torch.vmap(lambda one: call(one, *rest))(x)))

    def looped(x: Tensor) -> Tensor:
        return sum(y.square().sum() for one in x for y in flat(call(one, *rest)))

    expected = torch.func.grad(looped)(many)
    leaf = many.clone().requires_grad_()
    for found in (torch.func.grad(mapped)(many), *torch.autograd.grad(mapped(leaf), leaf)):
        torch.testing.assert_close(found, expected)
        assert found.any()


def test_vmap_of_cotangents(spec: OpSpec, small: Case, target: Target) -> None:
    """Rows of a Jacobian, computed as in PyTorch's documentation; for second derivatives too."""
    call, leaves = _function(spec, small, target, operands(small, torch.float32, device=target.device))
    (y, *_) = call(*leaves)
    many = torch.stack([torch.full_like(y, i + 1.0) for i in range(3)])
    for create_graph in (False, True):

        def pulled(v: Tensor) -> Tensor:
            return torch.autograd.grad(y, leaves[0], v, retain_graph=True, create_graph=create_graph)[0]  # noqa: B023

        torch.testing.assert_close(torch.vmap(pulled)(many), torch.stack([pulled(v) for v in many]))


def _training_sizes(spec: OpSpec) -> list[Case]:
    """A hundred pixels a side and more: sums of fp16 overflow, and so does what divides by them."""
    cases = {str(c.kwargs.get("normalize")): c for c in reversed(spec.cases) if "output_size" not in c.kwargs}
    factor = 8 if spec.convolves else 24  # for convolutions, which are slow on a CPU

    def enlarged(name: str, shape: Shape | None) -> Shape | None:
        if shape is None or name in spec.parameters:
            return shape
        return *shape[:-2], factor * shape[-2], factor * shape[-1]

    return [replace(c, shapes=tuple(map(enlarged, spec.operands, c.shapes))) for c in cases.values()]


@pytest.mark.thorough
def test_gradients_at_training_sizes(spec: OpSpec, dtype: torch.dtype, target: Target) -> None:
    """Plain, with ``create_graph``, and under ``torch.func``: one budget for all."""
    for case in _training_sizes(spec):
        expected = answers(spec, case, dtype, "contiguous", target.device)
        draw = expected.draws[0]
        call, leaves = _function(spec, case, target, draw.operands)

        def scalar(*inner: Tensor) -> Tensor:
            return sum((y * c).sum() for y, c in zip(call(*inner), draw.cotangents, strict=True))  # noqa: B023

        with srkernels.use_backend(target.backend):
            found = {
                f"create_graph={on}": gradients(
                    spec.op, case, draw.operands, draw.cotangents, expected.wanted, create_graph=on
                )
                for on in (False, True)
            }
        # fp16 would overflow in ``scalar``'s own sum, which torch.func needs, and make its gradient zero.
        if dtype != torch.float16:
            found["func.grad"] = torch.func.grad(scalar, argnums=tuple(range(len(leaves))))(
                *[x.detach() for x in leaves]
            )
        for how, grads in found.items():
            for k, (i, grad) in enumerate(zip(expected.wanted, grads, strict=True)):
                what, exact = f"{case.id}: {how}, gradient of {spec.operands[i]}", draw.exact_gradients[k]
                check(what, grad, exact, draw.eager_gradients[k], expected.gradients[k])
                check_magnitude(what, grad, exact, expected.gradients[k])


def test_inputs_without_gradient_record_nothing(spec: OpSpec, small: Case, target: Target) -> None:
    xs = operands(small, torch.float32, device=target.device)
    with srkernels.use_backend(target.backend):
        assert not any(y.requires_grad for y in flat(spec.op(*xs, **small.kwargs)))
        leaves = [None if x is None else x.clone().requires_grad_() for x in xs]
        assert all(y.requires_grad for y in flat(spec.op(*leaves, **small.kwargs)))
        with torch.no_grad():
            assert not any(y.requires_grad for y in flat(spec.op(*leaves, **small.kwargs)))
