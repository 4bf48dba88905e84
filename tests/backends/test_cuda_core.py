"""The CUDA core without a GPU: its kernels run on the host, and its machine code is read.

The host run compiles csrc/cuda as it is against the few CUDA names in cuda_emulation and puts it behind the public ops,
so the gates' own oracle judges it. The machine code is that of the built extension if there is one.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.calls import subsets
from helpers.marks import thorough
from helpers.operands import DTYPES, arranged, operands, random
from helpers.oracle import answers
from helpers.process import python
from torch import Tensor

from srkernels import _op, haar_dwt2d, weighted_l1_loss
from srkernels._parity import (
    allowed,
    check,
    check_magnitude,
    gradients,
    measured,
    reordered,
    sums_of_magnitudes,
    values,
)
from srkernels._spec import Case, OpSpec
from srkernels.ops import specs
from srkernels.ops.haar import allocate as haar_allocate
from srkernels.ops.haar import native as haar_native
from srkernels.ops.haar.arguments import Analysis, Bands, Image, Synthesis
from srkernels.ops.haar.conventions import HIGH, LOW, PLANS
from srkernels.ops.weighted_loss import allocate as l1_allocate
from srkernels.ops.weighted_loss import native as l1_native
from srkernels.ops.weighted_loss.arguments import Operands, Saved, Settings
from srkernels.ops.weighted_loss.native import scalars

pytestmark = pytest.mark.xdist_group("cuda core")  # built once
ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SOURCES = tuple(sorted((CSRC / "cuda").rglob("*.cu")))


# the kernels on the host


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
    flags += [f"-I{Path(__file__).parent / 'cuda_emulation'}", f"-I{CSRC}", *_pybind11_includes()]
    objects = []
    for source in (*SOURCES, CSRC / "bind" / "cuda.cpp"):
        objects.append(str(folder / f"{source.parent.name}_{source.stem}.o"))
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
    """The ops' backend interface directly on the core, with no copy or conversion in between."""

    def __init__(self, core: ModuleType) -> None:
        self.core = core
        self.workspace = torch.zeros(core.weighted_loss_workspace(), dtype=torch.uint8)

    def plan(self, plan: int) -> tuple[Any, int]:
        p = PLANS[plan]
        factors = (p.low, p.v, p.h, p.d, p.slot_v, p.slot_h, p.slot_d, p.shift)
        layout = ("band_major", "channel_major", "tuple", "sum").index(p.layout)
        return self.core.HaarPlan(*factors, p.layout == "sum"), layout

    def analysis(self, operands: Image, settings: Analysis) -> list[Tensor]:
        (x,), (plan, pad, wanted) = operands, settings
        guarded = Guarded()
        out = [guarded(y) for y in haar_allocate.bands(x, settings)]
        low, high = out[0] if wanted & LOW else None, out[-1] if wanted & HIGH else None
        self.core.haar_analysis(haar_allocate.covered(x, pad), low, high, *self.plan(plan), pad, 0)
        guarded.check()
        return out

    def synthesis(self, operands: Bands, settings: Synthesis) -> list[Tensor]:
        (low, high), (_, _, plan, pad) = operands, settings
        guarded = Guarded()
        x = guarded(haar_allocate.image(operands, settings))
        self.core.haar_synthesis(haar_allocate.covered(x, pad), low, high, *self.plan(plan), pad, 0)
        haar_allocate.clear_dropped(x, pad)
        guarded.check()
        return [x]

    def _finish(self, guarded: Guarded) -> None:
        guarded.check()
        assert not self.workspace[:16].any(), "the ticket is not zero after a launch"

    def forward(self, operands: Operands, settings: Settings, keep_signs: bool) -> list[Tensor]:
        guarded = Guarded()
        out = [guarded(y) for y in l1_allocate.loss(operands, settings, False)]
        statistics = out[1] if settings.by_weight else None
        self.core.weighted_loss_forward(*operands, out[0], statistics, scalars(settings), self.workspace, 0)
        self._finish(guarded)
        # CUDA tensors keep none: the backward pass reads the images.
        return [*out, l1_allocate.signs(operands.input).zero_()] if keep_signs else out

    def backward(self, grad: Tensor, saved: Saved, settings: Settings, needs: list[bool]) -> list[Tensor]:
        guarded = Guarded()
        out = [guarded(g) for g in l1_allocate.gradients(saved, needs)]
        left = iter(out)
        operands, statistics = saved[:3], saved.statistics
        grads = [next(left) if need and x is not None else None for need, x in zip(needs, operands, strict=True)]
        self.core.weighted_loss_backward(grad, *operands, statistics, *grads, scalars(settings), self.workspace, 0)
        self._finish(guarded)
        return out


@pytest.fixture
def backend(core: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """The public ops, forward and backward, on the host-run kernels."""
    backend = Backend(core)
    monkeypatch.setattr(_op, "implementation", lambda *_: backend)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield backend
    torch.set_num_threads(threads)


def _check_case(spec: OpSpec, case: Case, dtype: torch.dtype, layout: str, all_subsets: bool = False) -> None:
    """One draw within the budget, which is measured over all draws; each subset of operands may require gradients."""
    expected = answers(spec, case, dtype, layout)
    draw = expected.draws[0]
    for i, y in enumerate(values(spec.op, case, draw.operands)):
        exact, eager = draw.exact_values[i], draw.eager_values[i]
        check(f"{layout}: output {i}", y, exact, eager, expected.values[i])
    for wanted in subsets(expected.wanted) if all_subsets else (expected.wanted,):
        found = gradients(spec.op, case, draw.operands, draw.cotangents, wanted)
        for i, grad in zip(wanted, found, strict=True):
            k = expected.wanted.index(i)
            exact, eager, error = draw.exact_gradients[k], draw.eager_gradients[k], expected.gradients[k]
            what = f"{layout}: gradient of {spec.operands[i]}, of {wanted}"
            check(what, grad, exact, eager, error)
            check_magnitude(what, grad, exact, error)


def _haar(id: str, shape: tuple[int, ...], **kwargs: object) -> tuple[str, Case]:
    return "haar_dwt2d", Case(id, (shape,), kwargs)


def _l1(id: str, shape: tuple[int, ...], weight: tuple[int, ...] | None, **kwargs: object) -> tuple[str, Case]:
    return "weighted_l1_loss", Case(id, (shape, shape, weight), kwargs)


def _loss(id: str, shape: tuple[int, ...], weight: tuple[int, ...] | None, **kwargs: object) -> tuple[str, Case]:
    return "weighted_loss", Case(id, (shape, shape, weight), kwargs)


# Shapes that reach what the specs' small ones do not: every vector width, several blocks, runs of pixels cut short,
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
    _loss("charbonnier-blocks", (2, 3, 40, 64), (2, 1, 5, 8), kind="charbonnier", eps=1e-3),
    _loss("mse-groups", (1, 19, 8, 16), (1, 1, 2, 4), kind="mse"),
    _loss("huber-per-channel", (2, 16, 8, 8), (1, 16, 4, 4), kind="huber", delta=0.3),
    _loss("nearest-few-cells", (1, 16, 24, 16), (1, 1, 2, 1), interpolation="nearest", reduction="none"),
)
_WIDE_LOSSES = [(name, case) for name, case in _WIDE if name.startswith("weighted")]
_SPECS = {spec.name: spec for spec in specs()}
_CUDA = torch.device("cuda")
_IN_CUDA = [s for s in specs() if s.refuses("native", _CUDA, torch.float32, (), False) is None]
_CASES = [*((spec.name, case) for spec in _IN_CUDA for case in spec.cases), *_WIDE]
_every_case = pytest.mark.parametrize(("name", "case"), _CASES, ids=lambda p: p.id if isinstance(p, Case) else str(p))


@pytest.mark.parametrize(
    "dtype", ["fp32", *(pytest.param(d, marks=pytest.mark.thorough) for d in ("bf16", "fp16", "fp64"))]
)
@_every_case
def test_parity(name: str, case: Case, dtype: str, backend: Backend) -> None:
    for layout in ("contiguous", "channels_last", "sliced"):
        _check_case(_SPECS[name], case, DTYPES[dtype], layout, all_subsets=(dtype, layout) == ("fp32", "contiguous"))


@_every_case
def test_other_strides(name: str, case: Case, backend: Backend) -> None:
    layouts = ("strided", "expanded", "permuted")
    _check_case(_SPECS[name], case, torch.float32, layouts[len(case.id) % 3])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last and contiguous"])
@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (1, 2, 5, 7)], ids=["aligned", "odd"])
@pytest.mark.parametrize(
    "dtypes",
    ["bf16 fp32 bf16", "fp32 bf16 fp16", "fp16 fp16 fp32", "bf16 bf16 fp64", "fp32 fp64 fp32", "fp32 fp32 bf16"],
)
def test_mixed_dtypes(dtypes: str, shape: tuple[int, ...], layout: str, backend: Backend) -> None:
    first, _, second = layout.partition(" and ")
    layouts = (first, second or first, first)
    shapes = (shape, shape, (shape[0], 1, 3, 4))
    found, eager, exact = [], [], []
    for seed in range(8):
        xs = [
            arranged(random(s, DTYPES[d], 10 * seed + i), at)
            for i, (s, d, at) in enumerate(zip(shapes, dtypes.split(), layouts, strict=True))
        ]
        for results, op, operands_ in (
            (found, weighted_l1_loss, xs),
            (eager, _SPECS["weighted_l1_loss"].eager, xs),
            (exact, _SPECS["weighted_l1_loss"].eager, [x.double() for x in xs]),
        ):
            leaves = [x.detach().requires_grad_() for x in operands_]
            loss = op(*leaves)
            results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
        # Where the map needs no gradient, another kernel computes the images'.
        x, y = (x.detach().requires_grad_() for x in xs[:2])
        for one, other in zip(torch.autograd.grad(weighted_l1_loss(x, y, xs[2]), (x, y)), found[-1][1:], strict=False):
            assert torch.equal(one, other)
    one = torch.ones((), dtype=torch.float64)
    of_loss, of_gradients, terms = sums_of_magnitudes(
        _SPECS["weighted_l1_loss"], Case("", shapes), xs, [one], (0, 1, 2)
    )
    summed_in = torch.float64 if "fp64" in dtypes else torch.float32
    for i, what in enumerate(("loss", "gradient of input", "gradient of target", "gradient of weight")):
        # A gradient in fp64 depends on the fp32 ones' roundings in neither; only its own rounding is allowed.
        order = reordered(summed_in, [(*of_loss, *of_gradients)[i]], terms)
        error = allowed(torch.float32, measured([e[i] for e in eager], [e[i] for e in exact]), order)
        for f, e, x in zip(found, eager, exact, strict=True):
            check(what, f[i], x[i], e[i], error)


@pytest.mark.parametrize(("name", "case"), _WIDE_LOSSES, ids=lambda p: p.id if isinstance(p, Case) else str(p))
def test_nan_goes_where_it_goes_in_pytorch(name: str, case: Case, backend: Backend) -> None:
    spec = _SPECS[name]
    for bad in range(3):
        xs = operands(case, torch.float32)
        if xs[bad] is None:
            continue
        xs[bad].view(-1)[xs[bad].numel() // 2] = torch.nan
        outputs = values(spec.eager, case, xs)
        cots = [torch.ones_like(y) for y in outputs]
        wanted = tuple(i for i in range(3) if xs[i] is not None)
        for y, expected in zip(values(spec.op, case, xs), outputs, strict=True):
            assert torch.equal(y.isnan(), expected.isnan())
        expected_grads = gradients(spec.eager, case, xs, cots, wanted)
        for g, expected in zip(gradients(spec.op, case, xs, cots, wanted), expected_grads, strict=True):
            assert torch.equal(g.isnan(), expected.isnan())


def test_reduction_is_repeatable_and_fp32_under_autocast(backend: Backend) -> None:
    case = next(case for _, case in _WIDE_LOSSES if case.id == "blocks-weight-sum")
    xs = operands(case, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = (weighted_l1_loss(*xs, **case.kwargs) for _ in range(2))
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    exact = _SPECS["weighted_l1_loss"].eager(*(x.double() for x in xs), **case.kwargs)
    assert abs(first.item() - exact.item()) <= 2 * torch.finfo(torch.float32).eps * exact.item()


def test_python_glue_fits(core: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native backend's own calls, with the workspace of CUDA tensors, on the host-run kernels."""
    held = Backend(core)
    monkeypatch.setattr(Tensor, "is_cpu", False)
    monkeypatch.setattr(haar_native, "_plan", lambda device_type, plan: held.plan(plan))
    monkeypatch.setattr(l1_native, "workspace", lambda device: held.workspace)
    for native in (haar_native, l1_native):
        monkeypatch.setattr(native, "launch", lambda x, function, *operands: getattr(core, function)(*operands, 0))
    monkeypatch.setattr(
        _op, "implementation", lambda package, *_: haar_native if package.endswith("haar") else l1_native
    )
    for name, case in _CASES[:: len(_CASES) // 12]:
        for dtype in ("fp32", "bf16"):
            _check_case(_SPECS[name], case, DTYPES[dtype], "channels_last")


@pytest.mark.parametrize(
    "strides",
    [(2**31, 128, 16, 1), (128, 2**30, 16, 1), (2**31, 1, 48, 3), (128, 2**30, 1, 8)],
    ids=["far-images", "far-channels", "far-pixels", "far-strided"],
)
def test_addresses_past_2_31_elements(strides: tuple[int, ...], backend: Backend) -> None:
    try:
        room = torch.empty(2**31 + 4096, dtype=torch.bfloat16)  # only a few of its pages are ever touched
    except RuntimeError as error:
        pytest.skip(f"no 4 GiB of address space: {error}")
    far = room.as_strided((2, 3, 8, 16), strides)
    near = random((2, 3, 8, 16), torch.bfloat16, seed=0)
    far.copy_(near)
    other, weight = torch.zeros_like(near), random((2, 1, 2, 4), torch.float32, seed=1)
    for reduction in ("mean", "none"):
        a, b = (weighted_l1_loss(x, other, weight, reduction=reduction) for x in (far, near))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    for a, b in zip(haar_dwt2d(far), haar_dwt2d(near), strict=True):
        assert torch.equal(a, b)


def test_errors_name_what_is_wrong(core: ModuleType) -> None:
    plan = core.HaarPlan(0.5, 0.5, 0.5, 0.5, 0, 1, 2, 0.0, False)
    image, low = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="not a floating-point tensor"):
        core.haar_analysis(image.long(), low, None, plan, 0, 0, 0)
    with pytest.raises(ValueError, match="number of dimensions"):
        core.haar_analysis(image[0], low, None, plan, 0, 0, 0)
    with pytest.raises(TypeError):
        core.haar_analysis(16, low, None, plan, 0, 0, 0)


# the machine code


@dataclass
class Kernel:
    """One kernel for one architecture."""

    architecture: str
    name: str  # mangled
    registers: int
    stack: int
    accesses: str  # the lines of code that read or write global or local memory

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.accesses))


_ACCESSES = ("LDG", "STG", "LDL", "STL")


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found:
        return found
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name if triton and triton.origin else None
    if bundled is None or not bundled.exists():
        pytest.skip(f"no {name}, neither of a CUDA toolkit nor of the triton wheel")
    return str(bundled)


def _built() -> Path | None:
    return next(iter(sorted((ROOT / "srkernels").glob("_cuda*.so"))), None)


@pytest.fixture(scope="module", params=["sm_90", thorough("sm_80"), thorough("sm_100")])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    """Those of the built extension for an architecture; else sm_90a's, compiled here, if nvcc is installed."""
    cuobjdump = _tool("cuobjdump")
    built = _built()
    folder = tmp_path_factory.mktemp("cubin")
    binaries = []
    if not built:
        nvcc = shutil.which("nvcc")
        if nvcc is None or request.param != "sm_90":
            pytest.skip("srkernels._cuda is not built and there is no nvcc")
        for source in SOURCES:
            binaries.append(folder / f"{source.stem}.cubin")
            command = [nvcc, "-cubin", "-arch=sm_90a", "-O3", "-std=c++17", f"-I{CSRC}"]
            subprocess.run([*command, "-o", str(binaries[-1]), str(source)], check=True)
    if built:
        subprocess.run([cuobjdump, "-xelf", "all", str(built)], cwd=folder, capture_output=True, check=True)
        binaries = sorted(folder.glob(f"*.{request.param}*.cubin"))
        if not binaries:
            pytest.skip(f"srkernels._cuda is not built for {request.param}")
    found = []
    for binary in binaries:
        dump = [cuobjdump, "-res-usage", "-sass", str(binary)]
        found += _parsed(subprocess.run(dump, capture_output=True, text=True, check=True).stdout)
    assert found
    return found


def _parsed(text: str) -> list[Kernel]:
    """The kernels in the output of ``cuobjdump -res-usage -sass`` for one cubin."""
    usage, sass = text.split("code for ", 1)
    resources = dict(re.findall(r"Function (\S+):\s+(REG:\d+ STACK:\d+)", usage))
    architecture, code = sass.split("\n", 1)
    found = []
    for part in code.split("Function : ")[1:]:
        name, body = part.split("\n", 1)
        registers, stack = map(int, re.findall(r"\d+", resources[name.strip()]))
        accesses = "\n".join(line for line in body.split("\n") if any(name in line for name in _ACCESSES))
        found.append(Kernel(architecture.strip(), name.strip(), registers, stack, accesses))
    return found


# One process disassembles the binary, which takes as long as all that is asked of it.
_read_once = pytest.mark.xdist_group("machine code of the CUDA core")
_ELEMENTS = {"f": "fp32", "13__nv_bfloat16": "bf16", "6__half": "fp16", "d": "fp64"}
_VECTORISED = re.compile(
    r"(haar_(?:analysis|synthesis)_(?:rows|pixels))I(f|13__nv_bfloat16|6__half|d)E"
    r"|(weighted_loss_(?:forward|backward)_kernel)I(f|13__nv_bfloat16|6__half|d)[fd]Li\d+ELb[01]E"
)


@_read_once
def test_no_kernel_spills(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        what = f"{kernel.name} for {kernel.architecture}"
        assert kernel.stack == 0, f"{what}: {kernel.stack} bytes of stack"
        assert not kernel.count(r"\b(LDL|STL)\b"), f"{what}: local memory"
        # At least three blocks of 256 threads share an SM's 65,536 registers.
        assert kernel.registers <= 80, f"{what}: {kernel.registers} registers"


@_read_once
def test_fast_kernels_move_16_bytes_at_once(kernels: list[Kernel]) -> None:
    seen = set()
    for kernel in kernels:
        match = _VECTORISED.search(kernel.name)
        if match is None:
            continue
        what, element = match[1] or match[3], _ELEMENTS[match[2] or match[4]]
        seen.add((kernel.architecture, what, element))
        wide_loads, loads = kernel.count(r"\bLDG[.\w]*\.128\b"), kernel.count(r"\bLDG\b")
        wide_stores, stores = kernel.count(r"\bSTG[.\w]*\.128\b"), kernel.count(r"\bSTG\b")
        label = f"{kernel.name} for {kernel.architecture}"
        assert wide_loads, f"{label}: no 128-bit load"
        if "forward" not in what:  # a sum leaves through narrow stores
            assert wide_stores, f"{label}: no 128-bit store"
        if "haar" in what:
            assert (wide_loads, wide_stores) == (loads, stores), f"{label}: narrow accesses among the wide"
    families = {what for _, what, _ in seen}
    architectures = {kernel.architecture for kernel in kernels}
    assert len(families) == 6
    assert seen == {(a, w, e) for a in architectures for w in families for e in DTYPES}


@_read_once
def test_built_for_every_promised_architecture() -> None:
    built = _built()
    if built is None:
        pytest.skip("srkernels._cuda is not built")
    version = subprocess.run([_tool("cuobjdump"), "--version"], capture_output=True, text=True, check=True).stdout
    hopper = "sm_90" if "release 12." in version else "sm_90a"  # release 12 omits the suffix
    listed = subprocess.run(
        [_tool("cuobjdump"), "-lelf", "-lptx", str(built)], capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"\.(sm_\w+)\.cubin", listed.stdout)) >= {"sm_80", hopper, "sm_100"}
    assert re.search(r"\.sm_100\.ptx", listed.stdout), "no PTX for later architectures"


def test_imports_without_a_driver() -> None:
    if _built() is None:
        pytest.skip("srkernels._cuda is not built")
    python(
        """
        import torch
        from srkernels import _cpu, _cuda  # both register a HaarPlan
        plan = _cuda.HaarPlan(0.5, 0.5, 0.5, 0.5, 0, 1, 2, 0.0, False)
        assert _cuda.weighted_loss_workspace() > 16
        # Nothing to do, so nothing is launched and no driver is asked for.
        image, low = torch.zeros(0, 1, 2, 2), torch.zeros(0, 1, 1, 1)
        _cuda.haar_analysis(image, low, None, plan, 0, 0, 0)
        """
    )
