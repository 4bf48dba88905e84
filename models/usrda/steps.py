"""USR-DA's training step.

Wang, Zhang, Yuan, Wang: "Unsupervised Real-World Super-Resolution: A Domain Adaptation Perspective". x_s are LR
pictures synthesised from HR pictures y_s, x_t real LR pictures. With features f = E(x), tensors have the paper's names:

    x_tt = G_t(f_t)    x_st = G_t(f_s)    f_st = E(x_st)    y_ss = G_SR(f_s)    y_sts = G_SR(f_st)

Each is computed once, and each pair of G_t, of G_SR, and of E on the batch in one call. How the two losses update
generator and discriminators: `models.train.players`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

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


class Made(NamedTuple):
    """Tensors of a step under the paper's names; None is one that only terms of weight 0 need."""

    x_t: Tensor
    y_s: Tensor
    f_t: Tensor | None
    f_s: Tensor
    f_st: Tensor | None
    x_tt: Tensor | None
    x_st: Tensor | None
    images: Mapping[str, Tensor]
    """y_ss and y_sts, by the terms that compare them with y_s: `rec` (Eq. 3) and `cyc` (Eq. 8)."""


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
        discriminator_first: the discriminators are updated before they judge the generator (unofficial code).

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
    discriminator_first: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Every loss that a step may return."""
        return (*vars(self.weights), "d_f", "d_t", "d_y")

    @property
    def statistics(self) -> tuple[str, ...]:
        """What it may return besides."""
        return ("scale_t", "scale_s", "score_t", "score_s")

    def __call__(self, batch: Batch) -> Losses:
        if not self.discriminator_first:
            return super().__call__(batch)
        return self.players.update_in_turn(
            lambda: self.make(batch),
            lambda made: self.discriminators_loss(made, self.scores(made)),
            lambda made: self.generator_loss(made, self.scores(made)),
        )

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Losses]:
        """Eq. 9, the discriminators' losses, and all terms before their weights, each player judged as it is."""
        made = self.make(batch)
        scores = self.scores(made)
        loss_g, terms = self.generator_loss(made, scores)
        loss_d, of_discriminators = self.discriminators_loss(made, scores)
        return loss_g, loss_d, {**terms, **of_discriminators}

    def make(self, batch: Batch) -> Made:
        """What the generator makes of a batch."""
        g, w = self.players.generator, self.weights
        x_s, x_t, y_s = batch["source_lr"], batch["real_lr"], batch["hr"]

        f_s, f_t = _in_one_call(g.encoder, (x_s,), (x_t,) if w.align or w.res else None)
        x_tt, x_st = _in_one_call(
            g.to_target, (f_t, x_t) if w.res else None, (f_s, x_s) if w.sty or w.idt or w.cyc else None
        )
        f_st = g.encoder(x_st) if w.idt or w.cyc else None
        y_ss, y_sts = _in_one_call(g.super_resolve, (f_s, x_s), (f_st, x_st) if w.cyc else None)
        images = {"rec": y_ss} if y_sts is None else {"rec": y_ss, "cyc": y_sts}
        return Made(x_t, y_s, f_t, f_s, f_st, x_tt, x_st, images)

    def scores(self, made: Made) -> dict[str, Tensor]:
        """What the discriminators think of it: D_f of `f_t` and `f_s`, D_t of `x_st`, D_y of `rec` and `cyc`."""
        d, w = self.players.discriminator, self.weights
        found = {name: d["y"](y) for name, y in made.images.items()} if self.adversarial else {}
        if w.align:
            found |= {"f_t": d["f"](made.f_t), "f_s": d["f"](made.f_s)}
        if w.sty:
            found["x_st"] = d["t"](made.x_st)
        return found

    def generator_loss(self, made: Made, scores: Mapping[str, Tensor]) -> tuple[Tensor, Losses]:
        """Eq. 9, and its terms."""
        w, images = self.weights, made.images
        terms = {name: losses.l1_loss(y, made.y_s) for name, y in images.items()}  # Eqs. 3 and 8
        if self.features is not None:
            for name, distance in zip(images, self.features.each(list(images.values()), made.y_s), strict=True):
                terms[name] = terms[name] + self.perceptual * distance
        if self.adversarial:
            for name in images:
                terms[name] = terms[name] + self.adversarial * losses.style_loss(scores[name])
        scales = {"scale_t": made.f_t, "scale_s": made.f_s}
        told = {name: widen(f.detach()).abs().mean() for name, f in scales.items() if f is not None}
        if w.align:
            terms["align"] = losses.alignment_loss(scores["f_t"], scores["f_s"])
            told |= {"score_t": widen(scores["f_t"]).mean(), "score_s": widen(scores["f_s"]).mean()}
        if w.res:
            terms["res"] = losses.l1_loss(made.x_tt, made.x_t)
        if w.sty:
            terms["sty"] = losses.style_loss(scores["x_st"])
        if w.idt:
            terms["idt"] = losses.l1_loss(made.f_st, made.f_s.detach() if self.detach_source else made.f_s)
        loss = torch.stack([getattr(w, name) * term for name, term in terms.items()]).sum()
        return loss, {**terms, **told}

    def discriminators_loss(self, made: Made, scores: Mapping[str, Tensor]) -> tuple[Tensor, Losses]:
        """Eqs. 2 and 6 and D_y's, together, and each."""
        d, w, terms = self.players.discriminator, self.weights, {}
        if self.adversarial:
            fakes = [scores[name] for name in made.images]
            real = [d["y"](made.y_s)] * (len(fakes) if self.real_twice else 1)
            terms["d_y"] = losses.style_discriminator_loss(real, fakes)
        if w.align:
            terms["d_f"] = losses.alignment_discriminator_loss(scores["f_t"], scores["f_s"])
        if w.sty:
            terms["d_t"] = losses.style_discriminator_loss([d["t"](made.x_t)], [scores["x_st"]])
        loss = torch.stack([made.y_s.new_zeros(()), *terms.values()]).sum()
        return 0.5 * loss if self.halve else loss, terms


def _in_one_call(network: Callable[..., Tensor], *inputs: tuple[Tensor, ...] | None) -> tuple[Tensor | None, ...]:
    """The network's output for each of several inputs, None for one that is None."""
    given = [each for each in inputs if each is not None]
    if not given:
        return (None,) * len(inputs)
    outputs = iter(network(*(torch.cat(parts) for parts in zip(*given, strict=True))).chunk(len(given)))
    return tuple(None if each is None else next(outputs) for each in inputs)
