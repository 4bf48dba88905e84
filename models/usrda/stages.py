"""USR-DA's one stage: its patches, its step in the loop, and the pictures it draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from models.config import dump_yaml, to_mapping
from models.data import Inputs, Picture, Stream, to_pixels, to_tensor
from models.evaluate import pictures
from models.evaluate.examples import enlarged, middle, sr_examples, tried
from models.evaluate.validation import load_judge, validate
from models.networks import USRDAGenerator
from models.networks.vgg import VGG
from models.train import distributed
from models.train.batches import first_batch, loader, with_cache
from models.train.budget import count_run, fit
from models.train.job import TrainingJob
from models.train.loop import History, LoopConfig, Stage, train
from models.train.losses import SCALE_PATCHES, settle_scale
from models.train.memory import MemoryCount
from models.usrda.build import WeightFiles, assemble, build_step, random_features
from models.usrda.config import USRDAConfig
from models.usrda.synthesis import SourceDataset, SourceLR

# Features have collapsed when their mean |f| falls below this fraction of its highest value.
_COLLAPSED = 0.1

# Side of what is shown of an intermediate product, in LR pixels.
_SHOWN_SIDE = 96


USRDAJob = TrainingJob[USRDAConfig, WeightFiles]


def make_dataset(config: USRDAConfig, inputs: Inputs) -> SourceDataset:
    """Patches `hr` with `source_lr` made from them, and unrelated `real_lr`."""
    run = config.run
    streams = (
        Stream(("hr",), (with_cache(inputs.hr, run),), (config.crop,), config.augment),
        Stream(("real_lr",), (with_cache(inputs.real_lr, run),), (config.lr_crop,), config.augment),
    )
    source_lr = SourceLR(config.synthesis, config.scale, run.seed)
    return SourceDataset(
        streams,
        source_lr,
        run.seed,
        bad_images=run.bad_images,
        grey_images=run.grey_images,
        max_bad=run.max_bad_images,
    )


def train_usrda(job: USRDAJob) -> History:
    """Trains all networks to the end of the schedule. Raises what `models.train.loop.train` raises."""
    config, inputs, device = job.config, job.inputs, job.device
    run = fit_run(job)
    torch.manual_seed(config.run.seed)
    step = build_step(replace(config, run=run), job.weights, device)
    dataset = make_dataset(config, inputs)
    settle_scale(
        step.features,
        config.perceptual,
        lambda: first_batch(dataset, SCALE_PATCHES, config.run, device)["hr"],
        job.run.say,
    )
    folder = job.folder() / "visualization"

    judge = load_judge(job, config.scale, config.perceptual.network, config.perceptual.layers)

    def measure(generator: nn.Module, done: int) -> dict[str, float]:
        if config.restyles:
            draw_products(job, generator, folder / f"{done}_domains.png")
        examples = sr_examples(inputs, config.scale, config.lr_crop)
        return validate(
            lambda lr: enlarged(generator, config.scale, lr, device), examples, judge, folder / f"{done}.png"
        )

    stage = Stage(
        "usrda",
        networks={
            "generator": step.players.generator,
            **{f"discriminator_{name}": network for name, network in step.players.discriminator.items()},
        },
        optimizers={"generator": step.players.optimizer_g, "discriminators": step.players.optimizer_d},
        steps=config.schedule.updates,
        step=lambda done, batch: step(batch),
        losses=step.names,
        statistics=step.statistics,
        schedule=config.schedule.factor,
        batches=loader(dataset, config.batch, config.schedule.updates, config.run, device, "--batch"),
        images=dataset.total,
        pictures=dataset.fingerprints(),
        validate=measure,
        measures=judge.measures,
        watch=CollapseWatch(),
        accepted=lambda: job.record(dump_yaml(config)),
    )
    return train(stage, job.run, job.folder(), config.run, settings_of(config), device)


def fit_run(job: USRDAJob) -> LoopConfig:
    """How it trains within `run.memory`. Raises InputError if no step fits."""
    config, meta = job.config, torch.device("meta")
    shapes = config.batch_shapes(max(1, config.batch // distributed.world_size()))

    def count(run: LoopConfig) -> MemoryCount:
        tried = replace(config, run=replace(run, compile=False))
        with meta:
            features = random_features(tried)
        return count_run(assemble(tried, features, job.weights, meta), shapes, run, job.device)

    return fit(config.run, config.perceptual.network in VGG, count, "usrda", job.run.say)


class CollapseWatch:
    """Warns, once, when features shrink: small ones meet alignment and feature identity most easily."""

    def __init__(self) -> None:
        self._highest, self._warned = 0.0, False

    def __call__(self, means: Mapping[str, float]) -> str:
        scale = means["scale_s"]
        self._highest = max(self._highest, scale)
        if self._warned or scale >= _COLLAPSED * self._highest:
            return ""
        self._warned = True
        return (
            f"the features' mean |f| is {scale:.3g}, it was {self._highest:.3g}: they collapse. "
            "Lower --loss.align and --loss.idt, or try --detach-source."
        )


@torch.inference_mode()
def draw_products(job: USRDAJob, generator: nn.Module, path: Path) -> None:
    """The intermediate products of the paper's Figure 5, of the first training pictures of either domain.

    A row is one picture of each domain: x_s, x_s->t and y of the source domain, x_t, x_t->t and y of the target domain.
    """
    assert isinstance(generator, USRDAGenerator)
    config, scale = job.config, job.config.scale
    source_lr = SourceLR(config.synthesis, scale, config.run.seed)
    # Both are cut to one size, so that they fit in one row.
    hr = [pixels for _, pixels in tried(job.inputs.hr, config.crop, scale * _SHOWN_SIDE)]
    lr = [pixels for _, pixels in tried(job.inputs.real_lr, config.lr_crop, _SHOWN_SIDE)]
    if not hr or not lr:
        return  # reading patches reports why
    side = min(min(each.shape[0] // by, each.shape[1] // by) for many, by in ((hr, scale), (lr, 1)) for each in many)
    rows = []
    for number, (large, small) in enumerate(zip(hr, lr, strict=False)):
        x_s = to_pixels(source_lr(to_tensor(middle(large, scale * side)), number))
        cells = []
        for name, x in (("s", x_s), ("t", middle(small, side))):
            restyled, y = _products(generator, x, job.device)
            for title, pixels in ((f"x_{name}", x), (f"x_{name}→t", restyled)):
                cells.append(pictures.SheetCell(title, pictures.enlarge_nearest(pixels, scale), ""))
            cells.append(pictures.SheetCell(f"y from x_{name}", y, ""))
        rows.append((str(number + 1), cells))
    pictures.save_sheet(path, rows, "s: source domain, synthesised from HR; t: target domain, real LR of other scenes")


def _products(generator: USRDAGenerator, x: Picture, device: torch.device) -> tuple[Picture, Picture]:
    """x->t and y in one piece: what is shown is small."""
    given = to_tensor(x, device)[None]
    with torch.compiler.set_stance("force_eager"):
        features = generator.encoder(given)
        restyled, y = generator.to_target(features, given), generator.super_resolve(features, given)
    return to_pixels(restyled[0]), to_pixels(y[0])


def settings_of(config: USRDAConfig) -> dict[str, object]:
    """The settings that must not change when the run is resumed: those that affect its results."""
    whole = to_mapping(config)
    del whole["schedule"]["steps"]  # a longer training is still the same run
    return {**whole, "run": {key: whole["run"][key] for key in ("seed", "precision", "ema")}}
