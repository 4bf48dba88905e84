"""`python -m models demo`: the three stages of DASR on a handful of photographs, with numbers and pictures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.optim import Adam

import srkernels
from models import metrics
from models.checkpoint import save_training_state, save_weights
from models.dasr import report
from models.dasr.config import DemoOptions, DSNOptions, SRNOptions
from models.dasr.photographs import Domains, collect
from models.dasr.steps import DSNStep, SRNStep, generate_lr_and_map
from models.dasr.timing import Timing, compare, dsn_ops, in_bf16, srn_ops
from models.data import InputError, PatchSampler, to_tensor
from models.loop import Run, train
from models.networks import DeResNet, FSDiscriminator, NLayerDiscriminator, RRDBNet

Batch = tuple[Tensor, ...]


def run_demo(options: DemoOptions) -> int:
    """Trains, measures, draws. Returns 0, or 1 if the held-out pictures did not get better.

    Raises InputError if an option or a picture cannot be used; nothing is written in that case.
    """
    _check(options)
    device = _device(options.device)
    domains = collect(options)
    run = Run(options.root, options.name)
    try:
        return _run(options, device, domains, run)
    finally:
        run.close()


def _run(options: DemoOptions, device: torch.device, domains: Domains, run: Run) -> int:
    start = time.perf_counter()
    (run.folder / "config.yml").write_text(yaml.safe_dump(_plain(options), sort_keys=False), encoding="utf-8")
    threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    versions = f"torch {torch.__version__}, srkernels {srkernels.__version__}"
    run.say(f"[bold]DASR in miniature[/] on {device}{threads}; {versions}", report.roles_table(domains))

    torch.manual_seed(options.seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    rng = np.random.default_rng(options.seed)
    hr = [to_tensor(photo.pixels, device) for photo in domains.clean_hr]
    real_lr = [to_tensor(photo.pixels, device) for photo in domains.real_lr]

    run.say("\n[bold]Stage 1[/]  the down-sampling network learns the look of the real LR pictures")
    dsn_step = make_dsn_step(options.dsn, device)
    draw_dsn = _dsn_batches(options.dsn, hr, real_lr, rng)
    dsn_history = train(
        run, "stage 1: down-sampling network", options.dsn.steps, draw_dsn, dsn_step, dsn_step.optimizers
    )
    _save(run, "dsn", options.dsn.steps, dsn_step)

    run.say("\n[bold]Stage 2[/]  an LR picture and a domain-distance map for every HR picture")
    dsn_step.generator.eval()
    dsn_step.discriminator.eval()
    generated = []
    with run.progress() as progress:
        for photo, image in zip(progress.track(domains.clean_hr, description="stage 2: LR and maps"), hr, strict=True):
            lr, distance_map = generate_lr_and_map(dsn_step.generator, dsn_step.discriminator, image[None])
            generated.append(report.Generated(photo.name, image, lr[0], distance_map[0]))
            generated[-1].save(run.folder / "generated")
    weights = torch.cat([item.distance_map.flatten() for item in generated])
    run.say(f"  map values: mean {float(weights.mean()):.3f}, {float(weights.min()):.3f} to {float(weights.max()):.3f}")

    run.say("\n[bold]Stage 3[/]  the SR network: weighted L1 on generated pairs, wavelet GAN on real LR")
    srn_step = make_srn_step(options.srn, device)
    draw_srn = _srn_batches(options.srn, generated, real_lr, rng)
    untrained = report.score(report.enlarge(srn_step.generator, domains.held_out, device), domains.held_out)

    def evaluate() -> dict[str, float]:
        enlarged = report.enlarge(srn_step.generator, domains.held_out, device)
        mean = report.mean(report.score(enlarged, domains.held_out))
        return {"PSNR (dB)": mean.psnr, "SSIM": mean.ssim}

    srn_history = train(
        run, "stage 3: SR network", options.srn.steps, draw_srn, srn_step, srn_step.optimizers, evaluate
    )
    _save(run, "srn", options.srn.steps, srn_step)

    timings = _time_steps(options, device, draw_dsn(), draw_srn(), run) if options.timing_pairs else []

    by_bicubic = report.enlarge_bicubic(domains.held_out)
    ours = report.enlarge(srn_step.generator, domains.held_out, device)
    results = report.Results(
        report.score(by_bicubic, domains.held_out), untrained, report.score(ours, domains.held_out)
    )
    enlarged = list(zip(by_bicubic, ours, strict=True))
    report.draw(run.visualization, domains, generated, enlarged, results, (dsn_history, srn_history))
    seconds = {
        "stage 1": dsn_history.seconds,
        "stage 3": srn_history.seconds,
        "whole run": time.perf_counter() - start,
    }
    report.save_metrics(run.folder / "metrics.json", domains, results, timings, srn_history.measured, seconds, device)
    if timings:
        run.say("", report.timing_table(timings, options.timing_pairs, device))
    run.say("", report.result_table(domains, results))
    return _verdict(run, results, seconds["whole run"])


def make_dsn_step(options: DSNOptions, device: torch.device) -> DSNStep:
    """Fresh networks and optimisers of stage 1."""
    generator = DeResNet(options.num_feat, options.num_block, bicubic_skip=True)
    discriminator = FSDiscriminator(num_feat=options.num_feat_discriminator)
    for network in (generator, discriminator):
        network.to(device, memory_format=torch.channels_last)
    return DSNStep(
        generator,
        discriminator,
        Adam(generator.parameters(), options.lr, betas=(0.5, 0.999)),
        Adam(discriminator.parameters(), options.lr_discriminator, betas=(0.5, 0.999)),
        content=options.content_weight,
        adversarial=options.gan_weight,
    )


def make_srn_step(options: SRNOptions, device: torch.device) -> SRNStep:
    """Fresh networks and optimisers of stage 3."""
    generator = RRDBNet(options.num_feat, options.num_block, options.num_grow_ch, bicubic_skip=True)
    discriminator = NLayerDiscriminator(num_feat=options.num_feat_discriminator)
    for network in (generator, discriminator):
        network.to(device, memory_format=torch.channels_last)
    return SRNStep(
        generator,
        discriminator,
        Adam(generator.parameters(), options.lr),
        Adam(discriminator.parameters(), options.lr_discriminator),
        pixel=options.pixel_weight,
        adversarial=options.gan_weight,
    )


def _dsn_batches(
    options: DSNOptions, hr: list[Tensor], real_lr: list[Tensor], rng: np.random.Generator
) -> Callable[[], Batch]:
    draw_hr = PatchSampler([(image,) for image in hr], (1,), 4 * options.patch, rng)
    draw_real = PatchSampler([(image,) for image in real_lr], (1,), options.patch, rng)
    return lambda: (*draw_hr.draw(options.batch), *draw_real.draw(options.batch))


def _srn_batches(
    options: SRNOptions, generated: list[report.Generated], real_lr: list[Tensor], rng: np.random.Generator
) -> Callable[[], Batch]:
    # The map has half the LR picture's size: patches of a pair are drawn on its grid.
    pairs = [(item.distance_map, item.lr, item.hr) for item in generated]
    draw_pair = PatchSampler(pairs, (1, 2, 8), options.patch // 2, rng)
    draw_real = PatchSampler([(image,) for image in real_lr], (1,), options.patch, rng)
    draw_hr = PatchSampler([(item.hr,) for item in generated], (1,), 4 * options.patch, rng)

    def draw() -> Batch:
        distance_map, fake_lr, hr = draw_pair.draw(options.batch)
        return fake_lr, hr, distance_map, *draw_real.draw(options.batch), *draw_hr.draw(options.batch)

    return draw


def _save(run: Run, name: str, steps: int, step: DSNStep | SRNStep) -> None:
    save_weights(step.generator, run.models / f"{name}.safetensors")
    save_weights(step.discriminator, run.models / f"{name}_discriminator.safetensors")
    state = {
        "step": steps,
        "optimizer_g": step.optimizer_g.state_dict(),
        "optimizer_d": step.optimizer_d.state_dict(),
    }
    save_training_state(state, run.training_states / f"{name}.state")


def _time_steps(
    options: DemoOptions, device: torch.device, dsn_batch: Batch, srn_batch: Batch, run: Run
) -> list[Timing]:
    _, real_lr = dsn_batch
    _, hr, distance_map, _, other_hr = srn_batch
    # Networks of their own: timing must not go on training the ones that are judged.
    dsn_step, srn_step = make_dsn_step(options.dsn, device), make_srn_step(options.srn, device)
    pairs = options.timing_pairs
    jobs: tuple[tuple[str, Callable[[], object], int], ...] = (
        ("stage 1, whole step", lambda: dsn_step(*dsn_batch), pairs),
        ("stage 1, whole step, bf16 autocast", in_bf16(lambda: dsn_step(*dsn_batch), device), pairs),
        ("stage 1, Haar alone", dsn_ops(real_lr), 10 * pairs),
        ("stage 3, whole step", lambda: srn_step(*srn_batch), pairs),
        ("stage 3, whole step, bf16 autocast", in_bf16(lambda: srn_step(*srn_batch), device), pairs),
        ("stage 3, Haar and L1 alone", srn_ops(hr, distance_map, other_hr), 10 * pairs),
    )
    run.say("")
    with run.progress() as progress:
        tracked = progress.track(jobs, description="time per step")
        return [compare(what, work, count, device) for what, work, count in tracked]


def _verdict(run: Run, results: report.Results, seconds: float) -> int:
    gain = results.gain()
    change = f"PSNR {gain.psnr:+.2f} dB, SSIM {gain.ssim:+.4f}"
    word = "[bold green]It learned[/]" if results.learned() else "[bold red]It did not learn[/]"
    run.say(f"\n{word}: held-out pictures against this network's own step 0: {change} ({metrics.CONVENTION}).")
    if not results.learned():
        run.say("Mean PSNR must rise by 0.01 dB and mean SSIM by 0.0001; more --srn.steps and --dsn.steps may help.")
    run.say(f"{seconds:.0f} s in all. Pictures: {run.visualization}")
    return 0 if results.learned() else 1


def _check(options: DemoOptions) -> None:
    for stage, values in (("dsn", options.dsn), ("srn", options.srn)):
        for name in ("steps", "batch", "num_feat", "num_block", "num_feat_discriminator"):
            if getattr(values, name) < 1:
                raise InputError(f"--{stage}.{name.replace('_', '-')} must be at least 1, got {getattr(values, name)}")
        if values.patch < 8 or values.patch % 2:
            raise InputError(f"--{stage}.patch must be even and at least 8, got {values.patch}")
    if Path(options.name).name != options.name:
        raise InputError(f"--name must be a plain folder name, got {options.name!r}")


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no GPU")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _plain(options: DemoOptions) -> dict[str, object]:
    values = dataclasses.asdict(options)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
