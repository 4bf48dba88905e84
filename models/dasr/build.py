"""Networks, losses and optimisers of DASR's two steps, from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adam

from models.dasr.config import DASRConfig, DiscriminatorConfig, DSNConfig, PerceptualConfig, SRNConfig
from models.dasr.losses import Perceptual
from models.dasr.maps import DistanceMap
from models.dasr.steps import DSNStep, SRNStep
from models.data import InputError
from models.networks import DSN, LPIPS, DeResNet, PatchDiscriminator, RRDBNet, VGGFeatures
from models.networks.blocks import kaiming_init, recompute_blocks, zero_init
from models.networks.frequency import FrequencyFilter, frequency_filter
from models.networks.lpips import Trunk
from models.networks.vgg import VGG, keep_signs
from models.networks.weight_options import PerceptualFiles, load_lpips, load_network, load_vgg
from models.train.loop import LoopConfig
from models.train.losses import DistanceLoss, FeatureLoss, GANLoss
from models.train.players import Players


@dataclass(frozen=True)
class WeightFiles(PerceptualFiles):
    """Files that a run needs or starts from."""

    dsn: Path | None = None
    """A down-sampling network to start from, or to generate with (ours or published)."""
    dsn_discriminator: Path | None = None
    """Its discriminator, to compute maps with (ours or published)."""
    srn: Path | None = None
    """An SR network to start from, such as ESRGAN's."""


def build_dsn_step(config: DASRConfig, weights: WeightFiles, device: torch.device) -> DSNStep:
    """Stage dsn's step with fresh networks, or with those that `weights` names."""
    dsn = config.dsn
    generator: nn.Module
    if weights.dsn is not None:
        generator = load_network(weights.dsn, "--weights.dsn", (DSN, DeResNet))
        check_scale_of_file(generator, "--weights.dsn", 1 if dsn.input == "bicubic" else config.scale)
    else:
        # The published generator for bicubic input is DeResNet without its down-sampling.
        scale = 1 if dsn.input == "bicubic" else config.scale
        kind = DSN if dsn.network == "dsn" else DeResNet
        generator = kind(dsn.num_feat, dsn.num_block, scale=scale, bicubic_skip=dsn.bicubic_skip)
    view = build_filter(dsn.discriminator).to(device)
    return DSNStep(
        _players(generator, view.channels, dsn, config.run, device),
        view,
        GANLoss(dsn.discriminator.gan, dsn.discriminator.halve),
        scale=config.scale,
        content=dsn.content_weight,
        perceptual=dsn.perceptual_weight,
        adversarial=dsn.adversarial_weight,
        features=build_features(dsn.perceptual, weights, config.run, device),
        low=view.low if dsn.content_of == "low" else None,
        bicubic_input=dsn.input == "bicubic",
    )


def build_srn_step(
    config: DASRConfig,
    weights: WeightFiles,
    device: torch.device,
    distance: Callable[[Tensor], Tensor] | None = None,
) -> SRNStep:
    """Stage srn's step with fresh networks, or with those that `weights` names."""
    srn = config.srn
    generator: nn.Module
    if weights.srn is not None:
        generator = load_network(weights.srn, "--weights.srn", (RRDBNet,))
        check_scale_of_file(generator, "--weights.srn", config.scale)
    else:
        generator = RRDBNet(
            srn.num_feat, srn.num_block, srn.num_grow_ch, scale=config.scale, bicubic_skip=srn.bicubic_skip
        )
        if srn.init == "kaiming":
            kaiming_init(generator, 0.1)
            if srn.bicubic_skip:
                zero_init(generator.conv_last)
    view = build_filter(srn.discriminator, padded=True).to(device)
    return SRNStep(
        _players(generator, view.channels, srn, config.run, device),
        view,
        GANLoss(srn.discriminator.gan, srn.discriminator.halve),
        content=srn.content_weight,
        perceptual=srn.perceptual_weight,
        adversarial=srn.adversarial_weight,
        low_band=srn.low_band_weight,
        features=build_features(srn.perceptual, weights, config.run, device),
        weigh_features=srn.weigh_features,
        low=view.low if srn.low_band_weight else None,
        domain_gap=config.domain_gap,
        distance=distance,
        map_weights=srn.map_weights,
        map_cap=srn.map_cap,
    )


def build_features(
    perceptual: PerceptualConfig, weights: WeightFiles, run: LoopConfig, device: torch.device
) -> Perceptual | None:
    """phi with its published weights, which the meta device does without.

    Raises InputError naming the option whose file is missing or wrong.
    """
    if perceptual.network == "none" or device.type == "meta":
        return random_features(perceptual, run, device, weights.lpips_trunk)
    if perceptual.network == "lpips":
        features: VGGFeatures | LPIPS = load_lpips(weights, "--weights.lpips")
    else:
        features = load_vgg(perceptual.layers, weights.vgg, "--weights.vgg", network=perceptual.network)
    return assemble_features(perceptual, features, run, device)


def random_features(
    perceptual: PerceptualConfig, run: LoopConfig, device: torch.device, trunk: Trunk = "alex"
) -> Perceptual | None:
    """phi with random weights, where values do not matter; `trunk` is that of LPIPS."""
    if perceptual.network == "none":
        return None
    with device:
        features = LPIPS(trunk) if perceptual.network == "lpips" else VGG[perceptual.network](perceptual.layers)
    return assemble_features(perceptual, features, run, device)


def random_distance(config: DASRConfig, device: torch.device) -> DistanceMap | None:
    """What computes maps on the fly, if the run does, with random weights."""
    if not config.weighted or not config.maps.on_the_fly:
        return None
    bare = replace(config, dsn=replace(config.dsn, perceptual=PerceptualConfig("none")))
    discriminator = build_dsn_step(bare, WeightFiles(), device).players.discriminator
    assert isinstance(discriminator, PatchDiscriminator)
    distance = DistanceMap(discriminator, build_filter(config.dsn.discriminator), config.maps)
    return distance.to(device).requires_grad_(False).eval()


def assemble_features(
    perceptual: PerceptualConfig, features: VGGFeatures | LPIPS, run: LoopConfig, device: torch.device
) -> Perceptual:
    """The loss on a given network."""
    features.to(device, memory_format=run.layout)
    if isinstance(features, LPIPS):
        return DistanceLoss(features)
    if run.feature_signs:
        keep_signs(features)
    return FeatureLoss(features, perceptual.map_resize, perceptual.means_of(perceptual.layers))


def check_scale_of_file(network: nn.Module, option: str, scale: int) -> None:
    """Raises InputError if a network from a file is of another scale than the run."""
    if network.scale != scale:
        raise InputError(f"{option} holds a network of scale {network.scale}, the run needs {scale}")


def build_filter(discriminator: DiscriminatorConfig, *, padded: bool = False) -> FrequencyFilter:
    """H(.) of a discriminator; `padded` as the published code has it for the SR network's, and not for the DSN's."""
    kernel, gain = discriminator.frequency_kernel, discriminator.frequency_gain
    return frequency_filter(discriminator.frequency, kernel, gain, padded, discriminator.frequency_contrast)


def _players(
    generator: nn.Module, channels: int, stage: DSNConfig | SRNConfig, run: LoopConfig, device: torch.device
) -> Players:
    """The generator, and a discriminator of views of so many channels."""
    options = stage.discriminator
    discriminator = PatchDiscriminator(
        channels,
        options.num_feat,
        kind=options.kind,
        norm=options.norm,
        bias=options.bias,
        init=options.init,
    )
    discriminator.frequency, discriminator.frequency_kernel = options.frequency, options.frequency_kernel
    discriminator.frequency_contrast = options.frequency_contrast
    if run.recompute:
        recompute_blocks(generator)
    if run.compile:
        # The discriminator's graph is run backward twice, which compiled graphs do not allow. Crops have one size.
        generator.compile(dynamic=False)
    for network in (generator, discriminator):
        network.to(device, memory_format=run.layout)
    return Players(
        generator,
        discriminator,
        Adam(generator.parameters(), stage.learning_rate, betas=stage.betas, fused=run.fused_adam),
        Adam(discriminator.parameters(), options.learning_rate, betas=stage.betas, fused=run.fused_adam),
        run.autocast,
    )
