"""DASR's training steps at published sizes: as published, as plain PyTorch does it best, and ours.

published
    What the methods' code does: eager fp32 in NCHW, Haar by strided convolutions, the map resized to full size and the
    L1 unfused, gradients of the discriminator's weights in the generator's step, the DSN's discriminator loss
    backpropagated through the generator, losses read back at once, unfused Adam.
plain
    This waste removed (our step), bf16 autocast, channels_last, fused Adam, and networks, Haar and L1 in eager
    PyTorch: what a PyTorch expert gets without srkernels.
ours
    That step with the ops of srkernels.
recompute
    Ours, with blocks that save only their input and recompute the rest in the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dasr.build import WeightFiles, build_dsn_step, build_srn_step
from models.dasr.config import DASRConfig, PerceptualConfig, load_preset
from models.dasr.steps import DSNStep, SRNStep
from models.data.resize import bicubic
from models.networks import LPIPS
from models.train.losses import DistanceLoss
from srkernels.ops.haar.spec import published_highpass

from ..timing import Call
from .form import OURS, StepBench, random_batch, random_features, replayed, run_options
from .plain import PLAIN, Plain

FORMS = ("published", "plain", *OURS)
Step = DSNStep | SRNStep


def configurations() -> dict[str, StepBench]:
    """By name; batches are full on a GPU, and smaller on the CPU, where a full one would take a minute."""

    def bench(stage: str, preset: str, on_cpu: int) -> StepBench:
        config = load_preset(preset)
        return StepBench(
            partial(calls, stage, config),
            {"cpu": on_cpu, "cuda": getattr(config, stage).batch},
            plain=("published", "plain"),
            targets={"published": 4.0, "plain": 1.25},
            kept=3.0,
        )

    return {
        "dsn paper": bench("dsn", "paper", 2),
        "srn official-aim": bench("srn", "official-aim", 3),
        "srn paper": bench("srn", "paper", 3),
    }


def calls(stage: str, config: DASRConfig, device: torch.device, count: int) -> dict[str, Call]:
    """The step of every form on a batch in its layout."""

    def call(form: str) -> Call:
        step, batch = make(stage, config, form, device), make_batch(stage, config, count, form, device)
        if form != "published":
            return lambda: step(batch)
        published = published_dsn_step if stage == "dsn" else published_srn_step
        return lambda: published(step, batch)

    found = {form: call(form) for form in FORMS}
    if device.type == "cuda":
        step, batch = make(stage, config, "ours", device), make_batch(stage, config, count, "ours", device)
        found["graph"] = replayed(step, batch, device)
    return found


def make(stage: str, config: DASRConfig, form: str, device: torch.device) -> Step:
    """The step of a form, with random weights that are the same for all forms; perceptual networks are random too."""
    run = run_options(config.run, fast=form != "published", recompute=form == "recompute")
    perceptual = getattr(config, stage).perceptual
    bare = replace(getattr(config, stage), perceptual=PerceptualConfig("none"))
    config = replace(config, run=run, **{stage: bare})
    torch.manual_seed(0)
    build = build_dsn_step if stage == "dsn" else build_srn_step
    step: Step = build(config, WeightFiles(), device)
    if perceptual.network != "none":
        features = _features(perceptual, form)
        step = replace(step, features=features.to(device, memory_format=run.layout))
    if form in OURS:
        return step
    players = step.players
    generator = Plain(players.generator, PLAIN[type(players.generator)])
    return replace(step, players=replace(players, generator=generator))


def _features(perceptual: PerceptualConfig, form: str) -> nn.Module:
    if perceptual.network == "lpips":
        torch.manual_seed(1)
        return DistanceLoss(LPIPS())
    return random_features(perceptual.layers, plain=form not in OURS, map_resize=perceptual.map_resize)


def make_batch(stage: str, config: DASRConfig, count: int, form: str, device: torch.device) -> dict[str, Tensor]:
    crop = getattr(config, stage).crop
    side = crop // config.scale
    shapes = {
        "dsn": {"hr": (3, crop), "real_lr": (3, side)},
        "srn": {
            "fake_lr": (3, side),
            "hr": (3, crop),
            "real_lr": (3, side),
            "other_hr": (3, crop),
            "weight": (1, side // 2),
        },
    }
    layout = torch.contiguous_format if form == "published" else torch.channels_last
    return random_batch(shapes[stage], count, layout, device)


def published_dsn_step(step: DSNStep, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """One update as published, both losses before both steps, which is the order that today's PyTorch accepts."""
    g, d, gan = step.players.generator, step.players.discriminator, step.gan
    target = bicubic(batch["hr"], 1 / step.scale).clamp(0, 1)
    fake = g(batch["hr"])
    real_logits, fake_logits = d(published_highpass(batch["real_lr"])), d(published_highpass(fake))
    loss_d = gan.discriminator(real_logits, fake_logits)
    step.players.optimizer_d.zero_grad()
    loss_d.backward(retain_graph=True)  # backpropagates through g, too
    of_loss_d = [parameter.grad for parameter in d.parameters()]

    terms = {
        "content": F.l1_loss(fake, target),
        "perceptual": _published_perceptual(step.features, fake, target, None),
        "adversarial": gan.generator(fake_logits),
    }
    step.players.optimizer_d.zero_grad()
    step.players.optimizer_g.zero_grad()
    _total(step, terms).backward()
    for parameter, gradient in zip(d.parameters(), of_loss_d, strict=True):
        parameter.grad = gradient
    step.players.optimizer_d.step()
    step.players.optimizer_g.step()
    return {name: term.item() for name, term in {**terms, "discriminator": loss_d}.items()}


def published_srn_step(step: SRNStep, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """One update as published: Haar of both halves of the batch, one of them unused; G steps first, then D."""
    g, d, gan = step.players.generator, step.players.discriminator, step.gan
    hr, real = batch["hr"], batch["other_hr"]
    weight = F.interpolate(batch["weight"], size=hr.shape[-2:], mode="bilinear", align_corners=False)
    both = g(torch.cat((batch["fake_lr"], batch["real_lr"])))
    sr = both[: len(hr)]
    bands, bands_hr = published_highpass(both), published_highpass(torch.cat((hr, real)))
    fake = bands[len(hr) :]

    terms = {
        "content": (weight * (sr - hr).abs()).mean(),
        "perceptual": _published_perceptual(step.features, sr, hr, weight if step.weigh_features else None),
        "adversarial": gan.generator(d(fake)),
    }
    if step.low is not None:
        terms["low_band"] = (F.avg_pool2d(sr, 2) - F.avg_pool2d(hr, 2)).abs().mean()
    step.players.optimizer_g.zero_grad()
    _total(step, terms).backward()
    step.players.optimizer_g.step()

    step.players.optimizer_d.zero_grad()
    loss_d = gan.discriminator(d(bands_hr[len(hr) :]), d(fake.detach()))
    loss_d.backward()
    step.players.optimizer_d.step()
    return {name: term.item() for name, term in {**terms, "discriminator": loss_d}.items()}


def _published_perceptual(loss: nn.Module, image: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    if isinstance(loss, DistanceLoss):
        return loss(image, target)
    ((name, found),) = loss.features(image).items()
    difference = (found - loss.features(target)[name]).abs()
    if weight is not None:
        difference = (
            F.interpolate(weight, size=difference.shape[-2:], mode="bilinear", align_corners=False) * difference
        )
    return difference.mean()


def _total(step: Step, terms: Mapping[str, Tensor]) -> Tensor:
    return sum(getattr(step, name) * term for name, term in terms.items())  # type: ignore[return-value]
