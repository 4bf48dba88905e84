"""The modules are stateless, copyable and say what they are."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers.operands import random
from torch import nn

import srkernels
from srkernels._parity import flat
from srkernels.nn import (
    BasicSRCharbonnierLoss,
    BasicSRL1Loss,
    BasicSRMSELoss,
    HaarDWT2d,
    HaarHighPass,
    WeightedL1Loss,
    WeightedLoss,
)

MODULES = [
    pytest.param(HaarDWT2d("mwcnn", levels=2, bands="high", pad="zero"), id="HaarDWT2d"),
    pytest.param(HaarHighPass("wct2", pad="symmetric"), id="HaarHighPass"),
    pytest.param(WeightedL1Loss(0.5, "sum", normalize="weight_sum", align_corners=True), id="WeightedL1Loss"),
    pytest.param(WeightedLoss("huber", 0.5, delta=0.2, interpolation="nearest"), id="WeightedLoss"),
    pytest.param(BasicSRL1Loss(0.5, "sum"), id="BasicSRL1Loss"),
    pytest.param(BasicSRMSELoss(), id="BasicSRMSELoss"),
    pytest.param(BasicSRCharbonnierLoss(2.0, eps=1e-6), id="BasicSRCharbonnierLoss"),
]


def _call(module: nn.Module) -> list[torch.Tensor]:
    x, y = random((2, 3, 7, 8), torch.float32, 0), random((2, 3, 7, 8), torch.float32, 1)
    out = module(x, y, y[:, :1, ::2, ::2]) if isinstance(module, WeightedLoss) else module(x)
    return flat(out)


@pytest.mark.parametrize("module", MODULES)
def test_copies_do_the_same(module: nn.Module) -> None:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)]
    expected = _call(module)
    for other in copies:
        assert type(other) is type(module)
        assert repr(other) == repr(module)
        assert all(torch.equal(a, b) for a, b in zip(_call(other), expected, strict=True))


@pytest.mark.parametrize("module", MODULES)
def test_no_state(module: nn.Module) -> None:
    """Dropping a module into a network changes none of its keys."""
    assert module.state_dict() == {}
    assert not list(module.parameters())
    assert not list(module.buffers())
    net = nn.Sequential(module, nn.Conv2d(9, 1, 1))
    assert set(net.state_dict()) == {"1.weight", "1.bias"}
    module.load_state_dict({}, strict=True)


def test_repr_names_every_choice() -> None:
    assert repr(HaarDWT2d("mwcnn", bands="high", pad="zero")) == "HaarDWT2d('mwcnn', bands='high', pad='zero')"
    assert repr(HaarDWT2d(levels=3)) == "HaarDWT2d('orthonormal', levels=3, bands='both', pad='reflect')"
    assert repr(HaarHighPass()) == "HaarHighPass('dasr', pad='reflect')"
    assert repr(WeightedL1Loss(0.5, "sum")) == (
        "WeightedL1Loss(loss_weight=0.5, reduction='sum', normalize='numel', align_corners=False)"
    )


@pytest.mark.parametrize("module", MODULES)
def test_repr_can_be_evaluated(module: nn.Module) -> None:
    assert repr(eval(repr(module))) == repr(module)


def test_modules_equal_functions() -> None:
    x, y, w = (random(s, torch.float32, i) for i, s in enumerate(((2, 3, 7, 8), (2, 3, 7, 8), (2, 1, 2, 3))))
    low, high = HaarDWT2d("irn", pad="zero")(x)
    expected = srkernels.haar_dwt2d(x, "irn", pad="zero")
    assert torch.equal(low, expected[0])
    assert torch.equal(high, expected[1])
    assert torch.equal(HaarHighPass("mwcnn", pad="zero")(x), srkernels.haar_highpass(x, "mwcnn", pad="zero"))
    for arguments in ({}, {"normalize": "weight_sum"}, {"align_corners": True}):
        found = WeightedL1Loss(0.25, **arguments)(x, y, w)
        assert torch.equal(found, 0.25 * srkernels.weighted_l1_loss(x, y, w, **arguments))
    assert torch.equal(WeightedL1Loss(reduction="none")(x, y), srkernels.weighted_l1_loss(x, y, reduction="none"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HaarDWT2d("db2"), "HaarDWT2d: convention must be one of orthonormal, .* got 'db2'"),
        (lambda: HaarDWT2d(bands="HH"), "HaarDWT2d: bands must be one of low, high, both, got 'HH'"),
        (lambda: HaarDWT2d(levels=0), "HaarDWT2d: levels must be at least 1 and below 2\\*\\*31, got 0"),
        (lambda: HaarDWT2d(pad="wrap"), "HaarDWT2d: pad must be one of reflect, .* got 'wrap'"),
        (lambda: HaarHighPass("haar"), "HaarHighPass: convention must be one of .* got 'haar'"),
        (lambda: HaarHighPass(pad="same"), "HaarHighPass: pad must be one of .* got 'same'"),
        (lambda: WeightedL1Loss(reduction="avg"), "WeightedL1Loss: reduction must be one of none, .* got 'avg'"),
        (lambda: WeightedL1Loss(normalize="n"), "WeightedL1Loss: normalize must be one of numel, weight_sum, got 'n'"),
    ],
)
def test_arguments_are_checked_when_made(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
