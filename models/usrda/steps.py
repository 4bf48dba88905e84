"""USR-DA's training step.

Wang, Zhang, Yuan, Wang: "Unsupervised Real-World Super-Resolution: A Domain Adaptation Perspective". x_s are LR
pictures synthesised from HR pictures y_s, x_t real LR pictures. With features f = E(x), tensors have the paper's names:

    x_tt = G_t(f_t)    x_st = G_t(f_s)    f_st = E(x_st)    y_ss = G_SR(f_s)    y_sts = G_SR(f_st)

Each is computed once, and each pair of G_t, of G_SR, and of E on the batch in one call. How the two losses update
generator and discriminators: `models.train.players`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from models.config import Bound, Weight
from models.train.losses import FeatureLoss, widen
from models.train.players import Batch, Losses, Players, Step
from models.usrda import losses


@dataclass(frozen=True)
class LossWeights:
    """The weights of Eq. 9. What only terms of weight 0 need is not computed (Table 3)."""

    align: Weight = 0.01
    """L_align, Eq. 1."""
    rec: Annotated[float, Bound(0, 10**6, above=True)] = 1.0
    """L_rec, Eq. 3; without it nothing trains the SR network."""
    res: Weight = 1.0
    """L_res, Eq. 4."""
    sty: Weight = 0.01
    """L_sty, Eq. 5."""
    idt: Weight = 0.01
    """L_idt, Eq. 7."""
    cyc: Weight = 1.0
    """L_cyc, Eq. 8."""


@dataclass(frozen=True)
class USRDAStep(Step):
    """One update of E, G_t and G_SR by Eq. 9, and of D_f, D_t and D_y by Eqs. 2 and 6.

    The batch holds `source_lr` x_s (N, 3, h, w), its `hr` y_s (N, 3, sh, sw) and `real_lr` x_t (N, 3, h, w).

    Attributes:
        players: a `USRDAGenerator`, and the discriminators `f`, `t` and `y` in a ModuleDict.
        perceptual, adversarial: alpha and beta of Eqs. 3 and 8; without beta there is no D_y.
        features: phi; None drops the perceptual part.
        detach_source: f_s is constant in Eq. 7 (ours; the paper prints it trainable).
        halve, real_twice: half the discriminators' losses; the real term of D_y once for each fake (unofficial code).

    A step returns the terms of Eq. 9 and the discriminators' before their weights, and what tells whether
    the alignment holds: `scale_t` and `scale_s`, mean |f| of either domain, `score_t` and `score_s`, mean D_f.
    """

    players: Players
    weights: LossWeights
    perceptual: float
    adversarial: float
    features: FeatureLoss | None = None
    detach_source: bool = False
    halve: bool = False
    real_twice: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Every loss that a step may return."""
        return (*vars(self.weights), "d_f", "d_t", "d_y")

    @property
    def statistics(self) -> tuple[str, ...]:
        """What it may return besides."""
        return ("scale_t", "scale_s", "score_t", "score_s")

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Losses]:
        """Eq. 9, the discriminators' losses, and all terms before their weights."""
        g, d, w = self.players.generator, self.players.discriminator, self.weights
        x_s, x_t, y_s = batch["source_lr"], batch["real_lr"], batch["hr"]

        f_s, f_t = _in_one_call(g.encoder, (x_s,), (x_t,) if w.align or w.res else None)
        x_tt, x_st = _in_one_call(
            g.to_target, (f_t, x_t) if w.res else None, (f_s, x_s) if w.sty or w.idt or w.cyc else None
        )
        f_st = g.encoder(x_st) if w.idt or w.cyc else None
        y_ss, y_sts = _in_one_call(g.super_resolve, (f_s, x_s), (f_st, x_st) if w.cyc else None)

        scales = {"scale_t": f_t, "scale_s": f_s}
        told = {name: widen(f.detach()).abs().mean() for name, f in scales.items() if f is not None}
        made = {"rec": y_ss} if y_sts is None else {"rec": y_ss, "cyc": y_sts}  # Eqs. 3 and 8
        terms = {name: losses.l1_loss(y, y_s) for name, y in made.items()}
        of_discriminators = {}
        if self.features is not None:
            for name, distance in zip(made, self.features.each(list(made.values()), y_s), strict=True):
                terms[name] = terms[name] + self.perceptual * distance
        if self.adversarial:
            scores = [d["y"](y) for y in made.values()]
            for name, score in zip(made, scores, strict=True):
                terms[name] = terms[name] + self.adversarial * losses.style_loss(score)
            real = [d["y"](y_s)] * (len(scores) if self.real_twice else 1)
            of_discriminators["d_y"] = losses.style_discriminator_loss(real, scores)
        if w.align:
            score_t, score_s = d["f"](f_t), d["f"](f_s)
            terms["align"] = losses.alignment_loss(score_t, score_s)
            of_discriminators["d_f"] = losses.alignment_discriminator_loss(score_t, score_s)
            told |= {"score_t": widen(score_t).mean(), "score_s": widen(score_s).mean()}
        if w.res:
            terms["res"] = losses.l1_loss(x_tt, x_t)
        if w.sty:
            score_st = d["t"](x_st)
            terms["sty"] = losses.style_loss(score_st)
            of_discriminators["d_t"] = losses.style_discriminator_loss([d["t"](x_t)], [score_st])
        if w.idt:
            terms["idt"] = losses.l1_loss(f_st, f_s.detach() if self.detach_source else f_s)
        loss_g = torch.stack([getattr(w, name) * term for name, term in terms.items()]).sum()
        loss_d = torch.stack([loss_g.new_zeros(()), *of_discriminators.values()]).sum()
        return loss_g, 0.5 * loss_d if self.halve else loss_d, {**terms, **of_discriminators, **told}


def _in_one_call(network: Callable[..., Tensor], *inputs: tuple[Tensor, ...] | None) -> tuple[Tensor | None, ...]:
    """The network's output for each of several inputs, None for one that is None."""
    given = [each for each in inputs if each is not None]
    if not given:
        return (None,) * len(inputs)
    outputs = iter(network(*(torch.cat(parts) for parts in zip(*given, strict=True))).chunk(len(given)))
    return tuple(None if each is None else next(outputs) for each in inputs)
