"""Training steps in several forms, measured against each other: what the methods share.

A method's own module (`dasr`, `usrda`) names its configurations and builds the step in all its forms. Here the losses
of the first update are compared, the forms timed interleaved, and their memory counted.

Perceptual networks have random weights: their values do not matter to time or memory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

import srkernels
from models.networks import VGG19Features
from models.networks.blocks import kaiming_init
from models.train import graph
from models.train.loop import LoopConfig
from models.train.losses import FeatureLoss
from models.train.players import Step

from .. import timing
from ..record import verdicts
from ..timing import Call, Stats
from .plain import PLAIN, Plain

OURS = ("ours", "recompute")


@dataclass(frozen=True)
class StepBench:
    """One configuration's training step in all its forms.

    Attributes:
        make: (device, crops of each domain in a step) to one update of each form, on a batch in its layout. An update
            returns its losses by name. The others are compared with the first form.
        batch: crops of each domain by device type. On a device not listed the step is not measured.
        plain: forms without srkernels; any of its ops left in them run in eager PyTorch.
        targets: form to the least ratio of its time to that of `ours`.
        kept: least ratio of what autograd keeps in the first form to that in `recompute`.
        peak: greatest share of the first form's peak memory that `ours` and `recompute` may need. None: not measured.
    """

    make: Callable[[torch.device, int], dict[str, Call]]
    batch: Mapping[str, int]
    plain: tuple[str, ...]
    targets: Mapping[str, float]
    kept: float | None = None
    peak: float | None = None

    def around(self, form: str) -> AbstractContextManager[Any]:
        """The context that every call of a form runs in."""
        return srkernels.use_backend("reference" if form in self.plain else None)


def run_options(run: LoopConfig, *, fast: bool, recompute: bool) -> LoopConfig:
    """How a form runs: as the methods' code does (fp32, NCHW, unfused Adam), or as PyTorch is fastest."""
    return replace(run, recompute=recompute, precision="bf16" if fast else "fp32", channels_last=fast, fused_adam=fast)


def replayed(step: Step, batch: Mapping[str, Tensor], device: torch.device) -> Call:
    """The step on one batch as a CUDA graph, once it has run a few times."""
    for optimizer in (step.players.optimizer_g, step.players.optimizer_d):
        graph.make_capturable(optimizer)
    graphed = graph.GraphedStep(lambda _, batch: step(batch), lambda _: None, graph.CUDACapture(device), print)
    return lambda: graphed(0, batch)


def random_features(
    layers: Sequence[str],
    *,
    plain: bool,
    input_norm: bool = True,
    map_resize: Literal["bilinear", "area"] = "bilinear",
) -> FeatureLoss:
    """The perceptual loss on VGG-19 with random weights, the same for all forms."""
    torch.manual_seed(1)
    network = VGG19Features(layers, input_norm=input_norm)
    kaiming_init(network)  # PyTorch's default would leave features of about 0
    return FeatureLoss(Plain(network, PLAIN[VGG19Features]) if plain else network, map_resize)


def random_batch(
    shapes: Mapping[str, tuple[int, int]], count: int, layout: torch.memory_format, device: torch.device
) -> dict[str, Tensor]:
    """`count` random pictures of every (channels, side), the same for all forms."""
    torch.manual_seed(2)
    batch = {name: torch.rand(count, c, side, side, device=device) for name, (c, side) in shapes.items()}
    return {name: value.contiguous(memory_format=layout) for name, value in batch.items()}


def kept_bytes(call: Call) -> int:
    """The most that autograd keeps at one time in a step, in bytes of distinct storages, parameters left out."""
    live: dict[int, int] = {}
    total = most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal total, most
            # Detached: an output kept with its graph would keep that graph, and itself, alive forever.
            self.tensor, storage = tensor.detach(), tensor.untyped_storage()
            self.key = storage.data_ptr()
            live[self.key] = live.get(self.key, 0) + 1
            if live[self.key] == 1:
                total += storage.nbytes()
                most = max(most, total)
            self.nbytes = storage.nbytes()

        def __del__(self) -> None:
            nonlocal total
            live[self.key] -= 1
            if not live[self.key]:
                total -= self.nbytes

    def pack(tensor: Tensor) -> Tensor | Kept:
        return tensor if isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter) else Kept(tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor if isinstance(kept, Kept) else kept):
        call()
    return most


def measure(
    name: str,
    bench: StepBench,
    device: torch.device,
    *,
    seconds: float,
    rounds: tuple[int, int] = (5, 40),
    count: int | None = None,
) -> dict[str, Any]:
    """Compares losses of the first update, then measures memory and interleaved times; as in the results file.

    Where a form does not fit into the GPU's memory, all are measured on half the batch.

    Raises:
        AssertionError: a form's first losses differ from the first form's; nothing has been timed then.
    """
    wanted = count = count or bench.batch[device.type]
    while True:
        try:
            record = _measure(name, bench, device, count, seconds, rounds)
            return record if count == wanted else {**record, "batch_wanted": wanted}
        except torch.cuda.OutOfMemoryError:
            if count == 1:
                raise
        # Outside the handler: the error's traceback keeps everything allocated alive.
        count //= 2
        gc.collect()
        torch.cuda.empty_cache()


def _measure(
    name: str, bench: StepBench, device: torch.device, count: int, seconds: float, rounds: tuple[int, int]
) -> dict[str, Any]:
    made = bench.make(device, count)
    losses = first_losses(name, bench, made)
    memory: dict[str, dict[str, int]] = {}
    for form, call in made.items():
        with bench.around(form):
            memory[form] = {"kept_bytes": kept_bytes(call)}
            if bench.peak is not None:
                memory[form]["peak_bytes"] = timing.peak_bytes(call, device)

    times = timed(bench, made, device, seconds=seconds, rounds=rounds)
    providers = {
        form: {**stats.as_dict(), "ratio": timing.ratio(stats, times["ours"]), **memory[form]}
        for form, stats in times.items()
    }
    return {
        "step": name,
        "batch": count,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "losses": losses,
        "providers": providers,
        "targets": [*verdicts(bench.targets, providers, "ours"), *_memory_verdicts(bench, memory)],
    }


def timed(
    bench: StepBench, made: Mapping[str, Call], device: torch.device, *, seconds: float, rounds: tuple[int, int]
) -> dict[str, Stats]:
    """Interleaved times of the forms, by the host's clock everywhere: the host's share is part of training."""

    def whole(call: Call) -> Call:
        def run() -> None:
            call()
            timing.synchronize(device)

        return run

    calls = {form: [whole(call)] for form, call in made.items()}
    return timing.time_calls(calls, torch.device("cpu"), seconds=seconds, rounds=rounds, around=bench.around)


def _memory_verdicts(bench: StepBench, memory: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    first, found = next(iter(memory.values())), []
    if bench.kept is not None:
        ratio = first["kept_bytes"] / memory["recompute"]["kept_bytes"]
        found.append({"against": "memory", "target": bench.kept, "measured": ratio, "met": ratio >= bench.kept})
    if bench.peak is not None:
        for form in OURS:
            share = memory[form]["peak_bytes"] / first["peak_bytes"]
            found.append(
                {"against": f"peak {form}", "target": bench.peak, "measured": share, "met": share <= bench.peak}
            )
    return found


def first_losses(name: str, bench: StepBench, made: Mapping[str, Call]) -> dict[str, dict[str, float]]:
    """One update of each form, and its losses.

    Raises:
        AssertionError: naming the loss that differs from the first form's; forms differ only by bf16.
    """
    found: dict[str, dict[str, float]] = {}
    for form, call in made.items():
        with bench.around(form):
            found[form] = {key: float(value) for key, value in call().items()}
        first, wanted = next(iter(found.items()))
        for key, value in wanted.items():
            if abs(found[form][key] - value) > 0.02 * max(abs(value), 1e-2):
                raise AssertionError(
                    f"{name}: the {key} loss is {found[form][key]} in the form {form}, {value} in {first}"
                )
    return found
