"""The rows of USR-DA's Tables 2 and 3 and Figure 6 as configurations, trained through the method's one stage."""

from __future__ import annotations

from dataclasses import replace

from models.commands.ablate.parts import (
    JUDGED_SR,
    WEIGHTLESS,
    AblationParts,
    Claim,
    PaperTable,
    Row,
    Size,
    Trial,
    lacks,
    score_bicubic_hr,
    score_network,
    trained,
)
from models.data import InputError
from models.evaluate.validation import Score
from models.networks.weight_options import PerceptualFiles
from models.usrda.build import WeightFiles, build_features
from models.usrda.config import REGULARISATION, PerceptualConfig, USRDAConfig, check, load_preset
from models.usrda.stages import USRDAJob, train_usrda
from models.usrda.steps import LossWeights

_DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3}

# The weights of Eq. 9 that the paper gives for bicubic source LR (Figure 6) and for DIV2K realistic-wild (Table 2).
_FAR = LossWeights(align=1, rec=10, res=10, sty=1, idt=1, cyc=10)


# One gap for all tables, of noise, which is what E has features of and D_f can tell.
_CAMERA = "noise5"


def tables(config: USRDAConfig) -> tuple[PaperTable, ...]:
    """Table 3, Figure 6 and Table 2, with `config` for everything that a row does not set: Table 3's last row."""
    base = _row("base", config.without("align", *REGULARISATION), psnr=25.65, ssim=0.666, lpips=0.436)
    align = _row("align", config.without(*REGULARISATION), psnr=25.20, ssim=0.653, lpips=0.448)
    no_align = _row("no-align", config.without("align"), psnr=25.53, ssim=0.663, lpips=0.373)
    full = _row("full", config, psnr=25.14, ssim=0.690, lpips=0.296)

    plain = replace(config, synthesis=replace(config.synthesis, blur=(0.0, 0.0), noise=(0.0, 0.0)), loss=_FAR)
    by_source = {
        "bicubic": (_row("base-bicubic", plain.without("align", *REGULARISATION)), _row("full-bicubic", plain)),
        "complex": (_row("base", base.config), _row("full", config)),
    }
    paired = replace(
        config, perceptual=PerceptualConfig("none"), perceptual_weight=0.0, adversarial_weight=0.0, loss=_FAR
    )
    return (
        PaperTable(
            "table3",
            "Table 3. What is trained beside L_rec",
            ("L_align", "regularisation"),
            f"{JUDGED_SR}; regularisation is L_res, L_sty, L_idt and L_cyc. The paper counts LPIPS most, by which full "
            "is best; by its PSNR full is last",
            _CAMERA,
            _DIGITS,
            # Full's numbers are not those of the same challenge in Table 1, for which the paper gives no reason.
            (base, align, no_align, full),
            (
                Claim("regularisation over base", ("no-align",), ("base",)),
                Claim("alignment over none, with regularisation", ("full",), ("no-align",)),
                Claim("alignment over none, without regularisation (in the paper a loss)", ("align",), ("base",)),
                Claim("full over base", ("full",), ("base",)),
            ),
            _plan,
            _train,
            score_bicubic_hr,
        ),
        PaperTable(
            "figure6",
            "Figure 6. How the source LR is made",
            ("source LR", "model"),
            f"{JUDGED_SR}; complex is bicubic with random blur and noise, as in Table 3. The paper shows LPIPS as bars",
            _CAMERA,
            _DIGITS,
            tuple(
                replace(row, cells=(source, model))
                for source, rows in by_source.items()
                for model, row in zip(("base", "full"), rows, strict=True)
            ),
            (
                Claim("full over base, bicubic source LR", ("full-bicubic",), ("base-bicubic",)),
                Claim("full over base, complex source LR", ("full",), ("base",)),
                Claim(
                    "that gain on bicubic source LR over that on complex",
                    ("full-bicubic", "base"),
                    ("base-bicubic", "full"),
                ),
                Claim("complex over bicubic source LR, base", ("base",), ("base-bicubic",)),
            ),
            _plan,
            _train,
            score_bicubic_hr,
        ),
        PaperTable(
            "table2",
            "Table 2. As for the paired set",
            ("L_align", "regularisation"),
            f"{JUDGED_SR}; L1 alone in Eqs. 3 and 8, and the weights of the paper's DIV2K realistic-wild",
            _CAMERA,
            _DIGITS,
            (_row("paired", paired, psnr=23.39, ssim=0.537),),
            (Claim("paired weights over a bicubic resize", ("paired",), ("table2",)),),
            _plan,
            _train,
            score_bicubic_hr,
        ),
    )


def _row(name: str, config: USRDAConfig, **paper: float) -> Row:
    cells = tuple("yes" if each else "no" for each in (config.loss.align, config.restyles))
    return Row(name, cells, paper, config)


def _train(row: Row, trial: Trial) -> list[Score]:
    folder, weights = trial.folder / row.name, WeightFiles(**trial.teachers(row.config.perceptual.network))
    train_usrda(USRDAJob(row.config, trial.domains.inputs, weights, trial.run, trial.device, {"": folder}))
    return score_network(trial, row.name, trained(folder, row.config.schedule.updates, trial.device))


def _resize(config: USRDAConfig, size: Size) -> USRDAConfig:
    schedule = config.schedule
    return replace(
        config,
        num_feat=size.features * config.num_feat,
        num_block=size.blocks * config.num_block,
        batch=size.batch * config.batch,
        schedule=replace(schedule, steps=size.times(schedule.steps), at=tuple(size.times(at) for at in schedule.at)),
    )


def _prepare(config: USRDAConfig, weights: PerceptualFiles) -> USRDAConfig:
    if lacks(weights, config.perceptual.network):
        config = replace(
            config,
            perceptual=PerceptualConfig("none"),
            adversarial_weight=WEIGHTLESS * config.adversarial_weight,
        )
    check(config)
    for term in ("align", *REGULARISATION):
        if getattr(config.loss, term) == 0:
            raise InputError(f"--loss.{term} must be positive: the rows of Table 3 are with it and without it")
    build_features(config, WeightFiles(**vars(weights)))  # before anything is trained: is the file the right one?
    return config


def _plan(config: USRDAConfig) -> dict[str, str]:
    weights = config.loss
    return {
        "align, rec": _listed(weights.align, weights.rec),
        "res, sty, idt, cyc": _listed(weights.res, weights.sty, weights.idt, weights.cyc),
        "perceptual, adversarial": _listed(
            config.perceptual_weight if config.perceptual.network != "none" else 0.0, config.adversarial_weight
        ),
        "updates": str(config.schedule.updates),
    }


def _listed(*weights: float) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)


def _setting(config: USRDAConfig) -> str:
    (_, blur), (_, noise) = config.synthesis.blur, config.synthesis.noise
    return (
        f"encoder of {config.num_conv} convolutions, G_SR of {config.num_block} and G_t of {config.num_block_t} RRDB "
        f"blocks, {config.num_feat} features; {config.schedule.updates} updates with batches of {config.batch}, LR "
        f"patches of {config.lr_crop} pixels; perceptual loss: {config.perceptual.network}; source LR bicubic, with "
        f"blur up to {blur:g} pixels and noise up to {noise:g}/255"
    )


ABLATION = AblationParts(
    title="USR-DA",
    config=USRDAConfig,
    load_preset=load_preset,
    resize=_resize,
    prepare=_prepare,
    tables=tables,
    setting=_setting,
    paper_setting=(
        "NTIRE 2020 real-world SR, Track 1 (clean HR from DIV2K, degraded Flickr2K as real LR, judged on the 100 "
        "pictures of its validation set), LR patches of 128 pixels, batches of 8; it does not state crop or colour "
        "space, the number of updates, or the sizes of the networks"
    ),
)
