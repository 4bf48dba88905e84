"""Curves of the methods' training steps, on one rank and on several: small networks, eager and ours.

Eager is the same step in plain PyTorch, networks and ops: what differs is srkernels alone. Several ranks are processes
of this machine on one thread each, with gloo between them, which share the batch; they start as `python -m
bench.scaling.steps`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from models.dasr import config as dasr_config
from models.data import InputError
from models.train.players import Step
from models.usrda import config as usrda_config

from .. import machine
from ..record import OURS
from ..steps import dasr, usrda
from ..steps.form import StepBench, first_losses, kept_bytes, timed
from ..timing import Call, Stats
from .plan import USED_UP, Plan, Size, Times, Unfit, Variant, climb_axes, curve, share, spread, threads

# Our forms' names in bench.steps, and in results.
_FORMS = {"plain": "eager", "ours": OURS}
# Seconds that ranks may take to start, and then for everything.
_START, _LONGEST = 10.0, 120.0


def _dasr(stage: Literal["dsn", "srn"], form: str, size: Size, device: torch.device) -> tuple[Step, dict[str, Tensor]]:
    config = dasr_config.load_preset("tiny")
    small: dict[str, Any] = {"crop": size.side, "num_block": 1, "bicubic_skip": False}
    if stage == "dsn":
        small["network"] = "dsn"
    config = replace(config, **{stage: replace(getattr(config, stage), **small)})
    dasr_config.check(config)
    return dasr.make(stage, config, form, device), dasr.make_batch(stage, config, size.batch, form, device)


def _usrda(form: str, size: Size, device: torch.device) -> tuple[Step, dict[str, Tensor]]:
    config = usrda_config.load_preset("tiny")
    config = replace(config, crop=size.side, num_feat=16, num_grow_ch=16, num_block=1, batch=size.batch)
    usrda_config.check(config)
    return usrda.make(config, form, device), usrda.make_batch(config, size.batch, form, device)


STEPS: dict[str, Callable[[str, Size, torch.device], tuple[Step, dict[str, Tensor]]]] = {
    "DASR DSN": partial(_dasr, "dsn"),
    "DASR SRN": partial(_dasr, "srn"),
    "USR-DA": _usrda,
}


def _calls(name: str, side: int, device: torch.device, batch: int) -> dict[str, Call]:
    """On a CPU in fp32, which all of them are fast at."""
    found: dict[str, Call] = {}
    for form in _FORMS:
        step, pictures = STEPS[name](form, Size(batch, side), device)
        if device.type == "cpu":
            step = step.in_precision(None)
        found[form] = partial(step, pictures)
    return found


def _bench(name: str, side: int) -> StepBench:
    return StepBench(partial(_calls, name, side), {}, plain=("plain",), targets={})


def measure(name: str, device: torch.device, plan: Plan) -> list[dict[str, Any]]:
    """The step's curves.

    Raises:
        AssertionError: the losses of the two forms' first updates differ.
        RuntimeError: a rank failed.
    """
    # A small step shows what autograd keeps of a pixel; the fewest pictures are one for each rank.
    kept = max(map(kept_bytes, _calls(name, plan.side, device, 1).values())) / plan.side**2
    alone = replace(plan, deadline=share(plan.deadline, 2 if plan.ranks > 1 else 1))
    climbed = climb_axes(partial(_times, name, device, plan), lambda size: kept * size.pixels, plan.ranks, alone)
    sizes = list(dict.fromkeys(size for of_sizes, _ in climbed.values() for size in of_sizes))
    on_ranks, missing = _on_ranks(name, sizes, plan)
    found = []
    for axis, (of_sizes, left_out) in climbed.items():
        about = {"subject": name, "axis": axis, "dtype": "float32" if device.type == "cpu" else "bfloat16"}
        about["device"] = device.type
        found += [curve(about, (count, 1), of_sizes, left_out) for count in plan.threads]
        if plan.ranks > 1:
            shared = {size: on_ranks[size] for size in of_sizes if size in on_ranks}
            why = f"{missing} for {plan.ranks} ranks"
            left_out |= {str(size): why for size in of_sizes if size not in on_ranks}
            found.append(curve(about, (1, plan.ranks), shared, left_out))
    return found


def _times(name: str, device: torch.device, plan: Plan, size: Size) -> dict[Variant, Times]:
    bench = _bench(name, size.side)
    try:
        made = bench.make(device, size.batch)
    except InputError as error:
        raise Unfit(str(error).partition(": ")[0]) from error
    found = {}
    for count in plan.threads:
        with threads(count):
            first_losses(f"{name} {size}", bench, made)
            found[count, 1] = _spread(timed(bench, made, device, seconds=plan.seconds, rounds=plan.rounds))
    return found


def _spread(times: Mapping[str, Stats]) -> Times:
    return {_FORMS[form]: of_form for form, of_form in spread(times).items()}


def _on_ranks(name: str, sizes: Sequence[Size], plan: Plan) -> tuple[dict[Size, dict[Variant, Times]], str]:
    """Times on several ranks, and why some are missing."""
    seconds = min(_LONGEST, plan.deadline - time.monotonic())
    if plan.ranks == 1 or not sizes:
        return {}, ""
    if not dist.is_gloo_available():
        return {}, "this torch was built without gloo, which is needed"
    if seconds < _START:
        return {}, USED_UP
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", __name__, name, str(plan.ranks), str(plan.rounds[0]), f"{folder}/store"]
        command.append(json.dumps([[size.batch, size.side] for size in sizes]))
        with log.open("wb") as sink:
            running = [
                subprocess.Popen(
                    [*command, str(rank)],
                    cwd=machine.ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    text=True,
                    stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
                    stderr=sink,
                )
                for rank in range(plan.ranks)
            ]
            try:
                said = running[0].communicate(timeout=seconds)[0]
                failed = running[0].returncode != 0
            except subprocess.TimeoutExpired:
                failed = any(rank.poll() for rank in running)  # the others wait for it
                running[0].kill()
                said = running[0].communicate()[0]
            finally:
                for rank in running:
                    rank.kill()
                    rank.wait()
        if failed:
            raise RuntimeError(f"{name}: a rank failed: {log.read_text(errors='replace')[-2000:]}")
    lines = [json.loads(line) for line in said.splitlines() if line.endswith("}")]
    found = dict(zip(sizes, [{(1, plan.ranks): times} for times in lines], strict=False))
    return found, f"{seconds:.0f} s were too few"


def _rank(name: str, ranks: int, rounds: int, store: str, sizes: Sequence[Size], rank: int) -> None:
    """One rank's part of ``_on_ranks``; the first prints the times of a size on a line."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    device = torch.device("cpu")
    for size in sizes:
        bench = _bench(name, size.side)
        made = bench.make(device, size.batch // ranks)
        first_losses(f"{name} {size}", bench, made)
        # As many rounds on all ranks: they wait for each other in every step.
        times = timed(bench, made, device, seconds=0, rounds=(rounds, rounds))
        if rank == 0:
            print(json.dumps(_spread(times)), flush=True)


if __name__ == "__main__":
    name, ranks, rounds, store, sizes, rank = sys.argv[1:]
    _rank(name, int(ranks), int(rounds), store, [Size(*size) for size in json.loads(sizes)], int(rank))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads have been seen to abort the interpreter's teardown
