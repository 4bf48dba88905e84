"""Requesting a backend by name, automatic choice, and what the library says about both."""

from __future__ import annotations

import importlib.util
import re
import warnings

import pytest
import torch
from helpers.operands import random

import srkernels
from srkernels import _dispatch, _native, _triton
from srkernels._dispatch import BACKENDS, ranked, requested, why_not

CPU = torch.device("cpu")


def test_use_backend_nests_and_comes_back() -> None:
    assert requested() == ""
    with srkernels.use_backend("reference"):
        assert requested() == "reference"
        with srkernels.use_backend(None):
            assert requested() == ""
        assert requested() == "reference"
    assert requested() == ""


def test_use_backend_comes_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), srkernels.use_backend("reference"):
        _ = 1 / 0
    assert requested() == ""


@pytest.mark.parametrize("name", ["cuda", "Reference", "", 3])
def test_use_backend_refuses_unknown_names(name: object) -> None:
    expected = f"use_backend: backend must be one of {', '.join(BACKENDS)} or None (automatic), got {name!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"), srkernels.use_backend(name):
        pass
    assert requested() == ""


def test_a_backend_that_cannot_run_raises_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has: the request raises and is never served by another backend."""
    monkeypatch.setattr(_dispatch, "why_not", lambda *_: "it is switched off")
    monkeypatch.setattr(_dispatch, "_cache", {})
    x = random((1, 3, 4, 4), torch.float32, 0)
    with srkernels.use_backend("native"), pytest.raises(RuntimeError) as error:
        srkernels.haar_highpass(x)
    assert str(error.value) == "haar: backend 'native' was asked for but cannot run: it is switched off"


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_run_here_says_why(backend: str) -> None:
    """Every backend either runs or gives a reason that a reader can act on."""
    x = random((1, 3, 4, 4), torch.float32, 0)
    reason = why_not(backend, CPU, torch.float32)
    with srkernels.use_backend(backend):
        if reason is None:
            assert srkernels.haar_highpass(x).shape == (1, 9, 2, 2)
        else:
            assert len(reason) > 10
            with pytest.raises(RuntimeError) as error:
                srkernels.haar_highpass(x)
            assert reason in str(error.value)


def test_automatic_choice_is_the_first_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_cache", {})
    order = ranked(CPU, torch.float32)
    assert order[-1] == ("reference", None)
    first = next(name for name, reason in order if reason is None)
    x = random((1, 3, 4, 4), torch.float32, 0)
    module = _dispatch.implementation("srkernels.ops.haar", "", x)
    assert module.__name__ == f"srkernels.ops.haar.{first}"


def test_automatic_choice_never_takes_the_interpreter() -> None:
    assert "triton" not in [name for name, _ in ranked(CPU, torch.float32)]


@pytest.mark.parametrize("backend", [None, "reference"])
def test_explain(backend: str | None) -> None:
    x = random((1, 3, 4, 4), torch.bfloat16, 0)
    with srkernels.use_backend(backend):
        text = srkernels.explain(srkernels.haar_highpass, x)
    head, *lines = text.splitlines()
    first = next(name for name, reason in ranked(CPU, torch.bfloat16) if reason is None)
    chosen, how = (backend, "asked for by name") if backend else (first, "automatic")
    assert head == f"haar_highpass on cpu bfloat16: {chosen} ({how})"
    assert [line.split()[0] for line in lines] == list(BACKENDS)
    for line in lines:
        reason = why_not(line.split()[0], CPU, torch.bfloat16)
        assert ("cannot run: " + reason if reason else "can run") in line


def test_explain_needs_a_tensor() -> None:
    with pytest.raises(ValueError, match="explain: inputs must hold at least one tensor, got none"):
        srkernels.explain("haar_highpass", 3)


def test_explain_knows_its_ops() -> None:
    with pytest.raises(ValueError, match=r"explain: op must be one of .*haar_highpass.*, got 'wavelet'"):
        srkernels.explain("wavelet", torch.zeros(1, 1, 2, 2))


def test_one_op_s_reasons_do_not_choose_for_another() -> None:
    """Ops of one package share modules, dtype and device, but may differ in what they refuse."""
    from srkernels._dispatch import implementation

    def never(backend: str, *_: object) -> str:
        return "never"

    x = torch.zeros(1)
    package = "srkernels.ops.conv"
    implementation(package, "", x)
    assert implementation(package, "", x, never).__name__ == f"{package}.reference"


def test_triton_that_cannot_launch_is_passed_over_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a C compiler, which Triton needs for its first launch."""

    def fails(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    gpu = torch.device("cuda", 0)
    _native.why_not.cache_clear()
    monkeypatch.setattr(_triton, "_launched", {})
    monkeypatch.setattr(_triton, "capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_triton, "_launch_nothing", fails)
    if importlib.util.find_spec("triton") is None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = dict(ranked(gpu, torch.float32))
        assert dict(ranked(gpu, torch.bfloat16)).keys() == found.keys()
    assert ["cannot launch a kernel on cuda:0: RuntimeError: Failed to find C" in str(w.message) for w in told] == [
        True
    ]
    assert found["reference"] is None
    assert "Failed to find C compiler" in str(found["triton"])
    assert "more" not in str(found["triton"])
    _native.why_not.cache_clear()
