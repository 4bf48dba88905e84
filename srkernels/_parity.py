"""What decides whether an op is right: its error against an fp64 oracle, and how much is allowed.

An op's error against an fp64 oracle may be twice that of eager PyTorch in the same dtype on the same operands, plus
what another order of its sums may add, plus one rounding of the output's dtype at the value's own magnitude.

Eager's error is the largest over several draws: a scalar of one draw can be exact by luck. It contains the roundings
of stored intermediates, and one order of every sum: that of this processor and this number of threads. Any other order
is equally right. In any order, a sum of n terms is off by eps / 2 * sqrt(n) * S, S being the sum of the terms' absolute
values, with a probability that a small factor makes all but certain (Higham and Mary, 2019): eps * sqrt(n) * S is
allowed, in the precision of the sum. For sums of sums, as in blocks, n is that of the longest and S adds up over all
paths, far beyond the terms of any one of them. This is a small part of the mildest planted fault (``test_helpers``), an
operand rounded to a narrower dtype.

For fp64 there is no wider oracle: eager PyTorch serves as one, may be off by as much as the op, and is rounded too.

S is found by running the oracle with every term made positive: evaluated on absolute operands, with subtractions as
additions and no mask of an activation, an oracle and its gradients are the sums of their terms' absolute values,
however they are composed; a product of sums is the sum over all paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ._spec import Case


def flat(output: Any) -> list[Tensor]:
    """The tensors of an op's return value, in order."""
    if isinstance(output, Tensor):
        return [output]
    return [] if output is None else [y for part in output for y in flat(part)]


def values(op: Callable[..., Any], case: Case, operands: Sequence[Tensor | None]) -> list[Tensor]:
    return flat(op(*operands, **case.kwargs))


def gradients(
    op: Callable[..., Any],
    case: Case,
    operands: Sequence[Tensor | None],
    cotangents: Sequence[Tensor],
    wanted: Sequence[int],
    create_graph: bool = False,
) -> list[Tensor]:
    """Gradients of the operands ``wanted``; the others require none. ``create_graph``: for second derivatives."""
    if not wanted:
        return []
    leaves: list[Any] = [None if x is None else x.detach().requires_grad_(i in wanted) for i, x in enumerate(operands)]
    outputs = flat(op(*leaves, **case.kwargs))
    grads = torch.autograd.grad(outputs, [leaves[i] for i in wanted], list(cotangents), create_graph=create_graph)
    return [g.detach() for g in grads]


def present(operands: Sequence[Tensor | None]) -> tuple[int, ...]:
    return tuple(i for i, x in enumerate(operands) if x is not None)


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x.double(), nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True)
class Error:
    """Largest error of an element, and 2-norm of the error, over several draws."""

    largest: float
    norm: float


def measured(approximate: Sequence[Tensor], exact: Sequence[Tensor]) -> Error:
    """Error of the same output in several draws."""
    return _largest([_finite(a) - _finite(e) for a, e in zip(approximate, exact, strict=True)])


def _largest(differences: Sequence[Tensor]) -> Error:
    return Error(
        max((d.abs().max().item() for d in differences if d.numel()), default=0.0),
        max((d.norm().item() for d in differences), default=0.0),
    )


def reordered(dtype: torch.dtype, magnitudes: Sequence[Tensor], terms: int) -> Error:
    """What another order of sums of ``terms`` terms may add, given the sums of their absolute values."""
    summed_in = torch.float64 if dtype == torch.float64 else torch.float32
    bound = torch.finfo(summed_in).eps * terms**0.5
    return _largest([_finite(bound * m) for m in magnitudes])


def allowed(dtype: torch.dtype, eager: Error, order: Error) -> Error:
    """What is allowed before the output's own rounding, given eager PyTorch's error and ``reordered``."""
    if dtype == torch.float64:
        return Error(2 * order.largest, 2 * order.norm)
    return Error(2 * eager.largest + order.largest, 2 * eager.norm + order.norm)


def _roundings(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.float64 else 1


def check(what: str, actual: Tensor, exact: Tensor, eager: Tensor, error: Error) -> None:
    """Assert that ``actual`` is within the budget.

    Args:
        actual: what the op returned.
        exact: the fp64 oracle's value.
        eager: eager PyTorch's value; dtype, shape and the places of NaN and inf must match it.
        error: what is ``allowed``.
    """
    assert actual.dtype == eager.dtype, f"{what}: dtype {actual.dtype}, eager PyTorch gives {eager.dtype}"
    assert actual.shape == eager.shape, f"{what}: shape {tuple(actual.shape)}, eager PyTorch gives {tuple(eager.shape)}"
    assert torch.equal(actual.isnan(), eager.isnan()), f"{what}: NaN at other places than eager PyTorch"
    infinite = eager.isinf()
    assert torch.equal(actual.isinf(), infinite), f"{what}: inf at other places than eager PyTorch"
    assert torch.equal(actual[infinite], eager[infinite]), f"{what}: inf of another sign than eager PyTorch"
    if not actual.numel():
        return

    # Round to nearest: half an eps of the value, half the smallest number near zero.
    precision = torch.finfo(actual.dtype)
    rounding = _roundings(actual.dtype) * precision.eps / 2 * (_finite(exact).abs() + precision.smallest_normal)
    difference = (_finite(actual) - _finite(exact)).abs()
    most = error.largest + rounding
    if not bool((difference <= most).all()):
        at = int((difference - most).argmax())
        raise AssertionError(
            f"{what}: element {at} is {actual.flatten()[at].item():.9g}, "
            f"the oracle's {exact.flatten()[at].item():.9g}: off by "
            f"{difference.flatten()[at].item():.3g}, allowed {most.flatten()[at].item():.3g} "
            f"({error.largest:.3g} before its rounding)"
        )
    most_norm = error.norm + rounding.norm().item()
    assert difference.norm().item() <= most_norm, (
        f"{what}: error norm {difference.norm().item():.3g}, allowed {most_norm:.3g} "
        f"({error.norm:.3g} before its roundings)"
    )


def check_magnitude(what: str, actual: Tensor, exact: Tensor, error: Error) -> None:
    """Assert that a gradient is as long as the oracle's: a silent zero, or a missing factor, must fail.

    Where the oracle's gradient drowns in what is allowed (cancellation in bf16) it must at least not be zero.
    """
    length, expected = _finite(actual).norm().item(), _finite(exact).norm().item()
    precision = torch.finfo(actual.dtype)
    rounding = precision.eps / 2 * (expected + precision.smallest_normal * exact.numel() ** 0.5)
    of_the_norm = torch.finfo(torch.float64).eps * exact.numel() ** 0.5 * expected
    most = error.norm + _roundings(actual.dtype) * rounding + of_the_norm
    assert abs(length - expected) <= most, f"{what}: length {length:.6g}, the oracle's {expected:.6g}"
    # Below 2**-40 the gradient is zero but for the fp64 oracle's own rounding.
    assert length > 0 or expected < 2**-40, f"{what}: zero, the oracle's length is {expected:.6g}"


_aten = torch.ops.aten
_Number = Tensor | float


def _magnitude(x: _Number) -> _Number:
    return x if isinstance(x, Tensor) else abs(x)


def _at_least_one(slope: _Number) -> _Number:
    return slope.clamp_min(1) if isinstance(slope, Tensor) else max(1.0, abs(slope))


_RULES: dict[Any, Callable[..., Any]] = {
    _aten.sub.Tensor: lambda a, b, alpha=1: a + abs(alpha) * _magnitude(b),
    _aten.mul.Tensor: lambda a, b: a * _magnitude(b),
    _aten.neg.default: torch.clone,
    _aten.abs.default: torch.clone,
    _aten.sgn.default: torch.ones_like,
    _aten.relu.default: torch.clone,
    _aten.threshold_backward.default: lambda grad, x, threshold: grad.clone(),
    _aten.leaky_relu.default: lambda x, slope=0.01: x * _at_least_one(slope),
    _aten.leaky_relu_backward.default: lambda grad, x, slope, is_result: grad * _at_least_one(slope),
    _aten._prelu_kernel.default: lambda x, slope: x * _at_least_one(slope),
    _aten._prelu_kernel_backward.default: lambda x, slope, grad: (grad * _at_least_one(slope), grad * x),
}


def _terms(func: Any, args: tuple[Any, ...], result: Any) -> int:
    """How many terms the longest sum in this operation has."""
    if func is _aten.convolution.default:
        return args[1][0].numel()
    if func is _aten.convolution_backward.default:
        grad, _, weight, *_ = args
        return max(weight[:, :1].numel(), grad[:, :1].numel())
    if isinstance(result, Tensor) and func.overloadpacket in (
        _aten.sum,
        _aten.mean,
        _aten.upsample_bilinear2d_backward,
    ):
        # A sample of a resized map goes to four cells.
        return 4 * args[0].numel() // max(1, result.numel())
    return 4  # the cells of a Haar transform, the samples that a bilinear one is made of


class _Absolute(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.longest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = _RULES.get(func, func)(*args, **(kwargs or {}))
        self.longest = max(self.longest, _terms(func, args, result))
        return result


class Formulas(Protocol):
    """What decides: an ``OpSpec``, or what has these two of its fields."""

    @property
    def oracle(self) -> Callable[..., Any]: ...

    @property
    def eager(self) -> Callable[..., Any]: ...


class Magnitudes(NamedTuple):
    """S of every output, S of every gradient, and the number of terms of the longest sum among them."""

    values: list[Tensor]
    gradients: list[Tensor]
    terms: int


def sums_of_magnitudes(
    spec: Formulas, case: Case, operands: Sequence[Tensor | None], cotangents: Sequence[Tensor], wanted: Sequence[int]
) -> Magnitudes:
    xs = [None if x is None else x.double().abs().contiguous() for x in operands]
    cots = [c.double().abs().contiguous() for c in cotangents]
    with _Absolute() as mode:
        of_values, of_gradients = values(spec.eager, case, xs), gradients(spec.eager, case, xs, cots, wanted)
    return Magnitudes(of_values, of_gradients, mode.longest)


@dataclass(frozen=True)
class Draw:
    """One draw of operands and what they should give."""

    operands: Sequence[Tensor | None]
    cotangents: Sequence[Tensor]
    exact_values: list[Tensor]
    eager_values: list[Tensor]
    exact_gradients: list[Tensor]
    eager_gradients: list[Tensor]


def draw(
    spec: Formulas,
    case: Case,
    operands: Sequence[Tensor | None],
    cotangents: Sequence[Tensor],
    wanted: Sequence[int],
    same: Draw | None = None,
) -> Draw:
    """What ``operands`` should give, and ``cotangents`` as gradients of the operands ``wanted``.

    ``same`` is a draw of the same values in another memory layout, whose exact results are taken.
    """
    if same is None:
        wide = [None if x is None else x.detach().double().contiguous() for x in operands]
        wide_cotangents = [c.double().contiguous() for c in cotangents]
        exact = values(spec.oracle, case, wide), gradients(spec.oracle, case, wide, wide_cotangents, wanted)
    else:
        exact = same.exact_values, same.exact_gradients
    eager = values(spec.eager, case, operands), gradients(spec.eager, case, operands, cotangents, wanted)
    return Draw(operands, cotangents, exact[0], eager[0], exact[1], eager[1])


@dataclass(frozen=True)
class Answers:
    """Draws of a case with the error allowed for every output and every operand's gradient."""

    draws: Sequence[Draw]
    values: list[Error]
    gradients: list[Error]
    wanted: Sequence[int]
    magnitudes: Sequence[Magnitudes]

    def times(self, factor: float) -> Answers:
        """With ``factor`` times the error allowed."""

        def scaled(errors: list[Error]) -> list[Error]:
            return [Error(factor * e.largest, factor * e.norm) for e in errors]

        return replace(self, values=scaled(self.values), gradients=scaled(self.gradients))

    def check(self, op: Callable[..., Any], case: Case) -> None:
        """Assert that ``op`` is within the budget on the first draw, values and gradients."""
        first = self.draws[0]
        found = values(op, case, first.operands)
        assert len(found) == len(first.exact_values), f"{len(found)} outputs where the oracle has {len(self.values)}"
        for i, y in enumerate(found):
            check(f"output {i}", y, first.exact_values[i], first.eager_values[i], self.values[i])
        found = gradients(op, case, first.operands, first.cotangents, self.wanted)
        for i, g in enumerate(found):
            what = f"gradient {i}"
            check(what, g, first.exact_gradients[i], first.eager_gradients[i], self.gradients[i])
            check_magnitude(what, g, first.exact_gradients[i], self.gradients[i])


def answers(
    spec: Formulas,
    case: Case,
    draws: Sequence[Draw],
    wanted: Sequence[int],
    tested: int = 1,
    same: Answers | None = None,
) -> Answers:
    """Eager's error is measured over all ``draws``; the first ``tested`` of them are to be run.

    ``same`` has draws of the same values in another memory layout, whose sums of magnitudes are taken.
    """
    first = draws[0]
    dtype = next(x.dtype for x in first.operands if x is not None)
    magnitudes = (
        same.magnitudes
        if same
        else [sums_of_magnitudes(spec, case, d.operands, d.cotangents, wanted) for d in draws[:tested]]
    )
    terms = magnitudes[0].terms

    def over_draws(eager: str, exact: str, kind: str) -> list[Error]:
        def of(name: str, objects: Sequence[Any]) -> list[tuple[Tensor, ...]]:
            return list(zip(*(getattr(each, name) for each in objects), strict=True))

        rows = zip(of(eager, draws), of(exact, draws), of(kind, magnitudes), strict=True)
        return [allowed(dtype, measured(a, e), reordered(dtype, m, terms)) for a, e, m in rows]

    of_values = over_draws("eager_values", "exact_values", "values")
    of_gradients = over_draws("eager_gradients", "exact_gradients", "gradients")
    return Answers(draws[:tested], of_values, of_gradients, wanted, magnitudes)
