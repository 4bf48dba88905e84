"""The rows of DASR's Tables 1 and 2 as configurations, trained through the method's own stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from models.commands.ablate.parts import (
    JUDGED_SR,
    RESIZED,
    WEIGHTLESS,
    AblationParts,
    Claim,
    PaperTable,
    Row,
    Size,
    Trial,
    lacks,
    score_bicubic_hr,
    score_generated,
    score_network,
    trained,
)
from models.dasr.build import WeightFiles, build_features
from models.dasr.config import DASRConfig, Frequency, MapWeights, PerceptualConfig, check, load_preset
from models.dasr.stages import DASRJob, load_generator, train_dsn, train_srn, write_pairs
from models.data import to_pixels, to_tensor
from models.data.photographs import SCALE
from models.evaluate import metrics
from models.evaluate.examples import resized
from models.evaluate.validation import Score
from models.networks.weight_options import PerceptualFiles

_DIGITS = {"psnr": 3, "ssim": 4, "lpips": 3}

# A bicubic source takes a stronger adversarial loss than a learned one before its SR network moves; rows of either kind
# share theirs.
_BICUBIC_ADVERSARIAL = 5.0


def tables(config: DASRConfig) -> tuple[PaperTable, ...]:
    """Tables 1 and 2, with `config` for everything that a row does not set."""
    return (
        PaperTable(
            "table1",
            "Table 1. What the down-sampling network sees",
            ("its input", "its D sees"),
            f"Generated LR of the photographs' HR against the true LR, {metrics.convention(0, y_channel=False)}",
            "point",
            _DIGITS,
            (
                _dsn_row(config, "bicubic-gbfs", "bicubic", "gbfs", 25.258, 0.8081, 0.110),
                _dsn_row(config, "hr-rgb", "hr", "rgb", 25.204, 0.8153, 0.138),
                _dsn_row(config, "hr-gbfs", "hr", "gbfs", 25.474, 0.8156, 0.101),
                _dsn_row(config, "hr-haar", "hr", "haar", 26.007, 0.8097, 0.067),
                _dsn_row(config, "bicubic-haar", "bicubic", "haar"),
            ),
            (
                Claim("Haar view over Gaussian view, HR input", ("hr-haar",), ("hr-gbfs",)),
                Claim("Haar view over Gaussian view, bicubic input", ("bicubic-haar",), ("bicubic-gbfs",)),
                Claim("HR input over bicubic input, Haar view", ("hr-haar",), ("bicubic-haar",)),
                Claim("HR input over bicubic input, Gaussian view", ("hr-gbfs",), ("bicubic-gbfs",)),
                Claim("HR input and Haar view over a bicubic resize", ("hr-haar",), ("table1",)),
            ),
            _plan_dsn,
            _train_dsn,
            _score_bicubic_lr,
        ),
        PaperTable(
            "table2",
            "Table 2. What the SR network is trained with",
            ("LR used", "target-domain GAN", "weighted"),
            f"{JUDGED_SR}; without a target-domain GAN the adversarial loss is on the source domain",
            "noise5",
            _DIGITS,
            (
                _srn_row(config, "bicubic", "bicubic", False, None, 21.382, 0.5478, 0.543),
                _srn_row(config, "bicubic-gan", "bicubic", True, None, 20.820, 0.5103, 0.390),
                _srn_row(config, "dsn", "dsn", False, None, 21.910, 0.5555, 0.378),
                _srn_row(config, "dsn-gan", "dsn", True, None, 21.805, 0.5615, 0.359),
                _srn_row(config, "dsn-weighted", "dsn", False, "map", 21.452, 0.5304, 0.348),
                _srn_row(config, "dsn-gan-weighted", "dsn", True, "map", 21.600, 0.5640, 0.336),
                _srn_row(config, "dsn-gan-normalised", "dsn", True, "normalised"),
                _srn_row(config, "dsn-gan-capped", "dsn", True, "capped"),
                _srn_row(config, "dsn-gan-constant", "dsn", True, "constant"),
            ),
            (
                Claim("DSN source over bicubic source", ("dsn",), ("bicubic",)),
                Claim("target-domain GAN over source-domain GAN, bicubic source", ("bicubic-gan",), ("bicubic",)),
                Claim("target-domain GAN over source-domain GAN, DSN source", ("dsn-gan",), ("dsn",)),
                Claim("printed map over none, source-domain GAN", ("dsn-weighted",), ("dsn",)),
                Claim("printed map over none, target-domain GAN", ("dsn-gan-weighted",), ("dsn-gan",)),
                Claim(
                    "printed map over its mean as a constant, target-domain GAN",
                    ("dsn-gan-weighted",),
                    ("dsn-gan-constant",),
                ),
                Claim("map / mean over none, target-domain GAN", ("dsn-gan-normalised",), ("dsn-gan",)),
                Claim("map / mean, capped, over none, target-domain GAN", ("dsn-gan-capped",), ("dsn-gan",)),
            ),
            _plan_srn,
            _train_srn,
            score_bicubic_hr,
        ),
    )


def _dsn_row(
    config: DASRConfig,
    name: str,
    fed: Literal["hr", "bicubic"],
    frequency: Frequency,
    *paper: float,
) -> Row:
    cells = ({"hr": "HR", "bicubic": "bicubic LR"}[fed], {"gbfs": "GBFS", "rgb": "RGB", "haar": "Haar"}[frequency])
    return Row(name, cells, _numbers(paper), _dsn_config(config, fed, frequency))


def _srn_row(
    config: DASRConfig,
    name: str,
    source: Literal["dsn", "bicubic"],
    domain_gap: bool,
    weights: MapWeights | None,
    *paper: float,
) -> Row:
    weighted = {None: "no", "map": "yes", "normalised": "map / mean", "capped": "capped", "constant": "mean"}[weights]
    cells = ({"dsn": "DSN", "bicubic": "bicubic"}[source], "yes" if domain_gap else "no", weighted)
    best, srn = _dsn_config(config, "hr", "haar"), replace(config.srn, map_weights=weights or "map")
    if source == "bicubic":
        srn = replace(srn, adversarial_weight=_BICUBIC_ADVERSARIAL * srn.adversarial_weight)
    row = replace(best, source=source, domain_gap=domain_gap, weighting=weights is not None, srn=srn)
    return Row(name, cells, _numbers(paper), row)


def _numbers(paper: tuple[float, ...]) -> dict[str, float]:
    return dict(zip(("psnr", "ssim", "lpips"), paper, strict=True)) if paper else {}


def _dsn_config(config: DASRConfig, fed: Literal["hr", "bicubic"], frequency: Frequency) -> DASRConfig:
    discriminator = replace(config.dsn.discriminator, frequency=frequency)
    return _whole(replace(config, dsn=replace(config.dsn, input=fed, discriminator=discriminator)))


def _whole(config: DASRConfig) -> DASRConfig:
    return replace(config, source="dsn", domain_gap=True, weighting=True)


def _job(config: DASRConfig, trial: Trial, folders: Mapping[str, Path]) -> DASRJob:
    """Stages in folders of their own or, where several rows have the same, in a shared one."""
    teachers = trial.teachers(config.dsn.perceptual.network, config.srn.perceptual.network)
    return DASRJob(config, trial.domains.inputs, WeightFiles(**teachers), trial.run, trial.device, folders)


def _train_dsn(row: Row, trial: Trial) -> list[Score]:
    job = _job(row.config, trial, {"dsn": trial.folder / row.name})
    train_dsn(job)
    generator = load_generator(job)
    with torch.inference_mode():
        return score_generated(trial, row.name, lambda hr: to_pixels(generator(to_tensor(hr, trial.device)[None])[0]))


def _train_srn(row: Row, trial: Trial) -> list[Score]:
    folders = {
        "dsn": trial.folder / "source",
        "generated": trial.folder / f"generated_{row.config.source}",
        "srn": trial.folder / row.name,
    }
    if row.config.source == "dsn":
        train_dsn(_job(_whole(row.config), trial, folders))
    job = _job(row.config, trial, folders)
    write_pairs(job)
    train_srn(job)
    return score_network(trial, row.name, trained(folders["srn"], row.config.srn.schedule.updates, trial.device))


def _score_bicubic_lr(trial: Trial) -> list[Score]:
    return score_generated(trial, RESIZED, lambda hr: resized(hr, 1 / SCALE))


def _resize(config: DASRConfig, size: Size) -> DASRConfig:
    dsn, srn = (
        replace(
            stage,
            num_feat=size.features * stage.num_feat,
            num_block=size.blocks * stage.num_block,
            batch=size.batch * stage.batch,
            schedule=replace(
                stage.schedule,
                pretrain=round(size.updates * stage.schedule.pretrain),
                steps=size.times(stage.schedule.steps),
                at=tuple(size.times(at) for at in stage.schedule.at),
            ),
        )
        for stage in (config.dsn, config.srn)
    )
    return replace(config, dsn=dsn, srn=srn)


def _prepare(config: DASRConfig, weights: PerceptualFiles) -> DASRConfig:
    if lacks(weights, config.dsn.perceptual.network):
        config = replace(config, dsn=replace(config.dsn, perceptual=PerceptualConfig("none")))
    if lacks(weights, config.srn.perceptual.network):
        srn = replace(
            config.srn,
            perceptual=PerceptualConfig("none"),
            content_weight=1.0,
            adversarial_weight=WEIGHTLESS * config.srn.adversarial_weight,
        )
        config = replace(config, srn=srn)
    check(config)
    for stage in (config.dsn, config.srn):  # before anything is trained: is each file the right one?
        build_features(stage.perceptual, WeightFiles(**vars(weights)), config.run, torch.device("cpu"))
    return config


def _plan_dsn(config: DASRConfig) -> dict[str, str]:
    dsn = config.dsn
    weights = [dsn.content_weight, dsn.perceptual_weight if dsn.perceptual.network != "none" else 0.0]
    return {
        "DSN: content, perceptual, adversarial": _listed([*weights, dsn.adversarial_weight]),
        "its updates": str(dsn.schedule.updates),
    }


def _plan_srn(config: DASRConfig) -> dict[str, str]:
    srn = config.srn
    plan = _plan_dsn(config) if config.source == "dsn" else dict.fromkeys(_plan_dsn(config), "-")
    weights = [srn.content_weight, srn.perceptual_weight if srn.perceptual.network != "none" else 0.0]
    return plan | {
        "SRN: content, perceptual, adversarial": _listed([*weights, srn.adversarial_weight]),
        "updates": str(srn.schedule.updates),
    }


def _listed(weights: list[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)


def _setting(config: DASRConfig) -> str:
    dsn, srn = config.dsn, config.srn
    compared = {"low": "of what its discriminator does not see", "rgb": "of RGB"}[dsn.content_of]
    return (
        f"down-sampling network of {dsn.num_block} blocks and {dsn.num_feat} features, {dsn.schedule.updates} updates "
        f"with batches of {dsn.batch}, content loss {compared}; SR network of {srn.num_block} RRDB blocks and "
        f"{srn.num_feat} features, {srn.schedule.updates} updates with batches of {srn.batch}; views' contrast "
        f"{dsn.discriminator.frequency_contrast:g} and {srn.discriminator.frequency_contrast:g}; perceptual losses: "
        f"{dsn.perceptual.network} and {srn.perceptual.network}"
    )


ABLATION = AblationParts(
    title="DASR",
    config=DASRConfig,
    load_preset=load_preset,
    resize=_resize,
    prepare=_prepare,
    tables=tables,
    setting=_setting,
    paper_setting=(
        "arXiv v1, AIM 2019 real-world SR (DIV2K, degraded Flickr2K), 23 blocks and 64 features each, "
        "75,000 updates with batches of 16, perceptual loss on VGG-19; it does not state crop or colour space"
    ),
)
