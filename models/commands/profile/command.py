"""`python -m models profile`: where the time of a training step goes, part by part."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
import tyro
from rich.table import Table
from torch import Tensor

import srkernels
from models.commands.profile import dasr, usrda
from models.commands.profile.parts import ProfileParts, Subject
from models.commands.profile.stopwatch import END, REST, TRANSFER, WAIT, Stopwatch
from models.config import Updates, check_bounds, option_of
from models.data import InputError, Source, make_loader, open_source
from models.data.patches import Batch
from models.data.photographs import bundled_domains
from models.train.device import pick_device, to_device
from models.train.loop import LoopConfig
from models.train.run import make_console, peak_memory

C = TypeVar("C")

PROFILES: dict[str, ProfileParts[Any]] = {"dasr": dasr.PROFILE, "usrda": usrda.PROFILE}


@dataclass(frozen=True)
class Profile:
    """Medians over the steps, in milliseconds.

    Attributes:
        parts: of the instrumented step, in the order in which they began.
        instrumented, plain: a whole step with and without the stopwatch in it, waiting for data included.
        host: until the host has enqueued a step for an idle GPU; None on a CPU.
        loader: batches per second of the loader alone.
        memory: peak in GB, as `models.train.run.peak_memory` counts it.
    """

    parts: dict[str, float]
    instrumented: float
    plain: float
    host: float | None
    loader: float
    memory: float


@dataclass(frozen=True)
class ProfileCommand(Generic[C]):
    """Where the time of a training step goes: data, networks forward and backward, losses, optimisers."""

    config: Annotated[C, tyro.conf.arg(name="")]
    preset: str = "tiny"
    """A preset's name, or a YAML file in the same form; any of its numbers can be overridden here."""
    stage: str = "all"
    """Stage to profile, such as dsn or srn, or all of them."""
    steps: Updates = 20
    """Steps that are measured; the table shows medians over them."""
    warmup: Updates = 3
    """Steps before those."""
    hr: Path | None = None
    """HR pictures, folder or database; bundled photographs without it. Needs --lr."""
    lr: Path | None = None
    """Real LR pictures."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""


def main(arguments: Sequence[str]) -> int:
    """Measures and prints a table per stage; returns 0 when done. Raises InputError for what cannot be used."""
    name, options = next(iter(PROFILES)), list(arguments)
    if options and not options[0].startswith("-"):
        name = options.pop(0)
    if name not in PROFILES:
        raise InputError(f"no method {name!r}, there are {', '.join(PROFILES)}")
    method = PROFILES[name]
    command = parse(name, method, options)
    config, device = command.config, pick_device(command.device)
    hr, lr = _sources(command)
    console = make_console()
    for stage in method.stages if command.stage == "all" else (command.stage,):
        with tempfile.TemporaryDirectory() as folder:
            subject = method.prepare(stage, config, hr, lr, Path(folder), device)
            profile = measure(subject, config.run, command.warmup, command.steps, device)
        title = f"{name}, stage {stage}, preset {command.preset}"
        console.print(table(title, profile, subject.batch), *_conditions(command, subject, device), sep="\n")
    return 0


def parse(name: str, method: ProfileParts[C], arguments: Sequence[str]) -> ProfileCommand[C]:
    """Parses the command line; everything it does not set comes from the preset it names."""
    preset = option_of(arguments, "preset", ProfileCommand.preset)
    command: ProfileCommand[C] = tyro.cli(
        ProfileCommand[method.config],
        args=arguments,
        default=ProfileCommand(preset=preset, config=method.load_preset(preset)),
        prog=f"python -m models profile {name}",
        description=ProfileCommand.__doc__,
    )
    check_bounds(command)
    method.check(command.config)
    if command.stage not in (*method.stages, "all"):
        raise InputError(f"--stage must be one of {', '.join((*method.stages, 'all'))}, got {command.stage}")
    if (command.hr is None) != (command.lr is None):
        raise InputError("--hr and --lr go together")
    return command


def measure(subject: Subject, config: LoopConfig, warmup: int, steps: int, device: torch.device) -> Profile:
    """Measures the loader alone, then the plain step, then the step with a stopwatch in it, on one loader."""
    count = warmup + steps

    def batches(number: int) -> Iterator[Batch]:
        return make_loader(
            subject.dataset, subject.batch, 0, number, workers=config.workers, pin_memory=device.type == "cuda"
        )

    loader = _loader_rate(batches(steps + 2 * config.workers + 1), steps)
    found = batches(3 * count)
    plain, watch = Stopwatch(device), Stopwatch(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    _run(subject.update, found, count, plain, config, device)
    memory = peak_memory(device)
    host = _host_time(subject.update, found, count, config, device)[warmup:] if device.type == "cuda" else None
    _run(subject.timed(watch), found, count, watch, config, device)
    measured = watch.steps()[warmup:]
    return Profile(
        parts={name: statistics.median(step.get(name, 0.0) for step in measured) for name in measured[0]},
        instrumented=statistics.median(sum(step.values()) for step in measured),
        plain=statistics.median(sum(step.values()) for step in plain.steps()[warmup:]),
        host=statistics.median(host) if host else None,
        loader=loader,
        memory=memory,
    )


def table(title: str, profile: Profile, batch: int) -> Table:
    """The parts and their shares of the instrumented step, and the figures to compare them with."""
    shown = Table("part of a step", "ms", "share", title=title)
    for column in shown.columns[1:]:
        column.justify = "right"
    order = [WAIT, TRANSFER, *(name for name in profile.parts if name not in (WAIT, TRANSFER, REST)), REST]
    for name in order:
        shown.add_row(name, f"{profile.parts[name]:.2f}", f"{profile.parts[name] / profile.instrumented:.1%}")
    shown.add_section()
    shown.add_row("whole step, measured by parts", f"{profile.instrumented:.2f}", "100.0%")
    shown.add_row("whole step, as it is", f"{profile.plain:.2f}", f"{profile.plain / profile.instrumented:.1%}")
    if profile.host is not None:
        shown.add_row("of that, the host alone", f"{profile.host:.2f}", f"{profile.host / profile.instrumented:.1%}")
    shown.add_row("loader alone, a batch", f"{1e3 / profile.loader:.2f}", "")
    shown.caption = (
        f"loader alone: {profile.loader:.1f} batches/s, {batch * profile.loader:.1f} samples/s\n"
        f"training: {1e3 / profile.plain:.2f} updates/s, {1e3 * batch / profile.plain:.1f} samples/s\n"
        f"peak memory {profile.memory:.2f} GB"
    )
    return shown


def _sources(command: ProfileCommand[Any]) -> tuple[Source, Source]:
    if command.hr is not None and command.lr is not None:
        return open_source(command.hr), open_source(command.lr)
    domains = bundled_domains(seed=0)
    return domains.hr_source, domains.lr_source


def _run(
    update: Callable[[Mapping[str, Tensor]], object],
    batches: Iterator[Batch],
    steps: int,
    watch: Stopwatch,
    config: LoopConfig,
    device: torch.device,
) -> None:
    for _ in range(steps):
        watch.part(WAIT)
        batch = next(batches)
        watch.part(TRANSFER)
        tensors = to_device(batch, device, config.layout)
        watch.part(REST)
        update(tensors)
    watch.part(END)


def _host_time(
    update: Callable[[Mapping[str, Tensor]], object],
    batches: Iterator[Batch],
    steps: int,
    config: LoopConfig,
    device: torch.device,
) -> list[float]:
    """Milliseconds until the host is done with each step, while the GPU is otherwise idle."""
    times = []
    for _ in range(steps):
        tensors = to_device(next(batches), device, config.layout)
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        update(tensors)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _loader_rate(batches: Iterator[Batch], steps: int) -> float:
    """Batches per second over the last `steps`; those before fill the workers' queues."""
    times = [time.perf_counter() for _ in batches]
    return steps / (times[-1] - times[-1 - steps])


def _conditions(command: ProfileCommand[Any], subject: Subject, device: torch.device) -> list[str]:
    config: LoopConfig = command.config.run
    where = f"cpu, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    layout = "channels_last" if config.channels_last else "contiguous"
    pictures = "bundled photographs" if command.hr is None else f"{command.hr}, {command.lr}"
    return [
        f"{where}; {config.precision}, {layout}, {'compiled' if config.compile else 'eager'}; batch {subject.batch}, "
        f"{config.workers} loader workers; torch {torch.__version__}, srkernels {srkernels.__version__}",
        f"medians of {command.steps} steps behind {command.warmup}; pictures: {pictures}",
        *subject.notes,
        "",
    ]
