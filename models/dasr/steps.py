"""DASR's two training steps.

Wei, Gu, Li, Timofte, Jin, Song: "Unsupervised Real-world Image Super Resolution via Domain-distance Aware Training".
Real LR pictures y_r are the target domain, LR pictures y_g that the down-sampling network makes the source domain, x_r
are HR pictures. H(.) is the discriminators' view of a picture, its high Haar bands by default.

A step runs the generator once for both domains; how its two losses update the two players: `models.train.players`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.dasr import losses
from models.dasr.config import MapWeights
from models.dasr.maps import weights_of
from models.data.resize import bicubic
from models.networks.frequency import FrequencyFilter
from models.train.losses import GANLoss
from models.train.players import Batch, Losses, Players, Step


class PretrainedStep(Step):
    """A step whose generator can be trained with the content loss alone first."""

    @abstractmethod
    def forward_content(self, batch: Batch) -> Tensor:
        """The content loss alone, (weighted and) in the source domain."""

    @abstractmethod
    def compared(self, batch: Batch) -> Tensor:
        """What the generator's pictures are compared with."""

    def pretrain(self, batch: Batch) -> Losses:
        """One update of the generator with the content loss alone."""

        def forward() -> tuple[Tensor, None, Losses]:
            content = self.forward_content(batch)
            return content, None, {"content": content}

        return self.players.update(forward)


@dataclass(frozen=True)
class DSNStep(PretrainedStep):
    """Trains the down-sampling network, Eqs. 1 to 4.

    The batch holds `hr` x_r (N, 3, sh, sw) and `real_lr` y_r (N, 3, h, w).

    Attributes:
        view: H(.), what the discriminator sees of a picture.
        content, perceptual, adversarial: alpha, beta and gamma of Eq. 4.
        features: phi; None drops the perceptual term.
        low: low-pass in front of the content loss; None compares RGB as the paper does.
        bicubic_input: G is fed the bicubic LR picture instead of the HR picture (Table 1, first row).
    """

    players: Players
    view: FrequencyFilter
    gan: GANLoss
    scale: int
    content: float
    perceptual: float
    adversarial: float
    features: losses.Perceptual | None = None
    low: losses.LowPass | None = None
    bicubic_input: bool = False

    names = ("content", "perceptual", "adversarial", "discriminator")

    def generate(self, generator: nn.Module, hr: Tensor) -> tuple[Tensor, Tensor]:
        """y_g = DSN(x_r) and the bicubic picture y_b."""
        y_b = self.bicubic(hr)
        return generator(y_b if self.bicubic_input else hr), y_b

    def compared(self, batch: Batch) -> Tensor:
        return self.bicubic(batch["hr"])

    def bicubic(self, hr: Tensor) -> Tensor:
        return bicubic(hr, 1 / self.scale).clamp(0, 1)

    def forward_content(self, batch: Batch) -> Tensor:
        return losses.content_loss(*self.generate(self.players.generator, batch["hr"]), self.low)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Losses]:
        d, view, gan = self.players.discriminator, self.view, self.gan
        y_r = batch["real_lr"]
        y_g, y_b = self.generate(self.players.generator, batch["hr"])
        score_g, score_r = d(view(y_g)), d(view(y_r))

        terms = {
            "content": losses.content_loss(y_g, y_b, self.low),
            "adversarial": gan.generator(score_g, score_r),
        }
        loss_g = self.content * terms["content"] + self.adversarial * terms["adversarial"]
        if self.features is not None:
            terms["perceptual"] = losses.perceptual_loss(y_g, y_b, self.features)
            loss_g = loss_g + self.perceptual * terms["perceptual"]
        terms["discriminator"] = gan.discriminator(score_r, score_g)
        return loss_g, terms["discriminator"], terms


@dataclass(frozen=True)
class SRNStep(PretrainedStep):
    """Trains the SR network, Eqs. 5 and 6.

    The batch holds generated `fake_lr` y_g (N, 3, h, w) and its `hr` x_r (N, 3, sh, sw), the map `weight` w
    (N, 1, h', w') of any size, `real_lr` y_r (N, 3, h, w) and unrelated `other_hr` (N, 3, sh, sw).

    Attributes:
        view: H(.), what the discriminator sees of a picture.
        content, perceptual, adversarial: alpha, beta and gamma of Eq. 6.
        low_band: weight of the LL loss of the published code; `low` gives LL.
        features: phi; None drops the perceptual term.
        weigh_features: whether the map weighs the perceptual term too (Eq. 5; not in the published code).
        domain_gap: adversarial loss on SR pictures of real LR against unrelated HR (domain-gap aware training);
            without it on those of generated LR against their own HR, and real LR is not used.
        distance: computes the map from `fake_lr` on the fly; None takes it from the batch, where a missing one means
            no weighting.
        map_weights, map_cap: what is made of the map (`models.dasr.maps.weights_of`).
    """

    players: Players
    view: FrequencyFilter
    gan: GANLoss
    content: float
    perceptual: float
    adversarial: float
    low_band: float = 0.0
    features: losses.Perceptual | None = None
    weigh_features: bool = True
    low: losses.LowPass | None = None
    domain_gap: bool = True
    distance: Callable[[Tensor], Tensor] | None = None
    map_weights: MapWeights = "map"
    map_cap: float = 2.0

    names = ("content", "perceptual", "low_band", "adversarial", "discriminator")

    def weight(self, batch: Batch) -> Tensor | None:
        """What weighs the losses, from the domain-distance map of the batch; it never carries a gradient."""
        with torch.no_grad():
            maps = batch.get("weight") if self.distance is None else self.distance(batch["fake_lr"])
            return None if maps is None else weights_of(maps, self.map_weights, self.map_cap)

    def compared(self, batch: Batch) -> Tensor:
        return batch["hr"]

    def forward_content(self, batch: Batch) -> Tensor:
        sr = self.players.generator(batch["fake_lr"])
        return losses.weighted_content_loss(sr, batch["hr"], self.weight(batch))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Losses]:
        d, view, gan, srn = self.players.discriminator, self.view, self.gan, self.players.generator
        y_g, x_r = batch["fake_lr"], batch["hr"]
        if self.domain_gap:
            sr, judged = srn(torch.cat((y_g, batch["real_lr"]))).chunk(2)
            real = batch["other_hr"]
        else:
            sr = judged = srn(y_g)
            real = x_r
        score_fake, score_real = d(view(judged)), d(view(real))
        w = self.weight(batch)

        terms = {
            "content": losses.weighted_content_loss(sr, x_r, w),
            "adversarial": gan.generator(score_fake, score_real),
        }
        loss_g = self.content * terms["content"] + self.adversarial * terms["adversarial"]
        if self.features is not None:
            on_features = w if self.weigh_features else None
            terms["perceptual"] = losses.weighted_perceptual_loss(sr, x_r, on_features, self.features)
            loss_g = loss_g + self.perceptual * terms["perceptual"]
        if self.low is not None:
            terms["low_band"] = losses.low_band_loss(sr, x_r, self.low)
            loss_g = loss_g + self.low_band * terms["low_band"]
        terms["discriminator"] = gan.discriminator(score_real, score_fake)
        return loss_g, terms["discriminator"], terms
