"""DASR's two training steps.

Wei, Gu, Li, Timofte, Jin, Song: "Unsupervised Real-world Image Super Resolution via Domain-distance Aware Training".
Real LR pictures y_r are the target domain, LR pictures y_g that the down-sampling network makes the source domain, x_r
are HR pictures. H(.) is the discriminators' view of a picture, its high Haar bands by default.

Both steps differentiate two losses from one forward pass, each with respect to its own player's weights alone: no
weight gradient of D is computed for G's loss, and D's loss does not travel back through G. Both players are judged as
they were before the step, as in the published code. Nothing in a step waits for the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached
from torch.optim import Optimizer

from models.dasr import losses
from models.data.resize import bicubic
from models.networks.frequency import FrequencyFilter
from models.train import distributed
from models.train.losses import GANLoss

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Players:
    """A generator and its discriminator, each with its optimiser; `view` is H(.), `precision` that of autocast."""

    generator: nn.Module
    discriminator: nn.Module
    optimizer_g: Optimizer
    optimizer_d: Optimizer
    view: FrequencyFilter
    gan: GANLoss
    precision: torch.dtype | None = None

    def autocast(self) -> torch.autocast:
        """The context that forward passes run in: autocast to `precision`, or none."""
        device = next(self.generator.parameters()).device
        return torch.autocast(device.type, self.precision, enabled=self.precision is not None)

    def update(self, loss_g: Tensor, loss_d: Tensor | None) -> None:
        """Steps G, and D where it has a loss, from one shared forward pass."""
        if loss_d is not None:
            self.optimizer_d.zero_grad()
            loss_d.backward(inputs=_trainable(self.discriminator), retain_graph=True)
        self.optimizer_g.zero_grad()
        loss_g.backward(inputs=_trainable(self.generator))
        if loss_d is not None:
            distributed.average_gradients(self.discriminator.parameters())
            self.optimizer_d.step()
        distributed.average_gradients(self.generator.parameters())
        self.optimizer_g.step()


class Step(ABC):
    """What both steps do with their losses; `players` and the two forward passes are theirs."""

    players: Players

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, Losses]:
        """L_G, and its terms before their weights together with L_D."""

    @abstractmethod
    def forward_content(self, batch: Batch) -> Tensor:
        """The content loss alone, (weighted and) in the source domain."""

    def __call__(self, batch: Batch) -> Losses:
        """One update of both players; gives the terms before their weights, detached."""
        # One estimate of every spectral norm for all that the discriminator sees in a step.
        with self.players.autocast(), cached():
            loss_g, terms = self.forward(batch)
        self.players.update(loss_g, terms["discriminator"])
        return {name: term.detach() for name, term in terms.items()}

    def pretrain(self, batch: Batch) -> Losses:
        """One update of the generator with the content loss alone."""
        with self.players.autocast():
            content = self.forward_content(batch)
        self.players.update(content, None)
        return {"content": content.detach()}


@dataclass(frozen=True)
class DSNStep(Step):
    """Trains the down-sampling network, Eqs. 1 to 4. The batch holds `hr` (N, 3, sh, sw) and `real_lr` (N, 3, h, w).

    Attributes:
        content, perceptual, adversarial: alpha, beta and gamma of Eq. 4.
        features: phi; None drops the perceptual term.
        low: low-pass in front of the content loss; None compares RGB as the paper does.
        bicubic_input: G is fed the bicubic LR picture instead of the HR picture (Table 1, first row).
    """

    players: Players
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
        bicubic_lr = bicubic(hr, 1 / self.scale).clamp(0, 1)
        return generator(bicubic_lr if self.bicubic_input else hr), bicubic_lr

    def forward_content(self, batch: Batch) -> Tensor:
        return losses.content_loss(*self.generate(self.players.generator, batch["hr"]), self.low)

    def forward(self, batch: Batch) -> tuple[Tensor, Losses]:
        d, view, gan = self.players.discriminator, self.players.view, self.players.gan
        fake_lr, bicubic_lr = self.generate(self.players.generator, batch["hr"])
        fake_logits, real_logits = d(view(fake_lr)), d(view(batch["real_lr"]))

        terms = {
            "content": losses.content_loss(fake_lr, bicubic_lr, self.low),
            "adversarial": gan.generator(fake_logits, real_logits),
        }
        loss_g = self.content * terms["content"] + self.adversarial * terms["adversarial"]
        if self.features is not None:
            terms["perceptual"] = losses.perceptual_loss(fake_lr, bicubic_lr, self.features)
            loss_g = loss_g + self.perceptual * terms["perceptual"]
        terms["discriminator"] = gan.discriminator(real_logits, fake_logits)
        return loss_g, terms


@dataclass(frozen=True)
class SRNStep(Step):
    """Trains the SR network, Eqs. 5 and 6.

    The batch holds generated `fake_lr` (N, 3, h, w) and its `hr` (N, 3, sh, sw), the map `weight` (N, 1, h', w') of any
    size, `real_lr` (N, 3, h, w) and unrelated `other_hr` (N, 3, sh, sw).

    Attributes:
        content, perceptual, adversarial: alpha, beta and gamma of Eq. 6.
        low_band: weight of the LL loss of the published code; `low` gives LL.
        features: phi; None drops the perceptual term.
        weigh_features: whether the map weighs the perceptual term too (Eq. 5; not in the published code).
        domain_gap: adversarial loss on SR pictures of real LR against unrelated HR (domain-gap aware training);
            without it on those of generated LR against their own HR, and real LR is not used.
        distance: computes the map from `fake_lr` on the fly; None takes it from the batch, where a missing one means
            no weighting.
    """

    players: Players
    content: float
    perceptual: float
    adversarial: float
    low_band: float = 0.0
    features: losses.Perceptual | None = None
    weigh_features: bool = True
    low: losses.LowPass | None = None
    domain_gap: bool = True
    distance: Callable[[Tensor], Tensor] | None = None

    names = ("content", "perceptual", "low_band", "adversarial", "discriminator")

    def weight(self, batch: Batch) -> Tensor | None:
        """The domain-distance map of the batch; it never carries a gradient."""
        if self.distance is None:
            return batch.get("weight")
        with torch.no_grad():
            return self.distance(batch["fake_lr"])

    def forward_content(self, batch: Batch) -> Tensor:
        sr = self.players.generator(batch["fake_lr"])
        return losses.weighted_content_loss(sr, batch["hr"], self.weight(batch))

    def forward(self, batch: Batch) -> tuple[Tensor, Losses]:
        d, view, gan = self.players.discriminator, self.players.view, self.players.gan
        fake_lr, hr = batch["fake_lr"], batch["hr"]
        if self.domain_gap:
            sr, judged = self.players.generator(torch.cat((fake_lr, batch["real_lr"]))).chunk(2)
            real = batch["other_hr"]
        else:
            sr = judged = self.players.generator(fake_lr)
            real = hr
        fake_logits, real_logits = d(view(judged)), d(view(real))
        weight = self.weight(batch)

        terms = {
            "content": losses.weighted_content_loss(sr, hr, weight),
            "adversarial": gan.generator(fake_logits, real_logits),
        }
        loss_g = self.content * terms["content"] + self.adversarial * terms["adversarial"]
        if self.features is not None:
            on_features = weight if self.weigh_features else None
            terms["perceptual"] = losses.weighted_perceptual_loss(sr, hr, on_features, self.features)
            loss_g = loss_g + self.perceptual * terms["perceptual"]
        if self.low is not None:
            terms["low_band"] = losses.low_band_loss(sr, hr, self.low)
            loss_g = loss_g + self.low_band * terms["low_band"]
        terms["discriminator"] = gan.discriminator(real_logits, fake_logits)
        return loss_g, terms


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
