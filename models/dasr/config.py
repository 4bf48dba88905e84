"""Every number of a DASR run. Presets are YAML files of what differs; the command line is made from these."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch

from models import config as config_files
from models.config import (
    Batch,
    Beta,
    Blocks,
    Bound,
    Features,
    Pixels,
    Rate,
    Weight,
    check_bounds,
    check_crop,
    preset_names,
)
from models.data import InputError
from models.networks import PatchDiscriminator
from models.networks.frequency import frequency_filter
from models.networks.weight_options import PerceptualFiles, check_layers
from models.train.loop import LoopConfig
from models.train.losses import GANForm, ScaleConfig
from models.train.schedule import ScheduleConfig

PRESETS = Path(__file__).parent / "presets"

Frequency = Literal["haar", "haar_sum", "gbfs", "average", "rgb"]
Kind = Literal["paper", "fsd", "nlayer_s1", "nlayer_s2"]
Norm = Literal["instance", "batch", "spectral", "none"]
MapWeights = Literal["map", "normalised", "capped", "constant"]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """A patch discriminator and its adversarial loss."""

    kind: Kind = "paper"
    """paper: kernel 3, strides 2, 2, 1, 1, receptive field 23; fsd and nlayer: the published code's."""
    norm: Norm = "instance"
    """Normalisation after the second and third convolution."""
    bias: bool = True
    """Whether those two convolutions have a bias (the published one of the SR network has none)."""
    init: Literal["default", "kaiming"] = "default"
    """First weights: PyTorch's (published DSN), or normal with zero biases (published SR network)."""
    num_feat: Features = 64
    """Features of the first layer."""
    frequency: Frequency = "haar"
    """What it sees: high Haar bands, their mean, Gaussian or average high-pass, or the picture itself."""
    frequency_kernel: Annotated[int, Bound(1, 255)] = 5
    """Side of the low-pass of gbfs and average, in pixels."""
    frequency_gain: Annotated[float, Bound(0, 1000, above=True)] = 0.5
    """Gain of gbfs and average; the published SR network scales twice, which is 0.25."""
    frequency_contrast: Annotated[float, Bound(0, 1000)] = 0.0
    """What it sees is H, or with a contrast other than 0 (H - 0.5) times it (ours), which needs norm none to matter."""
    gan: GANForm = "nonsaturating"
    """Form of the adversarial loss; the paper prints the saturating one."""
    halve: bool = False
    """Half the discriminator's loss, as the published code does for the SR network."""
    learning_rate: Rate = 1e-4
    """Adam's."""


@dataclass(frozen=True)
class PerceptualConfig(ScaleConfig):
    """The perceptual loss."""

    network: Literal["vgg19", "vgg16", "lpips", "none"] = "vgg19"
    """vgg19 and vgg16 need --weights.vgg, lpips needs --weights.lpips-alex or --weights.lpips-vgg, and
    --weights.lpips-lin."""
    layers: tuple[str, ...] = ("conv5_4",)
    """Layers of VGG, before (conv) or after (relu) the activation; VGG-16 ends at conv5_3."""
    map_resize: Literal["bilinear", "area"] = "bilinear"
    """How the distance map reaches the features' size."""


@dataclass(frozen=True)
class PretrainedSchedule(ScheduleConfig):
    """How long a stage trains, and how its learning rate falls; `at` counts from the end of the pre-training."""

    pretrain: Annotated[int, Bound(0, 10**9)]
    """Updates with the content loss alone, before all others and at the full learning rate."""

    @property
    def updates(self) -> int:
        return self.pretrain + self.steps

    def factor(self, done: int) -> float:
        return super().factor(max(0, done - self.pretrain))


def _paper_schedule() -> PretrainedSchedule:
    return PretrainedSchedule(50_000, "halve_every", (10_000,), 25_000)


@dataclass(frozen=True)
class DSNConfig:
    """Stage dsn: the down-sampling network."""

    network: Literal["dsn", "de_resnet"] = "dsn"
    """dsn: the paper's, ReLU and a bilinear resize; de_resnet: the released one, PReLU, strided, sigmoid."""
    num_feat: Features = 64
    """Features of the network."""
    num_block: Blocks = 23
    """Residual blocks."""
    bicubic_skip: bool = False
    """The network outputs the difference from the bicubic picture (ours; short training then starts from there)."""
    input: Literal["hr", "bicubic"] = "hr"
    """Its input (Table 1)."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    content_of: Literal["rgb", "low"] = "rgb"
    """The content loss compares pictures, or what the discriminator does not see of them (published code)."""
    content_weight: Weight = 0.01
    """alpha of Eq. 4."""
    perceptual_weight: Weight = 1.0
    """beta of Eq. 4."""
    adversarial_weight: Weight = 0.0005
    """gamma of Eq. 4."""
    crop: Pixels = 192
    """Side of an HR crop in pixels."""
    batch: Batch = 16
    """HR crops and as many real LR crops per update, over all ranks."""
    augment: bool = True
    """Random flips and transposes."""
    learning_rate: Rate = 1e-4
    """Adam's."""
    betas: tuple[Beta, Beta] = (0.5, 0.999)
    """Adam's, of both players."""
    schedule: PretrainedSchedule = field(default_factory=_paper_schedule)


@dataclass(frozen=True)
class MapsConfig:
    """Stage maps: generated LR pictures and their domain-distance maps."""

    smoothing: Literal["receptive_field", "none"] = "receptive_field"
    """Each score is spread over its receptive field and overlaps are averaged (published code), or left as it is."""
    box: Annotated[int, Bound(0, 1023)] = 0
    """Side of that field on the discriminator's input grid; 0 takes the discriminator's own (published: 17)."""
    padding: Literal["zero", "reflect"] = "zero"
    """How the picture is continued beyond its border; the published code's zeros leave a frame on small pictures."""
    on_the_fly: bool = False
    """Compute the map of every batch while the SR network trains, instead of once per picture."""


@dataclass(frozen=True)
class SRNConfig:
    """Stage srn: the SR network, ESRGAN's RRDBNet."""

    num_feat: Features = 64
    """Features of the network."""
    num_block: Blocks = 23
    """RRDB blocks."""
    num_grow_ch: Features = 32
    """Growth of the dense blocks."""
    init: Literal["kaiming", "default"] = "kaiming"
    """First weights: normal x 0.1, biases zero, everywhere (published) or in the dense blocks alone (BasicSR)."""
    bicubic_skip: bool = False
    """The network outputs the difference from the bicubic picture (ours; short training then starts from there)."""
    discriminator: DiscriminatorConfig = field(default_factory=lambda: DiscriminatorConfig(learning_rate=2e-4))
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    weigh_features: bool = True
    """The map weighs the perceptual loss too (Eq. 5; not in the published code)."""
    map_weights: MapWeights = "map"
    """What weighs: the map w (Eq. 5), or w / mean(w), that up to the cap, or mean(w) everywhere (ours), per batch."""
    map_cap: Annotated[float, Bound(1, 1000)] = 2.0
    """The largest weight of map-weights capped."""
    content_weight: Weight = 0.01
    """alpha of Eq. 6."""
    perceptual_weight: Weight = 1.0
    """beta of Eq. 6."""
    adversarial_weight: Weight = 0.005
    """gamma of Eq. 6."""
    low_band_weight: Weight = 0.0
    """Weight of the L1 of low bands (published code; the paper has none)."""
    crop: Pixels = 128
    """Side of an HR crop in pixels."""
    batch: Batch = 16
    """Generated pairs and as many real LR crops per update, over all ranks."""
    augment: bool = True
    """Random flips and transposes."""
    learning_rate: Rate = 2e-4
    """Adam's."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Adam's, of both players."""
    schedule: PretrainedSchedule = field(default_factory=_paper_schedule)


@dataclass(frozen=True)
class DASRConfig:
    """A whole run of DASR."""

    scale: Literal[1, 2, 4] = 4
    """HR over LR."""
    source: Literal["dsn", "bicubic"] = "dsn"
    """Where the LR pictures of the source domain come from (Table 2)."""
    domain_gap: bool = True
    """Adversarial loss on real LR pictures (Table 2); without it on the generated ones."""
    weighting: bool = True
    """Losses weighted by the domain-distance map (Table 2); impossible with a bicubic source."""
    dsn: DSNConfig = field(default_factory=DSNConfig)
    maps: MapsConfig = field(default_factory=MapsConfig)
    srn: SRNConfig = field(default_factory=SRNConfig)
    run: LoopConfig = field(default_factory=LoopConfig)

    @property
    def weighted(self) -> bool:
        """Whether losses are weighted: a bicubic source has no discriminator to ask."""
        return self.weighting and self.source == "dsn"

    def batch_shapes(self, stage: str, batch: int) -> dict[str, tuple[int, ...]]:
        """What a step of stage dsn or srn is given."""
        hr = self.dsn.crop if stage == "dsn" else self.srn.crop
        lr = hr // self.scale
        if stage == "dsn":
            return {"hr": (batch, 3, hr, hr), "real_lr": (batch, 3, lr, lr)}
        shapes = {"fake_lr": (batch, 3, lr, lr), "hr": (batch, 3, hr, hr)}
        if self.weighted and not self.maps.on_the_fly:
            options = self.dsn.discriminator
            side = lr // frequency_filter(options.frequency, options.frequency_kernel).stride
            shapes["weight"] = (batch, 1, side, side)
        if self.domain_gap:
            shapes |= {"real_lr": (batch, 3, lr, lr), "other_hr": (batch, 3, hr, hr)}
        return shapes


def presets() -> list[str]:
    return preset_names(PRESETS)


def load_preset(name: str) -> DASRConfig:
    """A preset by its name, or a YAML file in the same form by its path. Raises InputError naming what is wrong."""
    config = config_files.load_preset(DASRConfig, PRESETS, name)
    check(config)
    return config


def check(config: DASRConfig) -> None:
    """Raises InputError naming the first option that cannot be used."""
    check_bounds(config)
    scale = config.scale
    for name, stage in (("dsn", config.dsn), ("srn", config.srn)):
        check_crop(f"--{name}.crop", stage.crop, 2 * scale, 8 * scale)
        stage.perceptual.check_scale(f"--{name}.perceptual", stage.perceptual.layers)
        _check_discriminator(name, stage.discriminator, stage.crop // scale if name == "dsn" else stage.crop)
        if stage.perceptual.scaled and stage.perceptual.network == "lpips":
            raise InputError(f"--{name}.perceptual.scaled: LPIPS has a scale of its own")
        check_layers(stage.perceptual.network, stage.perceptual.layers, f"--{name}.perceptual.layers")
    if config.srn.perceptual.network == "lpips" and config.srn.weigh_features and config.weighted:
        raise InputError("--srn.weigh-features: LPIPS is one number per picture and cannot be weighted place by place")


def check_weights(config: DASRConfig, weights: PerceptualFiles) -> None:
    """`check`, and that the files are named that perceptual losses need, before anything is written."""
    check(config)
    for name, stage in (("dsn", config.dsn), ("srn", config.srn)):
        weights.check(stage.perceptual.network, f"--{name}.perceptual.network")


def _check_discriminator(stage: str, options: DiscriminatorConfig, side: int) -> None:
    """Tries the discriminator on the shape of a crop, without computing anything."""
    try:
        with torch.device("meta"):
            view = frequency_filter(options.frequency, options.frequency_kernel)
            network = PatchDiscriminator(view.channels, 1, kind=options.kind, norm=options.norm)
            network(torch.empty(1, view.channels, side // view.stride, side // view.stride))
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--{stage}.discriminator does not work on crops of {side} pixels: {error}") from error
