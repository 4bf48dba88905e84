"""`python -m models demo`: a method in miniature on bundled photographs, with numbers, pictures and times.

How a method trains, and what it times and draws of its own, is in its `DemoParts`; the rest is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
import tyro

import srkernels
from models.commands.demo import dasr, report, usrda
from models.commands.demo.parts import DemoJob, DemoParts
from models.commands.demo.timing import Timing, compare
from models.config import Bound, check_bounds, option_of
from models.data import InputError, to_pixels, to_tensor
from models.data.photographs import bundled_domains, check_bundled_scale
from models.data.resize import bicubic
from models.evaluate.validation import MEASURES, Judge, Picture, load_perceptual
from models.networks.weight_options import PerceptualFiles
from models.train.device import pick_device
from models.train.run import Run

C = TypeVar("C")

DEMOS: dict[str, DemoParts[Any]] = {"dasr": dasr.DEMO, "usrda": usrda.DEMO}


@dataclass(frozen=True)
class DemoOptions(Generic[C]):
    """Trains a method in miniature on real photographs and leaves pictures, curves, numbers and weights behind.

    Photographs come from scikit-image's wheel, and real LR pictures from a simulated camera. With --weights.vgg there
    is a perceptual loss. For pictures of your own: python -m models dasr --preset tiny, or python -m models usrda
    --preset tiny.
    """

    config: Annotated[C, tyro.conf.arg(name="")]
    method: str = "dasr"
    """dasr or usrda."""
    preset: str = "tiny"
    """A preset's name, or a YAML file in the same form; miniature with --weights.vgg."""
    camera: Literal["soft", "noise5", "point", "aliasing", "regions"] = "soft"
    """What takes the real LR pictures; noise5 with --weights.vgg, since what blur took no small network brings back."""
    name: str = "demo"
    """The run's folder is <root>/<name>; an earlier run of that name is set aside."""
    root: Path = Path("experiments")
    """Where runs are kept."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""
    weights: PerceptualFiles = field(default_factory=PerceptualFiles)
    timing_pairs: Annotated[int, Bound(0, 10**4)] = 12
    """Interleaved pairs of steps (reference ops, automatic choice) in the timing table; 0 leaves the table out."""


def main(arguments: Sequence[str]) -> int:
    """Trains as the command line says; returns 0, or 1 if the held-out pictures did not get better."""
    name = option_of(arguments, "method", "dasr")
    method, taught = load_method(name), bool(option_of(arguments, "weights.vgg", ""))
    preset = option_of(arguments, "preset", "miniature" if taught else DemoOptions.preset)
    camera: Any = "noise5" if taught else DemoOptions.camera
    default = DemoOptions(method.load_preset(preset), name, preset, camera)
    return run_demo(
        tyro.cli(
            DemoOptions[method.config],  # type: ignore[name-defined]
            args=arguments,
            default=default,
            prog="python -m models demo",
            description=DemoOptions.__doc__,
        )
    )


def load_method(name: str) -> DemoParts[Any]:
    if name not in DEMOS:
        raise InputError(f"--method must be one of {', '.join(DEMOS)}, got {name!r}")
    return DEMOS[name]


def run_demo(options: DemoOptions[Any]) -> int:
    """Trains, measures, draws. Returns 0, or 1 if the held-out pictures did not get better.

    Raises InputError if an option cannot be used; nothing is written in that case.
    """
    check_bounds(options)
    method, config = load_method(options.method), options.config
    method.check(config, options.weights)
    check_bundled_scale(config.scale)
    if Path(options.name).name != options.name:
        raise InputError(f"--name must be a plain folder name, got {options.name!r}")
    device = pick_device(options.device)
    judge = Judge(config.scale, load_perceptual(options.weights, device))
    domains = bundled_domains(config.run.seed, options.camera)
    folder = options.root / options.name
    run = Run(folder, anew=folder)
    try:
        return _run(method, DemoJob(config, domains, run, device, options.weights), judge, options.timing_pairs)
    finally:
        run.close()


def _run(method: DemoParts[Any], job: DemoJob[Any], judge: Judge, pairs: int) -> int:
    start, run, domains, device = time.perf_counter(), job.run, job.domains, job.device
    threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    versions = f"torch {torch.__version__}, srkernels {srkernels.__version__}"
    run.say(f"{method.title} in miniature on {device}{threads}; {versions}", style="bold")
    run.say(report.roles_table(domains))
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False

    trained = method.train(job)

    by_bicubic = [_enlarged(lambda lr: bicubic(lr, job.config.scale), lr.pixels, device) for lr, _ in domains.held_out]
    before, after = (
        [_enlarged(network, lr.pixels, device) for lr, _ in domains.held_out]
        for network in (trained.before, trained.after)
    )
    truth = [hr.pixels for _, hr in domains.held_out]
    results = report.Results(
        judge,
        method.teacher(job.config) != "none",
        *([judge(a, b) for a, b in zip(made, truth, strict=True)] for made in (by_bicubic, before, after)),
    )

    timings = _time(method, job, pairs) if pairs else []
    folder = run.folder / "visualization"
    report.draw(folder, domains, by_bicubic, after, results, trained.histories)
    method.draw(job, folder)
    seconds = {f"stage {name}": history.seconds for name, history in trained.histories.items()}
    seconds["whole run"] = time.perf_counter() - start
    *_, last = trained.histories.values()
    report.save_metrics(run.folder / "metrics.json", domains, results, timings, last, seconds, device)
    if timings:
        run.say("", report.timing_table(timings, method.ops, pairs, device))
    run.say("", report.result_table(domains, results))
    return _verdict(run, results, seconds["whole run"])


@torch.inference_mode()
def _enlarged(network: Callable[[torch.Tensor], torch.Tensor], lr: Picture, device: torch.device) -> Picture:
    with torch.compiler.set_stance("force_eager"):
        return to_pixels(network(to_tensor(lr, device)[None])[0])


def _time(method: DemoParts[Any], job: DemoJob[Any], pairs: int) -> list[Timing]:
    with job.run.progress() as progress:
        tracked = progress.track(method.timed(job), description="time per step")
        return [compare(what, work, pairs * calls, job.device) for what, work, calls in tracked]


def _verdict(run: Run, results: report.Results, seconds: float) -> int:
    gain = results.gain()
    shown = ((MEASURES[name], value) for name, value in gain.items())
    change = ", ".join(f"{measure.title} {value:+.{measure.digits}f}{measure.unit}" for measure, value in shown)
    learned = results.learned()
    word, colour = ("It learned", "green") if learned else ("It did not learn", "red")
    against = f"held-out pictures against this network's own step 0: {change} ({results.judge.convention})"
    run.say(f"\n{word}: {against}.", style=f"bold {colour}")
    if not learned:
        decide = " and ".join(MEASURES[name].title for name in results.decisive)
        run.say(f"{decide} must get better, by the last digit shown at least; longer schedules may help.")
    run.say(f"{seconds:.0f} s in all. Pictures: {run.folder / 'visualization'}")
    return 0 if learned else 1
