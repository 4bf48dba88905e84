"""Networks, losses and optimisers of USR-DA's step, from a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Adam

from models.data import InputError
from models.networks import USRDAGenerator, VGGFeatures
from models.networks.blocks import recompute_blocks
from models.networks.vgg import VGG, keep_signs
from models.networks.weight_options import PerceptualFiles, load_network, load_vgg
from models.train.losses import FeatureLoss
from models.train.players import Players
from models.usrda.config import PerceptualConfig, USRDAConfig
from models.usrda.steps import USRDAStep


@dataclass(frozen=True)
class WeightFiles(PerceptualFiles):
    """Files that a run needs or starts from."""

    generator: Path | None = None
    """A generator to start from, ours or a checkpoint of the unofficial code."""


def build_step(config: USRDAConfig, weights: WeightFiles, device: torch.device) -> USRDAStep:
    """The step with fresh networks, or with those that `weights` names. Raises InputError naming the option."""
    return assemble(config, build_features(config, weights), weights, device)


def assemble(
    config: USRDAConfig, features: FeatureLoss | None, weights: WeightFiles, device: torch.device
) -> USRDAStep:
    """The step with a given perceptual loss."""
    run = config.run
    generator = _generator(config, weights)
    discriminators = nn.ModuleDict(
        {
            "f": config.discriminator_f.build(config.num_feat, config.lr_crop),
            "t": config.discriminator_t.build(3, config.lr_crop),
            "y": config.discriminator_y.build(3, config.crop),
        }
    )
    if run.recompute:
        recompute_blocks(generator)
    if run.feature_signs and features is not None:
        keep_signs(features)
    for network in (generator, discriminators, features):
        if network is not None:
            network.to(device, memory_format=run.layout)
    if run.compile:
        # The discriminators' graphs are run backward twice, which compiled ones do not allow. Crops have one size.
        for part in generator.children():
            part.compile(dynamic=False)
    optimizer_g, optimizer_d = (
        Adam(
            network.parameters(), config.learning_rate, betas=config.betas, amsgrad=config.amsgrad, fused=run.fused_adam
        )
        for network in (generator, discriminators)
    )
    return USRDAStep(
        Players(generator, discriminators, optimizer_g, optimizer_d, run.autocast),
        config.loss,
        config.perceptual_weight,
        config.adversarial_weight,
        features,
        detach_source=config.detach_source,
        halve=config.halve,
        real_twice=config.real_twice,
        discriminator_first=config.discriminator_first,
    )


def random_features(config: USRDAConfig) -> FeatureLoss | None:
    """phi with random weights, where values do not matter."""
    options = config.perceptual
    if options.network == "none":
        return None
    return _loss(options, VGG[options.network](options.layers, input_norm=options.input_norm))


def build_features(config: USRDAConfig, weights: WeightFiles) -> FeatureLoss | None:
    """phi with its published weights. Raises InputError naming the option whose file is missing or wrong."""
    options = config.perceptual
    if options.network == "none":
        return None
    features = load_vgg(
        options.layers, weights.vgg, "--weights.vgg", network=options.network, input_norm=options.input_norm
    )
    return _loss(options, features)


def _loss(options: PerceptualConfig, features: VGGFeatures) -> FeatureLoss:
    return FeatureLoss(features, means=options.means_of(options.layers))


def _generator(config: USRDAConfig, weights: WeightFiles) -> USRDAGenerator:
    if weights.generator is None:
        generator = USRDAGenerator(
            config.num_feat,
            config.num_conv,
            config.num_block,
            config.num_block_t,
            config.num_grow_ch,
            scale=config.scale,
            bicubic_skip=config.bicubic_skip,
            decoder_feat=config.decoder_feat,
        )
        if config.init == "kaiming":
            generator.kaiming_init()
        return generator
    generator = load_network(weights.generator, "--weights.generator", (USRDAGenerator,))
    assert isinstance(generator, USRDAGenerator)
    # Otherwise the run's record would describe other networks, and the run could not be resumed.
    for name, found in generator.sizes.items():
        if found != getattr(config, name):
            option = name.replace("_", "-")
            raise InputError(
                f"--weights.generator: {weights.generator} holds networks of {option} {found}, the run says "
                f"--{option} {getattr(config, name)}"
            )
    return generator
