"""Every number of a USR-DA run. Presets are YAML files of what differs; the command line is made from these."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from models import config as config_files
from models.config import Batch, Beta, Blocks, Features, Pixels, Rate, Weight, check_bounds, check_crop, preset_names
from models.data import InputError
from models.networks import PatchDiscriminator, VGGDiscriminator
from models.networks.weight_options import PerceptualFiles, check_layers
from models.train import distributed
from models.train.loop import LoopConfig
from models.train.losses import ScaleConfig
from models.train.schedule import ScheduleConfig
from models.usrda.steps import LossWeights
from models.usrda.synthesis import SynthesisConfig

PRESETS = Path(__file__).parent / "presets"

# The terms of Eq. 9 that involve G_t, which rows of Table 3 leave out together.
REGULARISATION = ("res", "sty", "idt", "cyc")


@dataclass(frozen=True)
class DiscriminatorConfig:
    """A discriminator, trained with least squares."""

    kind: Literal["paper", "fsd", "nlayer_s1", "nlayer_s2", "vgg"] = "nlayer_s2"
    """A score for every patch (nlayer_s2 is PatchGAN, paper is DASR's), or vgg: one for a picture of fixed size."""
    norm: Literal["instance", "batch", "spectral", "none"] = "spectral"
    """The unofficial code has batch norm; its statistics are those of a rank's share of the batch."""
    num_feat: Features = 64
    """Features of the first layer."""

    def build(self, in_channels: int, side: int) -> nn.Module:
        """The network for pictures or features of `side` positions. Raises ValueError naming what does not fit."""
        if self.kind == "vgg":
            return VGGDiscriminator(in_channels, side, self.num_feat, norm=self.norm)
        return PatchDiscriminator(in_channels, self.num_feat, kind=self.kind, norm=self.norm)


@dataclass(frozen=True)
class PerceptualConfig(ScaleConfig):
    """L_fea of Eqs. 3 and 8."""

    network: Literal["vgg19", "vgg16", "none"] = "vgg19"
    """vgg19 and vgg16 need --weights.vgg."""
    layers: tuple[str, ...] = ("conv5_4",)
    """Layers of VGG, before (conv) or after (relu) the activation; VGG-16 ends at conv5_3."""
    input_norm: bool = True
    """Whether pictures are normalised as VGG was trained (the unofficial code does not)."""


def _paper_schedule() -> ScheduleConfig:
    return ScheduleConfig(600_000, "halve_at", (250_000, 350_000, 450_000, 550_000))


@dataclass(frozen=True)
class USRDAConfig:
    """A whole run of USR-DA."""

    scale: Literal[1, 2, 4] = 4
    """HR over LR."""
    num_feat: Features = 64
    """Features of encoder and decoders."""
    decoder_feat: Features | None = None
    """Features of the decoders, where they differ from the encoder's (unofficial code with --n_hidden_feats)."""
    num_conv: Blocks = 5
    """Convolutions of the encoder E."""
    num_block: Blocks = 23
    """RRDB blocks of the decoder G_SR."""
    num_block_t: Blocks = 10
    """RRDB blocks of the decoder G_t."""
    num_grow_ch: Features = 32
    """Growth of the dense blocks."""
    init: Literal["default", "kaiming"] = "default"
    """First weights outside the dense blocks: PyTorch's (unofficial code), or normal, which keep the signal's scale."""
    bicubic_skip: bool = False
    """Decoders output differences from the bicubic and the LR picture (ours; short training then starts there)."""
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    discriminator_f: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    discriminator_t: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    discriminator_y: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    perceptual_weight: Weight = 0.01
    """alpha of Eqs. 3 and 8."""
    adversarial_weight: Weight = 0.01
    """beta of Eqs. 3 and 8."""
    detach_source: bool = False
    """f_s is constant in Eq. 7 (ours; the paper prints it trainable)."""
    halve: bool = False
    """Half the discriminators' losses (unofficial code)."""
    real_twice: bool = False
    """D_y's loss counts y_s once for each of its two fakes (unofficial code)."""
    discriminator_first: bool = False
    """The discriminators are updated first, and the generator is judged by what they have become (unofficial code)."""
    crop: Pixels = 512
    """Side of an HR crop in pixels."""
    batch: Batch = 8
    """HR crops and as many real LR crops per update, over all ranks."""
    augment: bool = True
    """Random flips and transposes."""
    learning_rate: Rate = 1e-4
    """Adam's, of generator and discriminators."""
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Adam's."""
    amsgrad: bool = False
    """Adam's variant (unofficial code)."""
    schedule: ScheduleConfig = field(default_factory=_paper_schedule)
    run: LoopConfig = field(default_factory=LoopConfig)

    @property
    def restyles(self) -> bool:
        """Whether G_t is trained."""
        return any(getattr(self.loss, term) for term in REGULARISATION)

    @property
    def lr_crop(self) -> int:
        """Side of an LR crop in pixels."""
        return self.crop // self.scale

    def batch_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """What a step is given."""
        sides = {"source_lr": self.lr_crop, "hr": self.crop, "real_lr": self.lr_crop}
        return {name: (batch, 3, side, side) for name, side in sides.items()}

    def without(self, *terms: str) -> USRDAConfig:
        """The same without these terms of Eq. 9."""
        return replace(self, loss=replace(self.loss, **dict.fromkeys(terms, 0.0)))


def presets() -> list[str]:
    return preset_names(PRESETS)


def load_preset(name: str) -> USRDAConfig:
    """A preset by its name, or a YAML file in the same form by its path. Raises InputError naming what is wrong."""
    config = config_files.load_preset(USRDAConfig, PRESETS, name)
    check(config)
    return config


def check(config: USRDAConfig) -> None:
    """Raises InputError naming the first option that cannot be used."""
    check_bounds(config)
    check_crop("--crop", config.crop, config.scale, 8 * config.scale)
    for name, (low, high) in (("blur", config.synthesis.blur), ("noise", config.synthesis.noise)):
        if low > high:
            raise InputError(f"--synthesis.{name} must be a range, the lower end first, got {low} {high}")
    for name, channels, side in (
        ("f", config.num_feat, config.lr_crop),
        ("t", 3, config.lr_crop),
        ("y", 3, config.crop),
    ):
        _check_discriminator(name, getattr(config, f"discriminator_{name}"), channels, side, config.batch)
    config.perceptual.check_scale("--perceptual", config.perceptual.layers)
    check_layers(config.perceptual.network, config.perceptual.layers, "--perceptual.layers")


def check_weights(config: USRDAConfig, weights: PerceptualFiles) -> None:
    """`check`, and that the file is named that the perceptual loss needs, before anything is written."""
    check(config)
    weights.check(config.perceptual.network, "--perceptual.network")


def _check_discriminator(name: str, options: DiscriminatorConfig, channels: int, side: int, batch: int) -> None:
    """Tries the discriminator on the shape of a rank's share of a batch, without computing anything."""
    share = max(1, batch // distributed.world_size())
    try:
        with torch.device("meta"):
            # Spectral norm fits everywhere, and is slow to set up.
            norm = "none" if options.norm == "spectral" else options.norm
            replace(options, num_feat=1, norm=norm).build(channels, side)(torch.empty(share, channels, side, side))
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--discriminator-{name} does not work on {share} crops of {side} pixels: {error}") from error
