"""The rows of USR-DA's Table 3 as configurations, trained through the method's one stage."""

from __future__ import annotations

from models.commands.ablate.parts import JUDGED_SR, AblationParts, PaperTable, Row, Trial, last_score, score_bicubic_hr
from models.data import InputError
from models.evaluate.validation import Score
from models.networks.weight_options import PerceptualFiles
from models.usrda.build import WeightFiles
from models.usrda.config import REGULARISATION, USRDAConfig, check_weights, load_preset
from models.usrda.stages import USRDAJob, train_usrda


def tables(config: USRDAConfig) -> tuple[PaperTable, ...]:
    """Table 3, with `config` for everything that a row does not set; `config` is its last row."""
    # That row's numbers are not those of the same challenge in Table 1, for which the paper gives no reason.
    return (
        PaperTable(
            "table3",
            "Table 3. What is trained beside L_rec",
            ("L_align", "regularisation"),
            f"{JUDGED_SR}; regularisation is L_res, L_sty, L_idt and L_cyc. The paper counts LPIPS most, by which full "
            "is best; by its PSNR full is last",
            {"psnr": 2, "ssim": 3, "lpips": 3},
            (
                _row(config.without("align", *REGULARISATION), "base", 25.65, 0.666, 0.436),
                _row(config.without(*REGULARISATION), "align", 25.20, 0.653, 0.448),
                _row(config.without("align"), "no-align", 25.53, 0.663, 0.373),
                _row(config, "full", 25.14, 0.690, 0.296),
            ),
            _train,
            score_bicubic_hr,
        ),
    )


def _row(config: USRDAConfig, name: str, psnr: float, ssim: float, lpips: float) -> Row:
    given = config.loss.align, config.restyles
    cells = tuple("yes" if each else "no" for each in given)
    return Row(name, cells, {"psnr": psnr, "ssim": ssim, "lpips": lpips}, config)


def _train(row: Row, trial: Trial) -> Score:
    folders, weights = {"": trial.folder / row.name}, WeightFiles(**vars(trial.weights))
    return last_score(
        train_usrda(USRDAJob(row.config, trial.domains.inputs, weights, trial.run, trial.device, folders))
    )


def _check(config: USRDAConfig, weights: PerceptualFiles) -> None:
    check_weights(config, weights)
    for term in ("align", *REGULARISATION):
        if getattr(config.loss, term) == 0:
            raise InputError(f"--loss.{term} must be positive: the rows of Table 3 are with it and without it")


def _setting(config: USRDAConfig) -> str:
    weights = ", ".join(f"{name} {weight:g}" for name, weight in vars(config.loss).items())
    (_, blur), (_, noise) = config.synthesis.blur, config.synthesis.noise
    return (
        f"encoder of {config.num_conv} convolutions, G_SR of {config.num_block} and G_t of {config.num_block_t} RRDB "
        f"blocks, {config.num_feat} features; {config.schedule.updates} updates with batches of {config.batch}, LR "
        f"patches of {config.lr_crop} pixels; perceptual loss: {config.perceptual.network}; weights of Eq. 9: "
        f"{weights}; source LR bicubic, with blur up to {blur:g} pixels and noise up to {noise:g}/255"
    )


ABLATION = AblationParts(
    title="USR-DA",
    config=USRDAConfig,
    load_preset=load_preset,
    check=_check,
    tables=tables,
    setting=_setting,
    paper_setting=(
        "NTIRE 2020 real-world SR, Track 1 (clean HR from DIV2K, degraded Flickr2K as real LR, judged on the 100 "
        "pictures of its validation set), LR patches of 128 pixels, batches of 8; it does not state crop or colour "
        "space, the number of updates, or the sizes of the networks"
    ),
)
