"""One benchmark record: parity first, then interleaved times, bandwidth, memory and the targets' verdicts."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from srkernels import use_backend
from srkernels._dispatch import why_not
from srkernels._parity import flat
from srkernels._spec import BenchCase, OpSpec

from .. import timing
from ..record import OURS, verdicts
from ..timing import Stats
from .providers import Gate, Problem, backends, baselines, problem, tiny

REUSED_BUFFER_TARGET = 0.8
HOST_TARGET = 1.1  # most host time of a tiny call, as a multiple of eager PyTorch's
# On a GPU: never slower than torch.compile, and close to a copy's speed where the traffic far exceeds the caches.
GPU_SHARE_TARGET, GPU_SHARE_BYTES = 0.9, 40 << 20
_PUBLISHED = ("float32", "contiguous")


def case_id(spec: OpSpec, bench: BenchCase) -> str:
    layout = "-channels_last" if bench.channels_last else ""
    return f"{spec.name}-{bench.case.id}-{bench.passes}-{bench.dtype}{layout}"


def itemsize(bench: BenchCase) -> int:
    dtype: torch.dtype = getattr(torch, bench.dtype)
    return dtype.itemsize


def gpu_targets(nbytes: int) -> dict[str, float]:
    return {"compile": 1.0} | ({"copy": GPU_SHARE_TARGET} if nbytes >= GPU_SHARE_BYTES else {})


def measure(
    spec: OpSpec,
    bench: BenchCase,
    device: torch.device,
    *,
    seconds: float = 5.0,
    rounds: tuple[int, int] = (15, 200),
    compiled: bool = True,
) -> dict[str, Any]:
    """Everything about one case, as stored in the results file.

    Raises:
        ParityError: a provider of ours is outside the budget; nothing has been timed then.
    """
    dtype: torch.dtype = getattr(torch, bench.dtype)
    first = problem(spec, bench, device)
    gate = Gate(spec, bench, first)
    ours, skipped = backends(spec, device, dtype)
    candidates, left_out = baselines(spec, compiled=compiled)
    ours, _ = gate.passing(ours)
    others, different = gate.passing(candidates)
    skipped |= left_out | different
    del gate
    chosen = {p.name: p for p in (*others, *ours)}

    nbytes = spec.bytes_moved(bench.case, itemsize(bench), bench.passes)
    once = spec.bytes_moved(bench.case, itemsize(bench), "forward")
    sets = [first, *(problem(spec, bench, device, i) for i in range(1, timing.cold_sets(once, device)))]
    calls = {name: [s.call(p.function) for s in sets] for name, p in chosen.items()}
    copy = timing.copy_gbps(nbytes, device)
    times = timing.time_calls(calls, device, seconds=seconds, rounds=rounds, around=lambda name: chosen[name].around())
    copy = max(copy, timing.copy_gbps(nbytes, device))
    providers = {}
    for name, stats in times.items():
        gbps = nbytes / stats.median_us / 1e3
        providers[name] = {
            **stats.as_dict(),
            "ratio": timing.ratio(stats, times[OURS]),
            "gbps": gbps,
            "share": gbps / copy,
        }
        with chosen[name].around():
            providers[name] |= _costs(first, chosen[name].function, calls[name][0], device)
    if device.type == "cpu":
        judged = verdicts(bench.targets, providers)
    elif bench.gpu_targets:
        judged = verdicts(bench.gpu_targets, providers, "triton")
    else:
        judged = verdicts(gpu_targets(nbytes), providers)
    return {
        "op": spec.name,
        "case": bench.case.id,
        "shapes": [None if s is None else list(s) for s in bench.case.shapes],
        "passes": bench.passes,
        "dtype": bench.dtype,
        "layout": "channels_last" if bench.channels_last else "contiguous",
        "device": device.type,
        "threads": torch.get_num_threads(),
        "bytes": nbytes,
        "copy_gbps": copy,
        "providers": providers,
        "skipped": skipped,
        "targets": judged,
        "over_fp32_target": bench.over_fp32 if device.type == "cpu" else None,
    }


def _costs(
    given: Problem, function: Callable[..., Any], call: Callable[[], Any], device: torch.device
) -> dict[str, Any]:
    """Memory, and on CUDA launches and the time that ``do_bench`` measures for a single call."""
    if device.type != "cuda":
        # Hooks on saved tensors cannot see into every provider; what they cannot see is left out, not guessed.
        saved: int | None = 0
        if given.wanted:
            try:
                saved = timing.saved_bytes(lambda: given.forward(function), given.operands)
            except RuntimeError:
                saved = None
        return {"saved_bytes": saved}
    costs: dict[str, Any] = {"peak_bytes": timing.peak_bytes(call, device)}
    launched = timing.kernels(call, device)
    costs |= {"launches": len(launched), "device_us": sum(us for _, us in launched)}
    try:
        from triton.testing import do_bench

        costs["do_bench_us"] = do_bench(call, warmup=5, rep=30, return_mode="median") * 1e3
    except ImportError:
        costs["do_bench_us"] = None
    return costs


def host_cost(spec: OpSpec, device: torch.device, *, batches: int = 30, batch: int = 200) -> list[dict[str, Any]]:
    """Host microseconds of a tiny call, forward and forward+backward: under automatic choice, in eager PyTorch, and
    "bare", PyTorch's own share: allocating what the op returns, in an autograd Function where there are gradients.
    """
    found = []
    for passes in ("forward", "forward+backward"):
        whole = tiny(spec)
        bench = whole if passes != "forward" else BenchCase(whole.case, passes)
        given = problem(spec, bench, device)
        with use_backend(None):
            functions = {OURS: spec.op, "eager": spec.eager, "bare": _bare(given, spec.op)}
            calls = {name: given.call(function) for name, function in functions.items()}
            times: dict[str, Stats] = timing.host_us(calls, device, batches=batches, batch=batch)
        measured = times[OURS].median_us / times["eager"].median_us
        found.append(
            {
                "op": spec.name,
                "case": bench.case.id,
                "shapes": [None if s is None else list(s) for s in bench.case.shapes],
                "passes": passes,
                "device": device.type,
                "providers": {name: stats.as_dict() for name, stats in times.items()},
                "of_eager": measured,
                "target": HOST_TARGET,
                "met": measured <= HOST_TARGET,
            }
        )
    return found


def _bare(given: Problem, op: Callable[..., Any]) -> Callable[..., Any]:
    shapes = [y.shape for y in given.forward(op)]

    class Bare(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *operands: Tensor) -> tuple[Tensor, ...]:
            ctx.shapes = [x.shape for x in operands]
            return tuple(operands[0].new_empty(shape) for shape in shapes)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            needed = zip(ctx.shapes, ctx.needs_input_grad, strict=True)
            return tuple(grads[0].new_empty(shape) if need else None for shape, need in needed)

    def call(*operands: Any, **kwargs: Any) -> Any:
        present = flat(operands)
        if not any(x.requires_grad for x in present):
            return [present[0].new_empty(shape) for shape in shapes]
        outputs = Bare.apply(*present)
        return outputs[0] if len(outputs) == 1 else outputs

    return call


def reused_buffer(
    device: torch.device, *, seconds: float = 3.0, shape: tuple[int, ...] = (8, 3, 512, 512)
) -> dict[str, Any]:
    """Haar high bands by the native kernel into a given output, against a copy of as many bytes, timed interleaved."""
    check: dict[str, Any] = {"check": "haar native into a reused buffer, share of copy", "target": REUSED_BUFFER_TARGET}
    check |= {"shape": list(shape), "dtype": "float32", "measured": None, "met": None}
    reason = why_not("native", device, torch.float32)
    if reason is not None:
        return check | {"reason": reason}
    native = importlib.import_module("srkernels.ops.haar.native")
    if not hasattr(native, "analysis_into"):
        return check | {"reason": "the native module has no analysis_into"}
    from srkernels.ops.haar import allocate
    from srkernels.ops.haar.arguments import Analysis, Image
    from srkernels.ops.haar.conventions import HIGH, PADS, plan_id

    settings = Analysis(plan_id("dasr"), PADS.index("reflect"), HIGH)
    x = torch.rand(shape, device=device)
    (expected,) = importlib.import_module("srkernels.ops.haar.reference").analysis(Image(x), settings)
    nbytes = 4 * (x.numel() + expected.numel())
    count = timing.cold_sets(nbytes, device)
    inputs = [torch.rand(shape, device=device) for _ in range(count - 1)] + [x]
    outputs = [allocate.bands(one, settings) for one in inputs]
    native.analysis_into(x, outputs[-1], settings)
    if not torch.allclose(outputs[-1][0], expected, rtol=1e-6, atol=1e-6):
        raise AssertionError("haar analysis_into disagrees with the reference")
    calls: dict[str, list[Callable[[], Any]]] = {"haar": [], "copy": []}
    for one, out in zip(inputs, outputs, strict=True):
        calls["haar"].append(functools.partial(native.analysis_into, one, out, settings))
        target = torch.empty(nbytes // 8, device=device)
        calls["copy"].append(functools.partial(target.copy_, torch.rand(nbytes // 8, device=device)))
    times = timing.time_calls(calls, device, seconds=seconds, rounds=(15, 400))
    gbps = {name: nbytes / stats.median_us / 1e3 for name, stats in times.items()}
    share = gbps["haar"] / gbps["copy"]
    return check | {"measured": share, "met": share >= REUSED_BUFFER_TARGET, "gbps": gbps}


def bf16_per_byte(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """bf16 must move bytes at least as fast as fp32, wherever a run timed both on the same case."""
    by_key = {(r["op"], r["case"], r["passes"], r["layout"], r["dtype"]): r for r in records}
    found = []
    for (op, case, passes, layout, dtype), record in by_key.items():
        full = by_key.get((op, case, passes, layout, "float32"))
        if dtype != "bfloat16" or full is None:
            continue
        gbps = {"bfloat16": record["providers"][OURS]["gbps"], "float32": full["providers"][OURS]["gbps"]}
        rate = gbps["bfloat16"] / gbps["float32"]
        name = f"bf16 GB/s over fp32 GB/s: {op} {case} {passes}"
        found.append({"check": name, "target": 1.0, "measured": rate, "met": rate >= 1.0, "gbps": gbps})
    return found


def over_fp32(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A case against eager PyTorch in fp32 and NCHW, as published training code runs, wherever a run timed both."""
    plain = {(r["op"], r["case"], r["passes"]): r for r in records if (r["dtype"], r["layout"]) == _PUBLISHED}
    found = []
    for record in records:
        target = record.get("over_fp32_target")
        other = plain.get((record["op"], record["case"], record["passes"]))
        if target is None or other is None:
            continue
        rate = other["providers"]["eager"]["median_us"] / record["providers"][OURS]["median_us"]
        name = f"eager fp32 NCHW over {record['dtype']} {record['layout']}: {record['op']} {record['case']}"
        found.append({"check": name, "target": target, "measured": rate, "met": rate >= target})
    return found
