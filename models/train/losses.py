"""Losses that the methods share: adversarial on patch logits, perceptual on frozen features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import srkernels
from models.config import Bound
from models.data import InputError

# Patches on which a perceptual loss's scale is measured.
SCALE_PATCHES = 16

GANForm = Literal["nonsaturating", "saturating", "least_squares", "relativistic"]


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Options of a perceptual loss that brings its layers to one scale."""

    scaled: bool = False
    """Each layer's loss is divided by the layer's mean activation, so that all layers count alike (ours)."""
    means: tuple[Annotated[float, Bound(0, 10**6, above=True)], ...] | None = None
    """Those means, one a layer, in place of what is measured on the first 16 patches of the training."""

    def check_scale(self, option: str, layers: Sequence[str]) -> None:
        """Raises InputError naming the option if the means are not those of the layers."""
        if self.means is not None and not self.scaled:
            raise InputError(f"{option}.means is used with {option}.scaled alone")
        if self.means is not None and len(self.means) != len(layers):
            raise InputError(f"{option}.means must be one for each of {', '.join(layers)}, got {self.means}")

    def means_of(self, layers: Sequence[str]) -> dict[str, float]:
        """The means that are given, by layer."""
        return {} if self.means is None else dict(zip(layers, self.means, strict=True))


@dataclass(frozen=True)
class GANLoss:
    """Adversarial losses from raw logits of any shape (N, 1, h, w); label 1 is the domain the generator should reach.

    With p = sigmoid(logits), means over all places:

    | form | generator | discriminator |
    |---|---|---|
    | nonsaturating | -log p(fake) | -log p(real) - log(1 - p(fake)) |
    | saturating (as DASR prints it, Eqs. 2 and 3) | log(1 - p(fake)) | the same |
    | least_squares (LSGAN) | (fake - 1)^2 | (real - 1)^2 + fake^2 |
    | relativistic (ESRGAN) | the same, roles exchanged | -log p(real - m(fake)) - log(1 - p(fake - m(real))) |

    m is the mean over the batch (dimension 0), so the two batches must agree in the other dimensions; with several
    ranks it is the mean of a rank's own share. `halve` multiplies the discriminator's loss, and the relativistic
    generator's, by 1/2 (DASR's code for the SR network).
    """

    form: GANForm = "nonsaturating"
    halve: bool = False

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """The generator's loss, a scalar. The relativistic form alone reads `real`; ValueError if it is missing."""
        fake = widen(fake)
        if self.form == "nonsaturating":
            return F.softplus(-fake).mean()
        if self.form == "saturating":
            return -F.softplus(fake).mean()
        if self.form == "least_squares":
            return squared_distance(fake, 1.0)
        if real is None:
            raise ValueError("GANLoss: the relativistic form compares with the logits of real samples")
        return self._relativistic(fake, widen(real))

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's loss, a scalar."""
        real, fake = widen(real), widen(fake)
        if self.form == "relativistic":
            return self._relativistic(real, fake)
        if self.form == "least_squares":
            loss = squared_distance(real, 1.0) + squared_distance(fake, 0.0)
        else:
            loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        return 0.5 * loss if self.halve else loss

    def _relativistic(self, wanted: Tensor, unwanted: Tensor) -> Tensor:
        above = F.softplus(unwanted.mean(0, keepdim=True) - wanted).mean()
        below = F.softplus(unwanted - wanted.mean(0, keepdim=True)).mean()
        return 0.5 * (above + below) if self.halve else above + below


def widen(x: Tensor) -> Tensor:
    """Half precision to fp32, in which losses are computed; fp32 and fp64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def squared_distance(logits: Tensor, target: float) -> Tensor:
    """`mean((logits - target)^2)`, a scalar (least-squares GAN; 0.5 as target is the alignment of USR-DA, Eq. 1)."""
    return (widen(logits) - target).square().mean()


class FeatureLoss(nn.Module):
    """Perceptual loss: mean `|phi(a) - phi(b)|` over all features, optionally weighted place by place.

    Args:
        features: a frozen network that returns its layers by name, as `VGGFeatures` does.
        map_resize: how a weight map reaches a layer's size: `bilinear` inside the loss kernel, or `area`, the mean
            over the pixels that a feature stands for (a bilinear x1/16 reads 2 x 2 of every 16 x 16).
        means: what the loss of a layer is divided by, by the layer's name; 1 without.
    """

    def __init__(
        self,
        features: nn.Module,
        map_resize: Literal["bilinear", "area"] = "bilinear",
        means: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.features, self._map_resize = features, map_resize
        self.means = dict(means or {})

    @torch.no_grad()
    def measure(self, images: Tensor) -> dict[str, float]:
        """Takes the mean `|phi|` of each layer over these images (N, 3, H, W) as `means`, and returns them."""
        found = [{name: widen(f).abs().mean() for name, f in self.features(x).items()} for x in images.split(1)]
        self.means = {name: float(torch.stack([each[name] for each in found]).mean()) for name in found[0]}
        return self.means

    def forward(self, image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """A scalar; images are (N, 3, H, W), `weight` (N, 1, h, w) of any size. No gradient goes to `target`."""
        (loss,) = self.each([image], target, weight)
        return loss

    def each(self, images: Sequence[Tensor], target: Tensor, weight: Tensor | None = None) -> list[Tensor]:
        """The loss of several images against one target, whose features are computed once."""
        with torch.no_grad():
            wanted = self.features(target)
        totals = [target.new_zeros((), dtype=torch.float32) for _ in images]
        for name, found in self.features(torch.cat(list(images))).items():
            resized = weight
            if weight is not None and self._map_resize == "area":
                resized = F.adaptive_avg_pool2d(weight, found.shape[-2:])
            for index, part in enumerate(found.chunk(len(images))):
                loss = srkernels.weighted_l1_loss(part, wanted[name], resized)
                totals[index] = totals[index] + (loss / self.means[name] if name in self.means else loss)
        return totals


def settle_scale(
    loss: nn.Module | None, options: ScaleConfig, compared: Callable[[], Tensor], say: Callable[[str], None]
) -> None:
    """Measures a perceptual loss's `means` where the options ask for them and give none; `compared` gives images.

    The same patches come at every start and on every rank, so that a resumed run goes on with the same means.
    """
    if options.scaled and options.means is None and isinstance(loss, FeatureLoss):
        means = ", ".join(f"{name} {mean:.4g}" for name, mean in loss.measure(compared()).items())
        say(f"  the perceptual loss is divided by the mean activation of {means}")


class DistanceLoss(nn.Module):
    """Perceptual loss from a metric `distance(a, b) -> (N,)`, as LPIPS is: its mean. It takes no weight map."""

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._distance = distance

    def forward(self, image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """A scalar; images are (N, 3, H, W). Raises ValueError for a weight."""
        if weight is not None:
            raise ValueError("DistanceLoss: a distance of whole images cannot be weighted place by place")
        return self._distance(image, target).mean()
