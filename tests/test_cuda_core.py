"""The CUDA core without a GPU: its kernels run on the host, and its machine code is read.

The host run compiles csrc/cuda as it is against the few CUDA names of tests/cuda_emulation and puts it behind the
public ops, so the gates' own oracle judges it. The machine code is that of the built extension where there is one.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.budget import check, check_magnitude
from helpers.calls import gradients, subsets, values
from helpers.operands import DTYPES, arranged, operands, random
from helpers.oracle import answers
from helpers.process import python
from torch import Tensor

from srkernels import weighted_l1_loss
from srkernels._native import DTYPES as CODES
from srkernels._spec import Case, OpSpec
from srkernels.ops import specs
from srkernels.ops.haar import allocate as haar_allocate
from srkernels.ops.haar import native as haar_native
from srkernels.ops.haar import schema as haar_schema
from srkernels.ops.haar.conventions import HIGH, LOW, PLANS
from srkernels.ops.weighted_l1 import allocate as l1_allocate
from srkernels.ops.weighted_l1 import native as l1_native
from srkernels.ops.weighted_l1 import schema as l1_schema
from srkernels.ops.weighted_l1.allocate import NONE

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
SOURCES = tuple(sorted((CSRC / "cuda").glob("*.cu")))


# --- the kernels on the host ------------------------------------------------------------------------------------


def _pybind11_includes() -> list[str]:
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    return [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("cuda_emulation")
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Werror", "-Wall", "-Wno-unknown-pragmas"]
    flags += [f"-I{ROOT / 'tests' / 'cuda_emulation'}", f"-I{CSRC}", *_pybind11_includes()]
    objects = []
    for source in (*SOURCES, CSRC / "bind_cuda.cpp"):
        objects.append(str(folder / f"{source.stem}.o"))
        command = [compiler, *flags, "-x", "c++", "-c", str(source), "-o", objects[-1]]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:4000]
    library = folder / "_cuda.so"
    subprocess.run([compiler, "-shared", "-o", str(library), *objects], check=True)
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(library))
    spec = importlib.util.spec_from_file_location("_cuda", library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


_EDGE = 64  # elements kept around every output: 16-byte aligned for every dtype


class Guarded:
    """Outputs filled with NaN and surrounded by a pattern that no kernel may touch."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Tensor, int]] = []

    def __call__(self, like: Tensor) -> Tensor:
        buffer = torch.full((like.numel() + 2 * _EDGE,), 7.0, dtype=like.dtype)
        buffer[_EDGE : _EDGE + like.numel()] = torch.nan
        self.buffers.append((buffer, like.numel()))
        return buffer.as_strided(like.shape, like.stride(), _EDGE)

    def check(self) -> None:
        for buffer, size in self.buffers:
            edges = torch.cat((buffer[:_EDGE], buffer[_EDGE + size :]))
            assert bool((edges == 7.0).all()), "a kernel wrote outside its output"


class Backend:
    """The ops' backend interface straight on the core, with no copy or conversion in between."""

    def __init__(self, core: ModuleType) -> None:
        self.core = core
        self.workspace = torch.zeros(core.weighted_l1_workspace((1, 1, 1, 1), True), dtype=torch.uint8)

    def _plan(self, plan: int) -> Any:
        p = PLANS[plan]
        return self.core.HaarPlan(p.low, p.v, p.h, p.d, p.slot_v, p.slot_h, p.slot_d, p.shift, p.layout == "sum")

    @staticmethod
    def _bands(low: Tensor | None, high: Tensor | None, plan: int) -> tuple[Any, ...]:
        return (
            *((0, (0,) * 4) if low is None else (low.data_ptr(), low.stride())),
            *((0, (0,) * 5) if high is None else (high.data_ptr(), haar_allocate.high_strides(high, plan))),
        )

    def analysis(self, x: Tensor, plan: int, pad: int, wanted: int) -> list[Tensor]:
        guarded = Guarded()
        out = [guarded(y) for y in haar_allocate.bands(x, plan, wanted)]
        low, high = out[0] if wanted & LOW else None, out[-1] if wanted & HIGH else None
        image = (CODES[x.dtype], x.data_ptr(), tuple(x.shape), x.stride())
        self.core.haar_analysis(*image, *self._bands(low, high, plan), self._plan(plan), pad, 0)
        guarded.check()
        return out

    def synthesis(
        self, low: Tensor | None, high: Tensor | None, rows: int, columns: int, plan: int, pad: int
    ) -> Tensor:
        guarded = Guarded()
        x = guarded(haar_allocate.image(low, high, rows, columns, plan))
        image = (x.data_ptr(), tuple(x.shape), x.stride())
        self.core.haar_synthesis(CODES[x.dtype], *self._bands(low, high, plan), *image, self._plan(plan), pad, 0)
        guarded.check()
        return x

    @staticmethod
    def _tensor(x: Tensor | None) -> tuple[Any, ...]:
        return (0, (0,) * 4) if x is None else (x.data_ptr(), x.stride())

    @staticmethod
    def _map(weight: Tensor | None) -> tuple[Any, ...]:
        return (0, (1,) * 4, (0,) * 4) if weight is None else (weight.data_ptr(), tuple(weight.shape), weight.stride())

    def _finish(self, guarded: Guarded) -> None:
        guarded.check()
        assert not self.workspace[:16].any(), "the ticket is not zero after a launch"

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        by_weight: bool,
        align_corners: bool,
        fp32: bool,
    ) -> list[Tensor]:
        guarded = Guarded()
        out = [guarded(y) for y in l1_allocate.loss(input, target, weight, reduction, by_weight, fp32)]
        self.core.weighted_l1_forward(
            tuple(CODES[x.dtype] for x in (input, target, input if weight is None else weight, out[0])),
            *self._tensor(input),
            *self._tensor(target),
            *self._map(weight),
            tuple(input.shape),
            reduction,
            by_weight,
            align_corners,
            out[0].data_ptr(),
            out[0].stride() if reduction == NONE else (0,) * 4,
            out[1].data_ptr() if by_weight else 0,
            self.workspace.data_ptr(),
            0,
        )
        self._finish(guarded)
        return out

    def backward(
        self,
        grad: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        statistics: Tensor | None,
        reduction: int,
        align_corners: bool,
        *needs: bool,
    ) -> list[Tensor]:
        guarded = Guarded()
        out = [guarded(g) for g in l1_allocate.gradients(input, target, weight, *needs)]
        left = iter(out)
        grads = [next(left) if need and x is not None else None for need, x in zip(needs, (input, target, weight))]
        self.core.weighted_l1_backward(
            tuple(CODES[x.dtype] for x in (grad, input, target, input if weight is None else weight)),
            grad.data_ptr(),
            grad.stride() if reduction == NONE else (0,) * 4,
            *self._tensor(input),
            *self._tensor(target),
            *self._map(weight),
            0 if statistics is None else statistics.data_ptr(),
            tuple(input.shape),
            reduction,
            align_corners,
            *(part for g in grads for part in self._tensor(g)),
            self.workspace.data_ptr(),
            0,
        )
        self._finish(guarded)
        return out


@pytest.fixture
def backend(core: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The public ops, forward and backward, on the host-run kernels."""
    backend = Backend(core)
    for schema in (haar_schema, l1_schema):
        monkeypatch.setattr(schema, "implementation", lambda package, name, x: backend)
    return backend


def _check_case(spec: OpSpec, case: Case, dtype: torch.dtype, layout: str) -> None:
    expected = answers(spec, case, dtype, layout)
    for n, draw in enumerate(expected.draws):
        for i, y in enumerate(values(spec.op, case, draw.operands)):
            exact, eager = draw.exact_values[i], draw.eager_values[i]
            check(f"{layout}: output {i}", y, exact, eager, expected.values[i], expected.factor)
        for wanted in subsets(expected.wanted) if n == 0 else (expected.wanted,):
            found = gradients(spec.op, case, draw.operands, draw.cotangents, wanted)
            for i, grad in zip(wanted, found, strict=True):
                k = expected.wanted.index(i)
                exact, eager, error = draw.exact_gradients[k], draw.eager_gradients[k], expected.gradients[k]
                what = f"{layout}: gradient of {spec.operands[i]}, of {wanted}"
                check(what, grad, exact, eager, error, expected.factor)
                check_magnitude(what, grad, exact, error, expected.factor)


def _haar(id: str, shape: tuple[int, ...], **kwargs: object) -> tuple[str, Case]:
    return "haar_dwt2d", Case(id, (shape,), kwargs)


def _l1(id: str, shape: tuple[int, ...], weight: tuple[int, ...] | None, **kwargs: object) -> tuple[str, Case]:
    return "weighted_l1_loss", Case(id, (shape, shape, weight), kwargs)


# Shapes that reach what the specs' small ones do not: every vector width, several blocks, runs of pixels that are cut,
# chunks that cross rows, groups of channels, every number of lanes and slices per cell of the map.
_WIDE = (
    _haar("rows", (2, 3, 4, 64), convention="dasr"),
    _haar("rows-sum", (1, 2, 6, 32), convention="dasr_sum"),
    _haar("rows-channel-major", (3, 2, 4, 32)),
    _haar("rows-tuple", (2, 3, 2, 48), convention="wct2"),
    _haar("rows-blocks", (1, 1, 66, 320), bands="high"),
    _haar("pixels-channel-major", (1, 16, 4, 6), bands="both"),
    _haar("pixels-cut", (1, 3, 2, 1504), convention="irn"),
    _haar("pixels-many-channels", (1, 320, 2, 16), convention="wavesnet"),
    _haar("low-only", (1, 3, 4, 32), bands="low"),
    _l1("groups", (1, 19, 8, 16), (1, 1, 2, 4)),
    _l1("chunks-cross-rows", (2, 3, 8, 7), (2, 1, 3, 3)),
    _l1("blocks", (2, 3, 40, 64), (2, 1, 5, 8)),
    _l1("blocks-weight-sum", (2, 3, 40, 64), (1, 1, 5, 8), normalize="weight_sum"),
    _l1("per-channel", (2, 16, 8, 8), (1, 16, 4, 4)),
    _l1("one-cell", (2, 3, 48, 40), (1, 1, 1, 1)),
    _l1("few-cells", (1, 16, 24, 16), (1, 1, 2, 1), reduction="none"),
    _l1("a-block-a-cell", (2, 4, 48, 32), (2, 1, 2, 2)),
    _l1("reduction-none", (2, 3, 8, 16), (2, 1, 4, 4), reduction="none"),
    _l1("no-map", (2, 3, 8, 16), None),
)
_CASES = [(spec.name, case) for spec in specs() for case in spec.cases]
_SPECS = {spec.name: spec for spec in specs()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "case"), [*_CASES, *_WIDE], ids=lambda p: p.id if isinstance(p, Case) else str(p))
def test_parity(name: str, case: Case, dtype: str, backend: Backend) -> None:
    for layout in ("contiguous", "channels_last", "sliced"):
        _check_case(_SPECS[name], case, DTYPES[dtype], layout)


@pytest.mark.parametrize("layout", ["strided", "expanded", "permuted"])
@pytest.mark.parametrize(("name", "case"), [*_CASES, *_WIDE], ids=lambda p: p.id if isinstance(p, Case) else str(p))
def test_strides(name: str, case: Case, layout: str, backend: Backend) -> None:
    _check_case(_SPECS[name], case, torch.float32, layout)
