"""`python -m models demo`: DASR in miniature on bundled photographs, with numbers, pictures and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor, nn

import srkernels
from models.dasr import report
from models.dasr.build import WeightFiles, build_dsn_step, build_srn_step
from models.dasr.config import DASRConfig, check, load_preset
from models.dasr.stages import Context, dsn_streams, run_stages, srn_streams
from models.dasr.timing import Timing, compare, dsn_ops, in_bf16, srn_ops
from models.data import InputError, PatchDataset, Stream, make_loader, to_pixels, to_tensor
from models.device import pick_device, to_device
from models.networks import load_weights
from models.photographs import Domains, bundled_domains
from models.resize import bicubic
from models.run import Run, set_aside
from models.training import Inputs, newest_weights
from models.validation import Pixels, score

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class DemoOptions:
    """Trains DASR in miniature on real photographs and leaves pictures, curves, numbers and weights behind.

    Photographs come from scikit-image's wheel, real LR pictures through a simulated camera. For pictures of your own:
    python -m models dasr --preset tiny.
    """

    name: str = "demo"
    """The run's folder is <root>/<name>; an earlier run of that name is kept under another."""
    root: Path = Path("experiments")
    """Where runs are kept."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""
    timing_pairs: int = 12
    """Interleaved pairs of steps (reference ops, automatic choice) in the timing table; 0 leaves the table out."""
    config: Annotated[DASRConfig, tyro.conf.arg(name="")] = field(default_factory=DASRConfig)


def main(arguments: Sequence[str]) -> int:
    """Trains what the command line says; 0, or 1 if the held-out pictures did not get better."""
    default = DemoOptions(config=load_preset("tiny"))
    return run_demo(
        tyro.cli(
            DemoOptions,
            args=arguments,
            default=default,
            prog="python -m models demo",
            description=DemoOptions.__doc__,
        )
    )


def run_demo(options: DemoOptions) -> int:
    """Trains, measures, draws. Returns 0, or 1 if the held-out pictures did not get better.

    Raises InputError if an option cannot be used; nothing is written in that case.
    """
    check(options.config)
    if Path(options.name).name != options.name:
        raise InputError(f"--name must be a plain folder name, got {options.name!r}")
    device = pick_device(options.device)
    domains = bundled_domains(options.config.run.seed)
    set_aside(options.root / options.name)
    run = Run(options.root / options.name)
    try:
        return _run(options, device, domains, run)
    finally:
        run.close()


def _run(options: DemoOptions, device: torch.device, domains: Domains, run: Run) -> int:
    start, config = time.perf_counter(), options.config
    threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    versions = f"torch {torch.__version__}, srkernels {srkernels.__version__}"
    run.say(f"DASR in miniature on {device}{threads}; {versions}", style="bold")
    run.say(report.roles_table(domains))
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False

    inputs = Inputs(domains.hr_source, domains.lr_source, domains.pairs)
    context = Context(config, inputs, WeightFiles(), run, device)
    histories = run_stages(context, "all")

    torch.manual_seed(config.run.seed)  # the network as it was before its first update
    untrained = build_srn_step(config, WeightFiles(), device).players.generator
    trained = load_weights(newest_weights(context.folder("srn"), "generator", config.srn.schedule.updates)).to(device)
    by_bicubic = [_enlarged(lambda lr: bicubic(lr, config.scale), lr.pixels, device) for lr, _ in domains.held_out]
    before = [_enlarged(untrained, lr.pixels, device) for lr, _ in domains.held_out]
    after = [_enlarged(trained, lr.pixels, device) for lr, _ in domains.held_out]
    truth = [hr.pixels for _, hr in domains.held_out]
    results = report.Results(
        *([score(a, b, config.scale) for a, b in zip(made, truth, strict=True)] for made in (by_bicubic, before, after))
    )

    timings = _time_steps(context, options.timing_pairs) if options.timing_pairs else []
    report.draw(context, domains, by_bicubic, after, results, histories)
    seconds = {f"stage {name}": history.seconds for name, history in histories.items()}
    seconds["whole run"] = time.perf_counter() - start
    report.save_metrics(run.folder / "metrics.json", domains, results, timings, histories["srn"], seconds, device)
    if timings:
        run.say("", report.timing_table(timings, options.timing_pairs, device))
    run.say("", report.result_table(domains, results))
    return _verdict(run, results, seconds["whole run"])


@torch.inference_mode()
def _enlarged(network: Callable[[Tensor], Tensor] | nn.Module, lr: Pixels, device: torch.device) -> Pixels:
    return to_pixels(network(to_tensor(lr, device)[None])[0])


def _time_steps(context: Context, pairs: int) -> list[Timing]:
    config, device = context.config, context.device
    # Networks of their own: timing must not go on training the ones that are judged.
    dsn_step, srn_step = (build(config, WeightFiles(), device) for build in (build_dsn_step, build_srn_step))
    dsn_batch = _first_batch(dsn_streams(config, context.inputs), config.dsn.batch, device)
    srn_batch = _first_batch(srn_streams(config, context.inputs, context.folder("generated")), config.srn.batch, device)
    jobs: tuple[tuple[str, Callable[[], object], int], ...] = (
        ("stage dsn, whole step", lambda: dsn_step(dsn_batch), pairs),
        ("stage dsn, whole step, bf16 autocast", in_bf16(dsn_step, dsn_batch), pairs),
        ("stage dsn, Haar alone", dsn_ops(dsn_step, dsn_batch), 10 * pairs),
        ("stage srn, whole step", lambda: srn_step(srn_batch), pairs),
        ("stage srn, whole step, bf16 autocast", in_bf16(srn_step, srn_batch), pairs),
        ("stage srn, Haar and L1 alone", srn_ops(srn_step, srn_batch), 10 * pairs),
    )
    with context.run.progress() as progress:
        tracked = progress.track(jobs, description="time per step")
        return [compare(what, work, count, device) for what, work, count in tracked]


def _first_batch(streams: Sequence[Stream], batch: int, device: torch.device) -> Batch:
    whole = next(make_loader(PatchDataset(streams, 0, grey_images="convert"), batch, 0, 1))
    return to_device(whole, device, torch.channels_last)


def _verdict(run: Run, results: report.Results, seconds: float) -> int:
    gain = results.gain()
    change = f"PSNR {gain.psnr:+.2f} dB, SSIM {gain.ssim:+.4f}"
    learned = results.learned()
    word, colour = ("It learned", "green") if learned else ("It did not learn", "red")
    against = f"held-out pictures against this network's own step 0: {change} ({report.CONVENTION})"
    run.say(f"\n{word}: {against}.", style=f"bold {colour}")
    if not learned:
        run.say("Mean PSNR must rise by 0.01 dB and mean SSIM by 0.0001; longer schedules may help.")
    run.say(f"{seconds:.0f} s in all. Pictures: {run.folder / 'visualization'}")
    return 0 if learned else 1
