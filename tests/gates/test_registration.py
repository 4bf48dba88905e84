"""The registered ops keep their promises to PyTorch: schema, fake, layout, ahead-of-time dispatch."""

from __future__ import annotations

import pytest
import torch
from helpers.calls import RawCall, Target, recorded
from helpers.operands import LAYOUTS, cotangents, operands
from helpers.process import python
from torch._subclasses.fake_tensor import FakeTensorMode

import srkernels
from srkernels._parity import flat, gradients, present, values
from srkernels._spec import Case, OpSpec


def _raw_calls(spec: OpSpec, case: Case, target: Target, layout: str) -> list[RawCall]:
    """The registered ops that a call and its backward pass run, with their arguments."""
    xs = operands(case, torch.float32, layout, device=target.device)
    cots = cotangents(values(spec.eager, case, xs), layout)
    with srkernels.use_backend(target.backend), recorded() as calls:
        gradients(spec.op, case, xs, cots, present(xs))
    assert len(calls) == 2 * case.kwargs.get("levels", 1), "for each level one registered op forward, one backward"
    return calls


def _detached(call: RawCall) -> tuple:
    return tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in call.args)


@pytest.mark.parametrize("dense_layout", ["contiguous", "permuted"])
def test_opcheck(spec: OpSpec, target: Target, dense_layout: str) -> None:
    if target.interpreted and spec.composed and dense_layout == "contiguous":
        pytest.skip("in the interpreter composed ops, of many launches a call, see one layout")
    for call in _raw_calls(spec, spec.small[0], target, dense_layout):
        torch.library.opcheck(call.op, _detached(call))


def test_fakes_promise_what_kernels_return(spec: OpSpec, case: Case, target: Target) -> None:
    """Shape, dtype, strides and device of every output, for every case and layout."""
    for layout in LAYOUTS:
        for call in _raw_calls(spec, case, target, layout):
            arguments = _detached(call)
            real = flat(call.op(*arguments))
            with FakeTensorMode() as mode:
                fakes = flat(call.op(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments)))
            assert len(real) == len(fakes)
            for a, b in zip(real, fakes, strict=True):
                assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device), (call.op, layout)
                if a.numel():
                    assert a.stride() == b.stride(), (call.op, layout)


def test_ops_carry_the_backend_that_was_asked_for(spec: OpSpec, target: Target) -> None:
    """A backward pass runs on the backend of its forward pass, also outside the ``with``."""
    xs = operands(spec.small[0], torch.float32, device=target.device)
    leaves = [None if x is None else x.requires_grad_() for x in xs]
    with recorded() as calls:
        with srkernels.use_backend(target.backend):
            outputs = values(spec.op, spec.small[0], leaves)
        torch.autograd.grad(outputs, [x for x in leaves if x is not None], cotangents(outputs))
    assert [call.backend for call in calls] == [target.backend] * 2


def test_the_dispatcher_changes_nothing(spec: OpSpec, case: Case, target: Target) -> None:
    """Calls that nothing watches go past it."""
    xs = operands(case, torch.float32, device=target.device)
    cots = cotangents(values(spec.eager, case, xs))

    def found() -> list[torch.Tensor]:
        return [*values(spec.op, case, xs), *gradients(spec.op, case, xs, cots, present(xs))]

    with srkernels.use_backend(target.backend):
        past = found()
        with recorded() as calls:
            through = found()
    assert calls
    for one, other in zip(past, through, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, check_stride=True)


def test_schemas_exist_with_torch_alone() -> None:
    """The ops are registered at import, without triton or the extensions, so a trace can never miss them."""
    python("""
        import sys
        for name in ("triton", "srkernels._cpu", "srkernels._cuda"):
            sys.modules[name] = None
        import torch, srkernels
        names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("srkernels::")]
        assert len(names) == 10, names
        from torch._subclasses.fake_tensor import FakeTensorMode
        with FakeTensorMode():
            x = torch.empty(2, 3, 9, 8)
            assert srkernels.haar_highpass(x).shape == (2, 9, 5, 4)
            low, high = srkernels.haar_dwt2d(x)
            assert srkernels.haar_idwt2d(low, high, output_size=(9, 8)).shape == x.shape
            assert srkernels.weighted_l1_loss(x, x).shape == ()
    """)
