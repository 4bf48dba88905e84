"""DASR's training steps at published sizes: as published, as plain PyTorch does it best, and ours.

published
    What the methods' code does: eager fp32 in NCHW, Haar by strided convolutions, the map resized to full size and the
    L1 unfused, gradients of the discriminator's weights in the generator's step, the discriminator's loss of the DSN
    running back through the generator, losses read back at once, unfused Adam.
plain
    The same waste removed (our step), bf16 autocast, channels_last, fused Adam, and networks, Haar and L1 in eager
    PyTorch: what somebody who knows PyTorch gets without srkernels.
ours
    That step on the ops of srkernels.
recompute
    Ours, with blocks that keep their input alone and compute the rest again in the backward pass.

Perceptual networks have random weights: their values do not matter to time or memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import srkernels
from models.dasr.build import WeightFiles, build_dsn_step, build_srn_step
from models.dasr.config import DASRConfig, PerceptualConfig, load_preset
from models.dasr.steps import DSNStep, SRNStep
from models.losses import DistanceLoss, FeatureLoss
from models.networks import LPIPS, VGG19Features
from models.networks.blocks import kaiming_init
from models.resize import bicubic
from srkernels.ops.haar.spec import published_highpass

from . import timing
from .harness import verdicts
from .plain_networks import PLAIN, Plain
from .timing import Call

FORMS = ("published", "plain", "ours", "recompute")
OURS = ("ours", "recompute")
TARGETS = {"published": 4.0, "plain": 1.25}
MEMORY_TARGET = 3.0
Step = DSNStep | SRNStep


def configurations() -> dict[str, tuple[str, DASRConfig]]:
    """Name to (stage, configuration); batches are those of a GPU."""
    return {
        "dsn paper": ("dsn", load_preset("paper")),
        "srn official-aim": ("srn", load_preset("official-aim")),
        "srn paper": ("srn", load_preset("paper")),
    }


# Crops of each domain per step on the CPU, where a whole batch would take a minute.
CPU_BATCH = {"dsn paper": 2, "srn official-aim": 3, "srn paper": 3}


def make(stage: str, config: DASRConfig, form: str, device: torch.device) -> Step:
    """The step of a form, with random weights that are the same for all forms; perceptual networks are random too."""
    fast = form != "published"
    run = replace(
        config.run,
        recompute=form == "recompute",
        precision="bf16" if fast else "fp32",
        channels_last=fast,
        fused_adam=fast,
    )
    perceptual = getattr(config, stage).perceptual
    bare = replace(getattr(config, stage), perceptual=PerceptualConfig("none"))
    config = replace(config, run=run, **{stage: bare})
    torch.manual_seed(0)
    build = build_dsn_step if stage == "dsn" else build_srn_step
    step: Step = build(config, WeightFiles(), device)
    torch.manual_seed(1)
    features = _features(perceptual, form)
    step = replace(step, features=features.to(device, memory_format=torch.channels_last if fast else None))
    if form in OURS:
        return step
    players = step.players
    generator = Plain(players.generator, PLAIN[type(players.generator)])
    return replace(step, players=replace(players, generator=generator))


def _features(perceptual: PerceptualConfig, form: str) -> nn.Module:
    if perceptual.network == "lpips":
        return DistanceLoss(LPIPS())
    network = VGG19Features(perceptual.layers)
    kaiming_init(network)  # PyTorch's own would leave features of about 0
    return FeatureLoss(network if form in OURS else Plain(network, PLAIN[VGG19Features]), perceptual.map_resize)


def make_batch(stage: str, config: DASRConfig, count: int, form: str, device: torch.device) -> dict[str, Tensor]:
    crop = getattr(config, stage).crop
    side = crop // config.scale
    sizes = {
        "dsn": {"hr": crop, "real_lr": side},
        "srn": {"fake_lr": side, "hr": crop, "real_lr": side, "other_hr": crop},
    }
    torch.manual_seed(2)
    batch = {name: torch.rand(count, 3, size, size, device=device) for name, size in sizes[stage].items()}
    if stage == "srn":
        batch["weight"] = torch.rand(count, 1, side // 2, side // 2, device=device)
    layout = torch.contiguous_format if form == "published" else torch.channels_last
    return {name: value.contiguous(memory_format=layout) for name, value in batch.items()}


def published_dsn_step(step: DSNStep, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """One update as published, both losses ahead of both steps, which is the order that today's PyTorch accepts."""
    g, d, gan = step.players.generator, step.players.discriminator, step.players.gan
    target = bicubic(batch["hr"], 1 / step.scale).clamp(0, 1)
    fake = g(batch["hr"])
    real_logits, fake_logits = d(published_highpass(batch["real_lr"])), d(published_highpass(fake))
    loss_d = gan.discriminator(real_logits, fake_logits)
    step.players.optimizer_d.zero_grad()
    loss_d.backward(retain_graph=True)  # runs back through g, too
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
    """One update as published: Haar of both halves of the batch, of which half is used; G steps first, then D."""
    g, d, gan = step.players.generator, step.players.discriminator, step.players.gan
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


def calls(name: str, device: torch.device, count: int) -> dict[str, Call]:
    """The step of every form on a batch of its own layout."""
    stage, config = configurations()[name]

    def call(form: str) -> Call:
        step, batch = make(stage, config, form, device), make_batch(stage, config, count, form, device)
        if form != "published":
            return lambda: step(batch)
        published = published_dsn_step if stage == "dsn" else published_srn_step
        return lambda: published(step, batch)

    return {form: call(form) for form in FORMS}


def around(form: str) -> AbstractContextManager[Any]:
    """The form without srkernels has its Haar and L1 from eager PyTorch."""
    return srkernels.use_backend(None if form in OURS else "reference")


def kept_bytes(call: Call) -> int:
    """The most that autograd keeps at one time of one step, in bytes of different storages, parameters left out."""
    live: dict[int, int] = {}
    total = most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal total, most
            self.tensor, storage = tensor, tensor.untyped_storage()
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
    name: str, device: torch.device, *, seconds: float, rounds: tuple[int, int] = (5, 40), count: int | None = None
) -> dict[str, Any]:
    """Losses of the first update compared, then interleaved times and what autograd keeps; as in the results file.

    Raises:
        AssertionError: a form's first losses are not those of the published form; nothing has been timed then.
    """
    count = count or batch_size(name, device)
    made = calls(name, device, count)
    first: dict[str, dict[str, float]] = {}
    kept = {}
    for form, call in made.items():
        with around(form):
            first[form] = {key: float(value) for key, value in call().items()}
            kept[form] = kept_bytes(call)
        check_losses(name, form, first[form], first["published"])

    def whole(call: Call) -> Call:
        def run() -> None:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    # Steps are timed by the host's clock everywhere: what the host adds is part of training.
    timed = {form: [whole(call)] for form, call in made.items()}
    times = timing.time_calls(timed, torch.device("cpu"), seconds=seconds, rounds=rounds, around=around)
    providers = {
        form: {**stats.as_dict(), "ratio": timing.ratio(stats, times["ours"]), "kept_bytes": kept[form]}
        for form, stats in times.items()
    }
    memory = kept["published"] / kept["recompute"]
    return {
        "step": name,
        "batch": count,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "losses": first,
        "providers": providers,
        "targets": [
            *verdicts(TARGETS, providers, "ours"),
            {"against": "memory", "target": MEMORY_TARGET, "measured": memory, "met": memory >= MEMORY_TARGET},
        ],
    }


def batch_size(name: str, device: torch.device) -> int:
    """Crops of each domain in a step."""
    stage, config = configurations()[name]
    return CPU_BATCH[name] if device.type == "cpu" else getattr(config, stage).batch


def check_losses(name: str, form: str, found: Mapping[str, float], wanted: Mapping[str, float]) -> None:
    """Forms differ by bf16 alone. Raises AssertionError naming the loss that does not agree."""
    for key, value in wanted.items():
        if abs(found[key] - value) > 0.02 * max(abs(value), 1e-2):
            raise AssertionError(f"{name}: the {key} loss is {found[key]} in the form {form}, {value} as published")
