"""The rows of DASR's Tables 1 and 2 as configurations, trained through the method's own stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from models.commands.ablate.parts import (
    JUDGED_SR,
    AblationParts,
    PaperTable,
    Row,
    Trial,
    last_score,
    score_bicubic_hr,
)
from models.dasr.build import WeightFiles
from models.dasr.config import DASRConfig, Frequency, check_weights, load_preset
from models.dasr.stages import DASRJob, train_dsn, train_srn, write_pairs
from models.data.photographs import SCALE
from models.evaluate import metrics
from models.evaluate.examples import resized
from models.evaluate.validation import Judge, Score, mean_score

_DIGITS = {"psnr": 3, "ssim": 4, "lpips": 3}

# The down-sampling network that the paper settles on; the rows of Table 2 use its pictures.
_BEST_DSN = "hr-haar"


def tables(config: DASRConfig) -> tuple[PaperTable, ...]:
    """Tables 1 and 2, with `config` for everything that a row does not set."""
    return (
        PaperTable(
            "table1",
            "Table 1. What the down-sampling network sees",
            ("its input", "its D sees"),
            f"Generated LR of the held-out HR against the true LR, {metrics.convention(0, y_channel=False)}",
            _DIGITS,
            (
                _dsn_row(config, "bicubic-gbfs", "bicubic", "gbfs", 25.258, 0.8081, 0.110),
                _dsn_row(config, "hr-rgb", "hr", "rgb", 25.204, 0.8153, 0.138),
                _dsn_row(config, "hr-gbfs", "hr", "gbfs", 25.474, 0.8156, 0.101),
                _dsn_row(config, _BEST_DSN, "hr", "haar", 26.007, 0.8097, 0.067),
            ),
            _train_dsn,
            _score_bicubic_lr,
        ),
        PaperTable(
            "table2",
            "Table 2. What the SR network is trained with",
            ("LR used", "target-domain GAN", "weighted"),
            f"{JUDGED_SR}; without a target-domain GAN the adversarial loss is on the source domain",
            _DIGITS,
            (
                _srn_row(config, "bicubic", "bicubic", False, False, 21.382, 0.5478, 0.543),
                _srn_row(config, "bicubic-gan", "bicubic", True, False, 20.820, 0.5103, 0.390),
                _srn_row(config, "dsn", "dsn", False, False, 21.910, 0.5555, 0.378),
                _srn_row(config, "dsn-gan", "dsn", True, False, 21.805, 0.5615, 0.359),
                _srn_row(config, "dsn-weighted", "dsn", False, True, 21.452, 0.5304, 0.348),
                _srn_row(config, "dsn-gan-weighted", "dsn", True, True, 21.600, 0.5640, 0.336),
            ),
            _train_srn,
            score_bicubic_hr,
        ),
    )


def _dsn_row(
    config: DASRConfig,
    name: str,
    given: Literal["hr", "bicubic"],
    frequency: Frequency,
    *paper: float,
) -> Row:
    cells = ({"hr": "HR", "bicubic": "bicubic LR"}[given], {"gbfs": "GBFS", "rgb": "RGB", "haar": "Haar"}[frequency])
    return Row(name, cells, _numbers(*paper), _dsn_config(config, given, frequency))


def _srn_row(
    config: DASRConfig,
    name: str,
    source: Literal["dsn", "bicubic"],
    domain_gap: bool,
    weighting: bool,
    *paper: float,
) -> Row:
    cells = (
        {"dsn": "DSN", "bicubic": "bicubic"}[source],
        *("yes" if each else "no" for each in (domain_gap, weighting)),
    )
    best = _dsn_config(config, "hr", "haar")
    row = replace(best, source=source, domain_gap=domain_gap, weighting=weighting)
    return Row(name, cells, _numbers(*paper), row)


def _numbers(psnr: float, ssim: float, lpips: float) -> dict[str, float]:
    return {"psnr": psnr, "ssim": ssim, "lpips": lpips}


def _dsn_config(config: DASRConfig, given: Literal["hr", "bicubic"], frequency: Frequency) -> DASRConfig:
    discriminator = replace(config.dsn.discriminator, frequency=frequency)
    return _whole(replace(config, dsn=replace(config.dsn, input=given, discriminator=discriminator)))


def _whole(config: DASRConfig) -> DASRConfig:
    return replace(config, source="dsn", domain_gap=True, weighting=True)


def _job(config: DASRConfig, trial: Trial, folders: Mapping[str, Path]) -> DASRJob:
    """Stages in folders of their own or, where several rows have the same, in a shared one."""
    return DASRJob(config, trial.domains.inputs, WeightFiles(**vars(trial.weights)), trial.run, trial.device, folders)


def _train_dsn(row: Row, trial: Trial) -> Score:
    return last_score(train_dsn(_job(row.config, trial, {"dsn": trial.folder / row.name})))


def _train_srn(row: Row, trial: Trial) -> Score:
    folders = {
        "dsn": trial.folder / _BEST_DSN,
        "generated": trial.folder / f"generated_{row.config.source}",
        "srn": trial.folder / row.name,
    }
    if row.config.source == "dsn":
        train_dsn(_job(_whole(row.config), trial, folders))
    job = _job(row.config, trial, folders)
    write_pairs(job)
    return last_score(train_srn(job))


def _score_bicubic_lr(trial: Trial) -> Score:
    judge = Judge(0, trial.lpips)
    return mean_score([judge(resized(hr.pixels, 1 / SCALE), lr.pixels) for lr, hr in trial.domains.held_out])


def _setting(config: DASRConfig) -> str:
    dsn, srn = config.dsn, config.srn
    compared = {"low": "of what its discriminator does not see", "rgb": "of RGB"}[dsn.content_of]
    return (
        f"down-sampling network of {dsn.num_block} blocks and {dsn.num_feat} features, {dsn.schedule.updates} updates "
        f"with batches of {dsn.batch}, content loss {compared}; SR network of {srn.num_block} RRDB blocks and "
        f"{srn.num_feat} features, {srn.schedule.updates} updates with batches of {srn.batch}; perceptual losses: "
        f"{dsn.perceptual.network} and {srn.perceptual.network}"
    )


ABLATION = AblationParts(
    title="DASR",
    config=DASRConfig,
    load_preset=load_preset,
    check=check_weights,
    tables=tables,
    setting=_setting,
    paper_setting=(
        "arXiv v1, AIM 2019 real-world SR (DIV2K, degraded Flickr2K), 23 blocks and 64 features each, "
        "75,000 updates with batches of 16, perceptual loss on VGG-19; it does not state crop or colour space"
    ),
)
