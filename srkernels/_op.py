"""The one way to register an op: from a declaration to an operator that PyTorch can differentiate, trace and transform.

``fused_op`` defines ``srkernels::NAME`` and, with its gradient, ``srkernels::NAME_backward``: schema, implementation,
fake, rule for ``torch.vmap`` and the ``autograd.Function`` around them. Which backend runs is decided inside the
operator, on real tensors, so that it is the same in eager mode and under ``torch.compile``.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ._dispatch import implementation, parts, requested, why_not
from ._modes import in_forward_mode, is_memory, plain, records, transforms_active, watched
from ._spec import Refusal, convolves_nothing
from .tuned import choose
from .tuned.records import number, sizes

_library = torch.library.Library("srkernels", "FRAGMENT")
if TYPE_CHECKING:
    Size = int
else:
    Size = torch.SymInt  # for settings: an int that a trace may leave symbolic
_SCALARS = {int: "int", float: "float", bool: "bool", Size: "SymInt", tuple[int, ...]: "int[]"}


def short_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` that in eager mode skips what only transforms need.

    The ``setup_context`` form binds its signature and enters Python twice on each call; the older form, whose
    ``forward`` takes the context, does neither.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    older = {"forward": staticmethod(forward), "setup_context": torch.autograd.Function.setup_context}
    named = types.new_class(function.__name__, (function,), exec_body=lambda body: body.update(older))
    short = super(torch.autograd.Function, named).apply  # type: ignore[misc]

    def apply(*inputs: Any) -> Any:
        if is_compiling() or transforms_active():
            return function.apply(*inputs)
        return short(*inputs)

    return apply


def _map_one_by_one(op: Any) -> Callable[..., Any]:
    """The rule by which ``torch.vmap`` runs an operator: once for each element, results stacked."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        def element(i: int) -> list[Any]:
            # For a list of settings ``d`` is a list too.
            return [a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]

        if not info.batch_size:
            raise RuntimeError(f"{op.name().partition('::')[2]}: torch.vmap of no element")
        results = [op(*element(i)) for i in range(info.batch_size)]
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


def _arguments(fields: Any) -> list[str]:
    """A NamedTuple's fields as a schema has them."""

    def argument(name: str, kind: Any) -> str:
        if kind in _SCALARS:
            return f"{_SCALARS[kind]} {name}"
        optional = isinstance(kind, types.UnionType)
        assert kind is Tensor or (optional and set(typing.get_args(kind)) == {Tensor, type(None)}), (fields, name)
        return f"Tensor{'?' * optional} {name}"

    return [argument(name, kind) for name, kind in typing.get_type_hints(fields).items()]


def _register(
    name: str, arguments: Sequence[str], run: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Define an operator; returns what calls it."""
    schema = f"{name}({', '.join(arguments)}) -> Tensor[]"
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"srkernels::{name}", fake, lib=_library)
    op = getattr(torch.ops.srkernels, name).default
    torch.library.register_vmap(op, _map_one_by_one(op), lib=_library)
    return _direct(op, run, sum(argument.startswith("Tensor") for argument in arguments))


def _direct(op: Any, run: Callable[..., Any], tensors: int) -> Callable[..., Any]:
    """``op``, without PyTorch's dispatcher, which takes longer than a small kernel, where nothing can tell.

    ``tensors``: how many of the arguments, the first ones, are tensors.
    """

    def call(*arguments: Any) -> Any:
        if watched():  # asked first: of all this, a compiler can trace only the operator
            return op(*arguments)
        given = arguments[:tensors]
        if not plain(given):
            return op(*arguments)
        for x in given:
            if x is not None and not is_memory(x):
                return op(*arguments)
        return run(*arguments)

    return call


class Backend(NamedTuple):
    """Where an op's code lives, and what its choice depends on besides device and dtype.

    Attributes:
        package: holds ``reference``, ``native`` and ``triton``, modules with the functions named below. One whose
            kernels have several configurations lists them, ``configurations(operands) -> [names of each pass]``, its
            own first, then in the order to try them, and has the functions in any, ``configured(names)``.
        forward: name of ``(operands, settings[, keep]) -> [outputs]``.
        backward: name of ``(grad, saved, settings, needs) -> [gradients of those needed]``.
        refuses: the op's own reasons against a backend (see ``_spec.Refusal``).
        detail: (first operand or gradient, second operand, settings) -> what of a call these reasons depend on.
        parameters: names of operands that are not images but filters, biases, slopes.
    """

    package: str
    forward: str = "forward"
    backward: str = "backward"
    refuses: Refusal = convolves_nothing
    detail: Callable[[Tensor, Tensor, Any], tuple[int, ...]] | None = None
    parameters: Collection[str] = ()

    def is_reference(self, operands: Any, settings: Any) -> bool:
        """Whether eager PyTorch is the automatic choice for these."""
        return self.module("", operands, settings).__name__.endswith(".reference")

    def module(self, name: str, tensors: Any, settings: Any, grad: Tensor | None = None) -> Any:
        """The module that runs on these: ``name``, or the automatic choice for ""."""
        x, details = self._decisive(tensors, settings, grad)
        return implementation(self.package, name, x, self.refuses, details)

    def why_not(self, name: str, tensors: Any, settings: Any) -> str | None:
        """Why ``name``, a backend or one in a configuration, cannot run on these, or None."""
        x, details = self._decisive(tensors, settings, None)
        backend, names = parts(name)
        reason = why_not(backend, x.device, x.dtype, self.refuses, details)
        if reason is None and names:
            passes = iter(self.configurations(backend, tensors, settings))  # which the names follow in order
            if not all(any(one in those for those in passes) for one in names):
                reason = f"{backend} has no such configuration here: {', '.join(names)}"
        return reason

    def configurations(self, name: str, tensors: Any, settings: Any) -> Sequence[Sequence[str]]:
        """Names of the configurations of a backend's kernels for these, by pass, its own first."""
        module = self.module(name, tensors, settings)
        found: Sequence[Sequence[str]] = getattr(module, "configurations", lambda _: [])(tensors)
        return found

    def _decisive(self, tensors: Sequence[Any], settings: Any, grad: Tensor | None) -> tuple[Any, tuple[int, ...]]:
        x, second, *_ = *tensors, None
        if x is None:
            x = second if grad is None else grad
        return x, () if self.detail is None else self.detail(x, second, settings)


_Operands = TypeVar("_Operands", bound=tuple[Any, ...])
_Settings = TypeVar("_Settings", bound=tuple[Any, ...])


class Gradient(NamedTuple):
    """How an op with a backward kernel is differentiated: through its first output.

    ``needs`` are bools, one for each operand; gradients are lists of those needed.

    Attributes:
        saved: NamedTuple of the tensors that the backward pass receives.
        save: (operands, outputs, settings, needs) -> ``saved``.
        fake: (grad, saved, settings, needs) -> uninitialised gradients.
        differentiable: (grad, saved, settings, needs) -> gradients, on eager operations, for a second derivative.
        finish: (backward, grad, saved, settings, needs, note) -> gradients: for an op whose backward pass is more than
            ``backward(grad, saved, settings, needs)``.
        note: (operands, settings) -> what else ``finish`` needs to know of them; no tensors.
        keeps: (operands, settings) -> whether the forward pass must keep something for the backward pass: the op takes
            ``keep``, and with it its last output is what only the backward pass reads. None: never.
        link: (operands) -> a note made before the autograd function runs, where something is kept: its way back to
            an operand that is not saved.
    """

    saved: Any
    save: Callable[..., Any]
    fake: Callable[..., list[Tensor]]
    differentiable: Callable[..., list[Tensor]]
    finish: Callable[..., list[Tensor]] = lambda backward, grad, saved, settings, needs, note: backward(
        grad, saved, settings, needs
    )
    note: Callable[..., Any] = lambda operands, settings: None
    keeps: Callable[..., bool] | None = None
    link: Callable[..., Any] | None = None


class Adjoint(NamedTuple):
    """How a linear op is differentiated: by another op. It saves nothing.

    Attributes:
        adjoint: (gradients of the outputs, settings, needs, backend, note) -> gradients of the operands needed.
        note: (operands, settings) -> what ``adjoint`` needs to know of the operands; no tensors.
    """

    adjoint: Callable[..., Sequence[Tensor | None]]
    note: Callable[..., Any]


def _autograd_function(
    name: str, operands: Any, settings: Any, gradient: Gradient | Adjoint, forward_op: Any, backward_op: Any
) -> type[torch.autograd.Function]:
    """Inputs: operands, settings, ``keep`` where the op has it, backend, link.

    Dynamo traces what its methods close over only if those are functions, types, operators and numbers.
    """
    count, end = len(operands._fields), len(operands._fields) + len(settings._fields)
    note_of = gradient.note

    class Function(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, ...]:
            return tuple(forward_op(*inputs[:-1]))

    if isinstance(gradient, Adjoint):
        adjoint = gradient.adjoint

        class Linear(Function):
            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
                ctx.settings, ctx.backend = settings(*inputs[count:end]), inputs[-2]
                ctx.note = note_of(operands(*inputs[:count]), ctx.settings)
                ctx.set_materialize_grads(False)

            @staticmethod
            def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
                needs = ctx.needs_input_grad[:count]
                found = iter(adjoint(grads, ctx.settings, needs, ctx.backend, ctx.note))
                return *(next(found, None) if need else None for need in needs), *[None] * (end + 2 - count)

        return types.new_class(name, (Linear,))  # the name that grad_fn shows

    saved_type, save, finish, differentiable = gradient.saved, gradient.save, gradient.finish, gradient.differentiable
    rest = end + 2 + (gradient.keeps is not None) - count

    class Fused(Function):
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            given = operands(*inputs[:count])
            ctx.settings, ctx.backend = settings(*inputs[count:end]), inputs[-2]
            ctx.note = note_of(given, ctx.settings) if inputs[-1] is None else inputs[-1]
            if len(output) > 1:
                ctx.mark_non_differentiable(*output[1:])
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*save(given, output, ctx.settings, ctx.needs_input_grad[:count]))

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
            needs, backend = list(ctx.needs_input_grad[:count]), ctx.backend
            if grad is None:
                return (None,) * (count + rest)

            def backward(grad: Tensor, saved: Any, settings: Any, needs: list[bool]) -> list[Tensor]:
                return backward_op(grad, *saved, *settings, needs, backend)

            run = differentiable if torch.is_grad_enabled() and not is_compiling() else backward
            found = iter(finish(run, grad, saved_type(*ctx.saved_tensors), ctx.settings, needs, ctx.note))
            return *(next(found, None) if need else None for need in needs), *[None] * rest

    return types.new_class(name, (Fused,))


class FusedOp(Generic[_Operands, _Settings]):
    """A registered op: ``op(operands, settings)`` returns its outputs, differentiable. Made by ``fused_op``."""

    def __init__(
        self, name: str, operands: Any, settings: Any, backend: Backend, fake: Any, gradient: Any, eager: Any, pays: Any
    ) -> None:
        self.name, self._pays = name, pays
        count, self._backend, self._eager = len(operands._fields), backend, eager
        self._public = slice(1 if isinstance(gradient, Gradient) else None)  # the outputs that have a derivative
        self._images = [field not in backend.parameters for field in operands._fields]
        kinds = typing.get_type_hints(settings).values()
        self._settings = [(i, kind) for i, kind in enumerate(kinds) if kind is not Size]
        self._keeps, self._link = (gradient.keeps, gradient.link) if isinstance(gradient, Gradient) else (None, None)

        def bound(arguments: Sequence[Any]) -> tuple[Any, ...]:
            """(operands, settings), and ``keep`` where the op has it."""
            scalars = arguments[count:-1]
            if self._keeps:
                return operands(*arguments[:count]), settings(*scalars[:-1]), scalars[-1]
            return operands(*arguments[:count]), settings(*scalars)

        def run(*arguments: Any) -> list[Tensor]:
            given = bound(arguments)
            return getattr(backend.module(arguments[-1], *given[:2]), backend.forward)(*given)

        arguments = [*_arguments(operands), *_arguments(settings), *["bool keep"] * bool(self._keeps), "str backend"]
        self._forward = _register(name, arguments, run, lambda *arguments: fake(*bound(arguments)))
        backward = _register_backward(name, settings, backend, gradient) if isinstance(gradient, Gradient) else None
        self._apply = short_apply(_autograd_function(name, operands, settings, gradient, self._forward, backward))

    def __call__(
        self, operands: _Operands, settings: _Settings, *, keep: bool = True, backend: str | None = None
    ) -> Sequence[Tensor]:
        """Outputs of the op.

        Args:
            keep: for an op that has it, whether the forward pass may keep for the backward pass what it can.
            backend: for a derivative, that of its forward pass; None: the requested one.
        """
        given = backend is not None
        if backend is None:
            backend = requested()
        # A traced call takes the operator, inside which the choice is made on real tensors, or the formula, which
        # the compiler can fuse with what surrounds it.
        if not backend:
            y = None
            if is_compiling():
                if keep and self._eager is not None and not self._pays(operands, settings):
                    y = self._eager(operands, settings)
            else:
                backend = choose.choice(self, operands, settings, keep, given)
                y = self._by_formula(backend, operands, settings) if keep else None
            if y is not None:
                return (y,)
        recording = records(*operands)
        kept = [keep and recording and self._keeps(operands, settings)] if self._keeps else []
        # The Function costs more than a small kernel; without a gradient to record it is left out.
        if recording or in_forward_mode():
            link = self._link(operands) if self._link is not None and kept[0] else None
            return self._apply(*operands, *settings, *kept, backend, link)
        return self._forward(*operands, *settings, *kept, backend)

    def _by_formula(self, backend: str, operands: _Operands, settings: _Settings) -> Tensor | None:
        """The output where ``backend``, or the automatic choice for "", is PyTorch's own operations and autograd."""
        if self._eager is None or backend not in ("", "reference"):
            return None
        chosen = backend or self._backend.is_reference(operands, settings)
        return self._eager(operands, settings) if chosen else None

    # What ``tuned`` measures.

    def why_not(self, backend: str, operands: _Operands, settings: _Settings) -> str | None:
        """Why ``backend``, in a configuration or not, cannot run on these, or None."""
        return self._backend.why_not(backend, operands, settings)

    def configurations(self, backend: str, operands: _Operands, settings: _Settings) -> Sequence[Sequence[str]]:
        """Names of the configurations of a backend's kernels for these, by pass, its own first."""
        return self._backend.configurations(backend, operands, settings)

    def run(self, backend: str, operands: _Operands, settings: _Settings, keep: bool) -> Sequence[Tensor]:
        """What a call takes for which ``backend`` was chosen."""
        y = self._by_formula(backend, operands, settings) if keep else None
        return (self(operands, settings, keep=keep, backend=backend) if y is None else (y,))[self._public]

    def formula(self, operands: _Operands, settings: _Settings) -> Sequence[Tensor]:
        """The op by PyTorch's own operations alone, differentiable."""
        nothing_kept = [False] * bool(self._keeps)
        reference = self._backend.module("reference", operands, settings)
        return getattr(reference, self._backend.forward)(operands, settings, *nothing_kept)[self._public]

    def shape(self, operands: _Operands, settings: _Settings, keep: bool) -> tuple[Any, ...]:
        """What of a call a measurement holds for: sizes, dtypes and layouts of operands, settings, ``keep``."""
        found = sizes(operands, self._images)
        for i, kind in self._settings:
            if kind is float:
                found.append(number(settings[i]))
            else:
                found += (int(settings[i]),) if kind in (int, bool) else settings[i]
        return *found, int(keep)


def _register_backward(name: str, settings: Any, backend: Backend, gradient: Gradient) -> Callable[..., Any]:
    saved, count = gradient.saved, len(gradient.saved._fields)

    def bound(arguments: Sequence[Any]) -> tuple[Any, Any, list[bool]]:
        """(saved, settings, needs)."""
        return saved(*arguments[:count]), settings(*arguments[count:-2]), arguments[-2]

    def run(grad: Tensor, *arguments: Any) -> list[Tensor]:
        given = bound(arguments)
        return getattr(backend.module(arguments[-1], *given[:2], grad), backend.backward)(grad, *given)

    def fake(grad: Tensor, *arguments: Any) -> list[Tensor]:
        return gradient.fake(grad, *bound(arguments))

    arguments = ["Tensor grad", *_arguments(saved), *_arguments(settings), "bool[] needs", "str backend"]
    return _register(f"{name}_backward", arguments, run, fake)


def fused_op(
    name: str,
    operands: type[_Operands],
    settings: type[_Settings],
    *,
    backend: Backend,
    fake: Callable[..., list[Tensor]],
    gradient: Gradient | Adjoint,
    eager: Callable[..., Tensor | None] | None = None,
    pays: Callable[..., bool] = lambda operands, settings: True,
) -> FusedOp[_Operands, _Settings]:
    """Register an op.

    Args:
        name: of the operator, ``srkernels::name``.
        operands: NamedTuple of ``Tensor`` and ``Tensor | None``; the first decides where the op runs.
        settings: NamedTuple of int, float, bool, ``Size`` and tuples of int.
        backend: where its code lives.
        fake: (operands, settings[, keep]) -> uninitialised outputs.
        gradient: a ``Gradient``, or for a linear op an ``Adjoint``.
        eager: (operands, settings) -> the output by PyTorch's own operations and autograd, used where that is the
            automatic choice; None where these operands still need the operator.
        pays: (operands, settings) -> whether the operator, which a compiler cannot fuse with anything, was measured
            faster than what a compiler makes of ``eager``.
    """
    return FusedOp(name, operands, settings, backend, fake, gradient, eager, pays)
