"""USR-DA's training step: in miniature on the CPU, at the paper's size on a GPU; naive, and ours.

naive eager
    Eqs. 1 to 9 one after another, every network called again for every term, in eager fp32 and NCHW with networks in
    plain PyTorch (dense blocks by concatenation), with unfused Adam and losses read back at once.
naive
    The same order with what `ours` has: networks, bf16 autocast, channels_last, fused Adam, losses left on the device.
    `ours` gains over it by computing each tensor once.
ours
    `USRDAStep`.
recompute
    Ours, with blocks that save only their input and recompute the rest in the backward pass.

The naive order is that of the unofficial code (github.com/anse3832/USR_DA), with these differences. That code calls E
once for each picture and phase, and updates the generators twice per batch. And where its discriminators step before
the generators' phase, here both losses are differentiated before either step, as in ours: forms then compute the same
losses, which are compared on the first update. Statistics of the alignment, which only ours returns, are not part of
the equations and not compared.

Spectral norm refines its estimate at every call of a discriminator in training; ours computes it once per step, the
naive order at each of its many calls. It starts from an estimate refined fifteen times, so that losses move by less
than the two hundredths that are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from models.networks import Decoder, Encoder, USRDAGenerator
from models.usrda import losses
from models.usrda.build import WeightFiles, assemble
from models.usrda.config import USRDAConfig, load_preset
from models.usrda.steps import USRDAStep

from ..timing import Call
from .form import OURS, StepBench, random_batch, random_features, run_options
from .plain import PLAIN, Plain

FORMS = ("naive eager", "naive", *OURS)

# HR crop of the paper's networks on a CPU: large enough for all discriminators, and only seconds for all forms.
_CPU_CROP = 64


def configurations() -> dict[str, StepBench]:
    """By name. Only a GPU measures the paper's networks; a CPU runs them on small crops, to check that forms agree."""
    tiny, paper = load_preset("tiny"), load_preset("paper-unpaired")
    bench = partial(
        StepBench,
        plain=("naive eager",),
        targets={"naive eager": 2.5, "naive": 1.4},
        peak=0.35,
    )
    return {
        "usrda tiny": bench(partial(calls, tiny, tiny.crop), {"cpu": tiny.batch}),
        "usrda paper-unpaired": bench(partial(calls, paper, _CPU_CROP), {"cuda": paper.batch}),
    }


def calls(config: USRDAConfig, cpu_crop: int, device: torch.device, count: int) -> dict[str, Call]:
    """The step of every form on a batch in its layout."""
    if device.type == "cpu":
        config = replace(config, crop=cpu_crop)

    def call(form: str) -> Call:
        step, batch = make(config, form, device), make_batch(config, count, form, device)

        def update() -> Mapping[str, Tensor | float]:
            found: Mapping[str, Tensor | float]
            if form in OURS:
                found = step(batch)
            else:
                found = naive_step(step, batch)
                if form == "naive eager":
                    found = {name: loss.item() for name, loss in found.items()}
            # So that the next update's peak counts its gradients, whenever a form frees the last ones.
            for optimizer in (step.players.optimizer_g, step.players.optimizer_d):
                optimizer.zero_grad()
            return found

        return update

    return {form: call(form) for form in FORMS}


def make(config: USRDAConfig, form: str, device: torch.device) -> USRDAStep:
    """The step of a form, with random weights that are the same for all forms.

    A form beside those: "plain" is `ours` with networks in plain PyTorch.
    """
    plain = form in ("naive eager", "plain")
    run = run_options(config.run, fast=form != "naive eager", recompute=form == "recompute")
    options, features = config.perceptual, None
    if options.network != "none":
        features = random_features(options.layers, plain=plain, input_norm=options.input_norm)
    torch.manual_seed(0)
    step = assemble(replace(config, run=run), features, WeightFiles(), device)
    generator = step.players.generator
    if config.bicubic_skip:
        for decoder in (generator.decoder_sr, generator.decoder_t):
            # It starts at zero, so losses would not depend on what precedes it. Drawn elsewhere, as some releases of
            # torch draw in memory order, which is not the same in all forms.
            last = decoder.conv_last
            drawn = nn.Conv2d(last.in_channels, last.out_channels, last.kernel_size)
            last.load_state_dict(drawn.state_dict())
    if plain:
        generator.encoder = Plain(generator.encoder, PLAIN[Encoder])
        generator.decoder_sr = Plain(generator.decoder_sr, PLAIN[Decoder])
        generator.decoder_t = Plain(generator.decoder_t, PLAIN[Decoder])
    return step


def make_batch(config: USRDAConfig, count: int, form: str, device: torch.device) -> dict[str, Tensor]:
    shapes = {"hr": (3, config.crop), "source_lr": (3, config.lr_crop), "real_lr": (3, config.lr_crop)}
    layout = torch.contiguous_format if form == "naive eager" else torch.channels_last
    return random_batch(shapes, count, layout, device)


def naive_step(step: USRDAStep, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One update: a phase of the discriminators, a phase of the generators, then both step."""
    players, discriminators = step.players, step.players.discriminator
    players.optimizer_d.zero_grad()
    with players.autocast():
        of_players = _discriminators_phase(step, batch)
        loss_d = torch.stack([*of_players.values()]).sum() * (0.5 if step.halve else 1)
    loss_d.backward()
    of_loss_d = [parameter.grad for parameter in discriminators.parameters()]

    players.optimizer_d.zero_grad()
    players.optimizer_g.zero_grad()
    with players.autocast():
        terms = _generators_phase(step, batch)
        loss_g = torch.stack([getattr(step.weights, name) * term for name, term in terms.items()]).sum()
    loss_g.backward()  # fills gradients of the discriminators' weights, too
    for parameter, gradient in zip(discriminators.parameters(), of_loss_d, strict=True):
        parameter.grad = gradient
    players.optimizer_d.step()
    players.optimizer_g.step()
    return {name: term.detach() for name, term in {**terms, **of_players}.items()}


def _discriminators_phase(step: USRDAStep, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Eqs. 2 and 6, and the same for D_y. The generators' outputs have a graph, which is cut only at D's input."""
    g, d = step.players.generator, step.players.discriminator
    x_s, x_t, y_s = batch["source_lr"], batch["real_lr"], batch["hr"]
    f_t, f_s, x_st = g.encoder(x_t), g.encoder(x_s), _restyled(g, x_s)
    terms = {
        "d_f": losses.alignment_discriminator_loss(d["f"](f_t.detach()), d["f"](f_s.detach())),
        "d_t": losses.style_discriminator_loss([d["t"](x_t)], [d["t"](x_st.detach())]),
    }
    if step.adversarial:
        images = g(x_s), g(_restyled(g, x_s))
        real = [d["y"](y_s) for _ in images[: 2 if step.real_twice else 1]]
        terms["d_y"] = losses.style_discriminator_loss(real, [d["y"](image.detach()) for image in images])
    return terms


def _generators_phase(step: USRDAStep, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Eqs. 1, 3, 4, 5, 7 and 8."""
    g, d = step.players.generator, step.players.discriminator
    x_s, x_t, y_s = batch["source_lr"], batch["real_lr"], batch["hr"]

    def reconstruction(image: Tensor) -> Tensor:
        term = losses.l1_loss(image, y_s)
        if step.features is not None:
            term = term + step.perceptual * step.features(image, y_s)
        return term + step.adversarial * losses.style_loss(d["y"](image)) if step.adversarial else term

    f_s = g.encoder(x_s)
    return {
        "align": losses.alignment_loss(d["f"](g.encoder(x_t)), d["f"](g.encoder(x_s))),
        "rec": reconstruction(g(x_s)),
        "res": losses.l1_loss(_restyled(g, x_t), x_t),
        "sty": losses.style_loss(d["t"](_restyled(g, x_s))),
        "idt": losses.l1_loss(g.encoder(_restyled(g, x_s)), f_s.detach() if step.detach_source else f_s),
        "cyc": reconstruction(g(_restyled(g, x_s))),
    }


def _restyled(g: USRDAGenerator, x: Tensor) -> Tensor:
    """G_t(E(x))."""
    return g.to_target(g.encoder(x), x)
