"""USR-DA's training step.

Wang, Zhang, Yuan, Wang: "Unsupervised Real-World Super-Resolution: A Domain Adaptation Perspective". x_s are LR
pictures synthesised from HR pictures y_s, x_t real LR pictures.

Every tensor is computed once: three passes of E, two of G_t and two of G_SR, each pair in one call. The generators'
and the discriminators' losses are differentiated from those passes, each with respect to its own weights alone. Nothing
in the step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached
from torch.optim import Optimizer

from models.networks import USRDAGenerator
from models.train import distributed
from models.train.losses import FeatureLoss, widen
from models.usrda import losses

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class LossWeights:
    """The weights of Eq. 9. What only terms of weight 0 need is not computed (Table 3)."""

    align: float = 0.01
    """L_align, Eq. 1."""
    rec: float = 1.0
    """L_rec, Eq. 3."""
    res: float = 1.0
    """L_res, Eq. 4."""
    sty: float = 0.01
    """L_sty, Eq. 5."""
    idt: float = 0.01
    """L_idt, Eq. 7."""
    cyc: float = 1.0
    """L_cyc, Eq. 8."""


@dataclass(frozen=True)
class USRDAStep:
    """One update of E, G_t and G_SR by Eq. 9, and of D_f, D_t and D_y by Eqs. 2 and 6.

    The batch holds `source_lr` x_s (N, 3, h, w), its `hr` y_s (N, 3, sh, sw) and `real_lr` x_t (N, 3, h, w).

    Attributes:
        discriminators: `f`, `t` and `y`.
        perceptual, adversarial: alpha and beta of Eqs. 3 and 8; without beta there is no D_y.
        features: phi; None drops the perceptual part.
        detach_source: f_s is constant in Eq. 7 (ours; the paper prints it trainable).
        halve, real_twice: half the discriminators' losses; the real term of D_y once for each fake (unofficial code).

    The terms that a step gives are those of Eq. 9 and the discriminators' before their weights, and what tells whether
    the alignment holds: `scale_t` and `scale_s`, mean |f| of either domain, `score_t` and `score_s`, mean D_f.
    """

    generator: USRDAGenerator
    discriminators: nn.ModuleDict
    optimizer_g: Optimizer
    optimizer_d: Optimizer
    weights: LossWeights
    perceptual: float
    adversarial: float
    features: FeatureLoss | None = None
    detach_source: bool = False
    halve: bool = False
    real_twice: bool = False
    precision: torch.dtype | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every loss that a step may give."""
        return (*vars(self.weights), "d_f", "d_t", "d_y")

    @property
    def statistics(self) -> tuple[str, ...]:
        """What it may tell besides."""
        return ("scale_t", "scale_s", "score_t", "score_s")

    def __call__(self, batch: Batch) -> Losses:
        # Ahead of the forward pass: it is there that memory is short.
        self.optimizer_d.zero_grad()
        self.optimizer_g.zero_grad()
        device = batch["hr"].device
        # One estimate of every spectral norm for all that a discriminator sees in a step.
        with torch.autocast(device.type, self.precision, enabled=self.precision is not None), cached():
            loss_g, loss_d, terms = self.forward(batch)
        if loss_d.requires_grad:  # paired training without L_align and L_sty has no discriminator
            loss_d.backward(inputs=list(self.discriminators.parameters()), retain_graph=True)
        loss_g.backward(inputs=list(self.generator.parameters()))
        for network, optimizer in ((self.discriminators, self.optimizer_d), (self.generator, self.optimizer_g)):
            distributed.average_gradients(network.parameters())
            optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Losses]:
        """Eq. 9, the discriminators' losses, and all terms before their weights."""
        g, d, w = self.generator, self.discriminators, self.weights
        x_s, x_t, y_s = batch["source_lr"], batch["real_lr"], batch["hr"]
        restyle = w.sty or w.idt or w.cyc

        f = _in_one_call(g.encoder, {"s": (x_s,), "t": (x_t,) if w.align or w.res else None})
        x = _in_one_call(
            g.to_target, {"tt": (f["t"], x_t) if w.res else None, "st": (f["s"], x_s) if restyle else None}
        )
        if w.idt or w.cyc:
            f["st"] = g.encoder(x["st"])
        y = _in_one_call(g.super_resolve, {"rec": (f["s"], x_s), "cyc": (f["st"], x["st"]) if w.cyc else None})

        told = {f"scale_{domain}": widen(f[domain].detach()).abs().mean() for domain in "ts" if domain in f}
        terms = {name: losses.l1_loss(image, y_s) for name, image in y.items()}
        players = {}
        if self.features is not None:
            for name, distance in zip(y, self.features.each(list(y.values()), y_s), strict=True):
                terms[name] = terms[name] + self.perceptual * distance
        if self.adversarial:
            scores = [d["y"](image) for image in y.values()]
            for name, score in zip(y, scores, strict=True):
                terms[name] = terms[name] + self.adversarial * losses.style_loss(score)
            real = [d["y"](y_s)] * (len(scores) if self.real_twice else 1)
            players["d_y"] = losses.style_discriminator_loss(real, scores)
        if w.align:
            score_t, score_s = d["f"](f["t"]), d["f"](f["s"])
            terms["align"] = losses.alignment_loss(score_t, score_s)
            players["d_f"] = losses.alignment_discriminator_loss(score_t, score_s)
            told |= {"score_t": widen(score_t).mean(), "score_s": widen(score_s).mean()}
        if w.res:
            terms["res"] = losses.l1_loss(x["tt"], x_t)
        if w.sty:
            score_st = d["t"](x["st"])
            terms["sty"] = losses.style_loss(score_st)
            players["d_t"] = losses.style_discriminator_loss([d["t"](x_t)], [score_st])
        if w.idt:
            terms["idt"] = losses.l1_loss(f["st"], f["s"].detach() if self.detach_source else f["s"])
        loss_g = torch.stack([getattr(w, name) * term for name, term in terms.items()]).sum()
        loss_d = torch.stack([loss_g.new_zeros(()), *players.values()]).sum()
        return loss_g, 0.5 * loss_d if self.halve else loss_d, {**terms, **players, **told}


def _in_one_call(function: Callable[..., Tensor], wanted: Mapping[str, tuple[Tensor, ...] | None]) -> dict[str, Tensor]:
    """What a network makes of several inputs, by name, and of none that is not wanted."""
    given = {name: inputs for name, inputs in wanted.items() if inputs is not None}
    if not given:
        return {}
    made = function(*(torch.cat(parts) for parts in zip(*given.values(), strict=True)))
    return dict(zip(given, made.chunk(len(given)), strict=True))
