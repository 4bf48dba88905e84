"""DASR's two training steps and the stage between them.

Wei, Gu, Li, Timofte, Jin, Song: "Unsupervised Real-world Image Super Resolution via Domain-distance Aware Training".
Real LR pictures are the target domain; LR pictures that the down-sampling network makes are the source domain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import srkernels
from models.losses import discriminator_gan_loss, generator_gan_loss
from models.resize import bicubic

MAP_BOX = 17
MAP_MARGIN = 16


def haar_bands(x: Tensor) -> Tensor:
    """H(x), what both discriminators look at: (N, 3, h, w) to the nine high bands (N, 9, h/2, w/2) in [0, 1]."""
    return srkernels.haar_highpass(x, convention="dasr")


def low_pass(x: Tensor) -> Tensor:
    """Means of 5 x 5 pixels, no padding: (N, C, h, w) to (N, C, h - 4, w - 4) (`avg_pool` in the published code)."""
    return F.avg_pool2d(x, 5, stride=1)


@dataclass
class DSNStep:
    """Stage 1: trains the down-sampling network G against the discriminator D of real LR pictures.

        y   = G(x)
        L_G = content * |low(y) - low(B(x))|_1 + adversarial * mean(-log D(H(y)))
        L_D = (mean(-log D(H(y_real))) + mean(-log(1 - D(H(y))))) / 2

    B is bicubic x1/4 and |.|_1 a mean. The content loss compares what a 5 x 5 mean leaves (the published code; the
    paper compares RGB), so that blur and noise of the target domain are left to D.
    """

    generator: nn.Module
    discriminator: nn.Module
    optimizer_g: Optimizer
    optimizer_d: Optimizer
    content: float
    adversarial: float

    @property
    def optimizers(self) -> tuple[Optimizer, Optimizer]:
        return self.optimizer_g, self.optimizer_d

    def __call__(self, hr: Tensor, real_lr: Tensor) -> dict[str, Tensor]:
        """One update from `hr` (N, 3, 4h, 4w) and unpaired `real_lr` (N, 3, h, w); gives the losses, detached."""
        fake_lr = self.generator(hr)
        fake_logits = self.discriminator(haar_bands(fake_lr))
        real_logits = self.discriminator(haar_bands(real_lr))

        content = F.l1_loss(low_pass(fake_lr), low_pass(bicubic(hr, 0.25)))
        adversarial = generator_gan_loss(fake_logits)
        loss_g = self.content * content + self.adversarial * adversarial
        loss_d = discriminator_gan_loss(real_logits, fake_logits)

        update_together(self.generator, self.optimizer_g, loss_g, self.discriminator, self.optimizer_d, loss_d)
        return {"content": content.detach(), "adversarial": adversarial.detach(), "discriminator": loss_d.detach()}


@torch.no_grad()
def generate_lr_and_map(dsn: nn.Module, discriminator: nn.Module, hr: Tensor) -> tuple[Tensor, Tensor]:
    """Stage 2, for whole pictures: the LR picture and its domain-distance map.

    `hr` is (N, 3, H, W) with H and W divisible by 8. The LR picture (N, 3, H/4, W/4) is rounded to 8 bits, as a real
    one is. The map (N, 1, H/8, W/8) is D's probability that a place looks like the target domain, seen on the picture
    before rounding and averaged over 17 x 17 positions (the published code's overlap average over receptive fields).

    Unlike the published code, D sees the picture continued by reflection: the zero padding of its convs would make a
    frame of odd scores, which on small pictures covers a good part of the map. LR sides must exceed 16 pixels.
    """
    fake_lr = dsn(hr)
    continued = F.pad(fake_lr, (MAP_MARGIN,) * 4, mode="reflect")
    margin = MAP_MARGIN // 2
    scores = discriminator(haar_bands(continued)).sigmoid()[..., margin:-margin, margin:-margin]
    distance_map = F.avg_pool2d(scores, MAP_BOX, stride=1, padding=MAP_BOX // 2, count_include_pad=False)
    return (fake_lr.clamp(0, 1) * 255).round() / 255, distance_map


@dataclass
class SRNStep:
    """Stage 3: trains the SR network S with domain-gap aware losses.

        L_S = pixel * mean(w * |S(y) - x|) + adversarial * mean(-log D(H(S(y_real))))
        L_D = (mean(-log D(H(x_other))) + mean(-log(1 - D(H(S(y_real)))))) / 2

    The pair (y, x) is generated LR and its HR with the map w; y_real is real LR and x_other an unrelated HR picture.
    """

    generator: nn.Module
    discriminator: nn.Module
    optimizer_g: Optimizer
    optimizer_d: Optimizer
    pixel: float
    adversarial: float

    @property
    def optimizers(self) -> tuple[Optimizer, Optimizer]:
        return self.optimizer_g, self.optimizer_d

    def __call__(
        self, fake_lr: Tensor, hr: Tensor, distance_map: Tensor, real_lr: Tensor, other_hr: Tensor
    ) -> dict[str, Tensor]:
        """One update; gives the losses, detached.

        LR inputs are (N, 3, h, w), HR inputs (N, 3, 4h, 4w), the map (N, 1, h/2, w/2); the loss resizes it itself.
        """
        sr, real_sr = self.generator(torch.cat((fake_lr, real_lr))).chunk(2)
        fake_logits = self.discriminator(haar_bands(real_sr))
        real_logits = self.discriminator(haar_bands(other_hr))

        pixel = srkernels.weighted_l1_loss(sr, hr, distance_map)
        adversarial = generator_gan_loss(fake_logits)
        loss_g = self.pixel * pixel + self.adversarial * adversarial
        loss_d = discriminator_gan_loss(real_logits, fake_logits)

        update_together(self.generator, self.optimizer_g, loss_g, self.discriminator, self.optimizer_d, loss_d)
        return {"pixel": pixel.detach(), "adversarial": adversarial.detach(), "discriminator": loss_d.detach()}


def update_together(
    generator: nn.Module,
    optimizer_g: Optimizer,
    loss_g: Tensor,
    discriminator: nn.Module,
    optimizer_d: Optimizer,
    loss_d: Tensor,
) -> None:
    """Steps both players from one shared forward pass.

    Each loss is differentiated with respect to its own player alone: no weight gradient of D is computed for G's
    loss, and D's loss does not travel back through G.
    """
    optimizer_g.zero_grad(set_to_none=True)
    optimizer_d.zero_grad(set_to_none=True)
    loss_d.backward(inputs=_trainable(discriminator.parameters()), retain_graph=True)
    loss_g.backward(inputs=_trainable(generator.parameters()))
    optimizer_d.step()
    optimizer_g.step()


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]
