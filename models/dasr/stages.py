"""The three stages of DASR: what each trains or writes, from a configuration and sources of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from models.config import dump_yaml, to_mapping
from models.dasr.build import (
    WeightFiles,
    build_dsn_step,
    build_filter,
    build_srn_step,
    check_scale_of_file,
    random_distance,
)
from models.dasr.config import DASRConfig, DSNConfig, SRNConfig
from models.dasr.maps import DistanceMap
from models.dasr.steps import DSNStep, SRNStep
from models.data import (
    BadImages,
    FolderSource,
    InputError,
    Inputs,
    MapSource,
    PatchDataset,
    Picture,
    Selected,
    Source,
    Stream,
    Unusable,
    as_rgb,
    check_names,
    fingerprint,
    read_usable,
    to_pixels,
    to_tensor,
    write_picture,
)
from models.data.files import write_text, write_whole
from models.data.resize import bicubic
from models.evaluate.examples import TILES, TRIED_SIDE, Example, enlarged, resized, sr_examples, tried
from models.evaluate.tiling import shrink_tiled
from models.evaluate.validation import load_judge, validate
from models.networks import DSN, DeResNet, PatchDiscriminator
from models.networks.vgg import VGG
from models.networks.weight_options import load_network
from models.train import distributed
from models.train.batches import first_batch, loader, with_cache
from models.train.budget import count_run, fit
from models.train.checkpoint import newest_weights
from models.train.job import TrainingJob
from models.train.loop import History, LoopConfig, Stage, train
from models.train.losses import SCALE_PATCHES, settle_scale
from models.train.memory import MemoryCount
from models.train.run import set_aside

DASRJob = TrainingJob[DASRConfig, WeightFiles]


def run_stages(job: DASRJob, which: Literal["dsn", "maps", "srn", "all"]) -> dict[str, History]:
    """Runs one stage, or all that the configuration needs; returns the history of those that train."""
    run, config = job.run, job.config
    check_names(job.inputs.hr)
    histories = {}
    trains_dsn = which == "dsn" or (which == "all" and config.source == "dsn" and job.weights.dsn is None)
    # Before any stage trains: a later one that does not fit is known at once.
    dsn_run = fit_run(job, "dsn") if trains_dsn else None
    srn_run = fit_run(job, "srn") if which in ("srn", "all") else None
    if trains_dsn:
        run.say("Stage dsn: the down-sampling network learns the look of the real LR pictures", style="bold")
        histories["dsn"] = train_dsn(job, dsn_run)
    if which in ("maps", "all"):
        run.say("Stage maps: an LR picture and a domain-distance map for every HR picture", style="bold")
        write_pairs(job)
    if which in ("srn", "all"):
        run.say("Stage srn: the SR network learns from those pairs and from real LR", style="bold")
        histories["srn"] = train_srn(job, srn_run)
    return histories


def dsn_streams(config: DASRConfig, inputs: Inputs) -> list[Stream]:
    """The patches of stage dsn."""
    dsn = config.dsn
    return [
        Stream(("hr",), (with_cache(inputs.hr, config.run),), (dsn.crop,), dsn.augment),
        Stream(("real_lr",), (with_cache(inputs.real_lr, config.run),), (dsn.crop // config.scale,), dsn.augment),
    ]


def fit_run(job: DASRJob, stage: Literal["dsn", "srn"]) -> LoopConfig:
    """How a stage trains within `run.memory`. Raises InputError if no step fits."""
    config, meta = job.config, torch.device("meta")
    options = config.dsn if stage == "dsn" else config.srn
    shapes = config.batch_shapes(stage, max(1, options.batch // distributed.world_size()))

    def count(run: LoopConfig) -> MemoryCount:
        tried = replace(config, run=replace(run, compile=False))
        step: DSNStep | SRNStep
        if stage == "dsn":
            step = build_dsn_step(tried, job.weights, meta)
        else:
            step = build_srn_step(tried, job.weights, meta, random_distance(tried, meta))
        return count_run(step, shapes, run, job.device)

    return fit(config.run, options.perceptual.network in VGG, count, stage, job.run.say)


def train_dsn(job: DASRJob, run: LoopConfig | None = None) -> History:
    """Stage dsn: the down-sampling network, and the discriminator that will judge its pictures.

    `run` is what `fit_run` gave, if it was called before.
    """
    config, inputs, run = job.config, job.inputs, run or fit_run(job, "dsn")
    torch.manual_seed(config.run.seed)
    step = build_dsn_step(replace(config, run=run), job.weights, job.device)
    streams = dsn_streams(config, inputs)

    def examples() -> Iterator[Example]:
        if inputs.held_out is None:
            pictures = tried(inputs.hr, config.dsn.crop, config.scale * TRIED_SIDE)
            pairs = ((name, None, cut_to(hr, config.scale)) for name, hr in pictures)
        else:
            pairs = inputs.held_out()
        for name, lr, hr in pairs:
            yield Example(name, hr, {"bicubic": resized(hr, 1 / config.scale)}, lr)

    def infer(generator: nn.Module, hr: Picture) -> Picture:
        image = to_tensor(hr, job.device)[None]
        # Not the compiled one, which would be recompiled for every size.
        return to_pixels(
            shrink_tiled(lambda x: step.generate(generator.forward, x)[0], config.scale, image, **TILES)[0]
        )

    return _train("dsn", job, step, config.dsn, streams, examples, infer, border=0)


def write_pairs(job: DASRJob) -> None:
    """Stage maps: for every HR picture a generated LR picture (8-bit PNG) and its domain-distance map (`.npy`).

    Pictures are read one at a time; those whose files exist are skipped, so that an interrupted stage resumes where
    it stopped. A picture that stage srn could not use is named and left out, as `run.bad_images` and `run.grey_images`
    say.
    """
    config, source, folder = job.config, job.inputs.hr, job.folder("generated")
    generate = load_generator(job) if config.source == "dsn" else _bicubic_lr(config.scale)
    distance = load_distance(job) if config.weighted and not config.maps.on_the_fly else None
    least = max(config.srn.crop, config.scale * (distance.margin + 1) if distance is not None else 0)
    job.record(dump_yaml(config))
    _set_aside_other_pairs(job, folder)
    bad = BadImages(len(source), config.run.max_bad_images, job.run.say_anywhere)
    mine = range(distributed.rank(), len(source), distributed.world_size())
    with job.run.progress() as progress:
        for index in progress.track(mine, description="maps"):
            name = source.names[index]
            lr_path, map_path = folder / "lr" / f"{name}.png", folder / "maps" / f"{name}.npy"
            if lr_path.exists() and (distance is None or map_path.exists()):
                continue
            try:
                hr = as_rgb(read_usable(source, index, least, config.run.bad_images, config.run.grey_images))
            except Unusable as error:
                bad.note([error.to_skip()])
                continue
            with torch.inference_mode():
                lr, weight = make_pair(generate, distance, to_tensor(cut_to(hr, config.scale), job.device))
                if weight is not None:
                    values = weight.float().cpu().numpy()
                    write_whole(map_path, lambda path, values=values: np.save(path, values))
            write_picture(lr_path, to_pixels(lr))
            distributed.get_on()
    distributed.barrier()
    job.run.say(f"  {len(list((folder / 'lr').rglob('*.png')))} of {len(source)} pictures have their pair")


def make_pair(
    generate: Callable[[Tensor], Tensor], distance: DistanceMap | None, hr: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The LR picture (3, h, w) of an HR picture (3, sh, sw), and its distance map before anything is rounded."""
    lr = generate(hr[None])
    return lr[0], None if distance is None else distance(lr)[0, 0]


def _set_aside_other_pairs(job: DASRJob, folder: Path) -> None:
    """Sets aside pairs that were made of other pictures, or with other settings or weights."""
    config = to_mapping(job.config)
    made = {key: config[key] for key in ("scale", "source", "maps")}
    made["hr"] = fingerprint(job.inputs.hr)
    if job.config.source == "dsn":
        made |= {"input": config["dsn"]["input"], "view": config["dsn"]["discriminator"]["frequency"]}
        made |= {"weights": [_fingerprint(path) for path in _dsn_weights(job) if path is not None]}
    record = folder / "made_with.yaml"
    text = yaml.safe_dump(made, sort_keys=False)
    other = not record.exists() or record.read_text("utf-8") != text
    if distributed.is_main() and other and any(folder.glob("*/*")):
        job.run.say(f"  {folder} holds pairs made of other pictures, or with other settings or weights: set aside")
        set_aside(folder)
    if distributed.is_main():
        folder.mkdir(exist_ok=True)
        write_text(record, text)
    distributed.barrier()


def _dsn_weights(job: DASRJob) -> tuple[Path, Path | None]:
    """Files of the down-sampling network and its discriminator; only maps need the latter."""
    config, named, updates = job.config, job.weights, job.config.dsn.schedule.updates
    generator = named.dsn or newest_weights(job.folder("dsn"), "generator", updates)
    discriminator = named.dsn_discriminator
    if discriminator is None and (config.weighted or named.dsn is None):
        discriminator = newest_weights(job.folder("dsn"), "discriminator", updates)
    return generator, discriminator


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def srn_streams(config: DASRConfig, inputs: Inputs, generated: Path) -> list[Stream]:
    """The patches of stage srn: pairs from stage maps, and real LR with unrelated HR where they are used."""
    srn, side = config.srn, config.srn.crop // config.scale
    lr = FolderSource(generated / "lr", nested=True)  # a database's keys may have folders
    # HR pictures that could not be used have no LR picture.
    aligned: list[tuple[str, Source, int]] = [("fake_lr", lr, side), ("hr", Selected(inputs.hr, lr.names), srn.crop)]
    if config.weighted and not config.maps.on_the_fly:
        stride = build_filter(config.dsn.discriminator).stride
        aligned.append(("weight", Selected(MapSource(generated / "maps", nested=True), lr.names), side // stride))
    fields, sources, sides = zip(*aligned, strict=True)
    streams = [Stream(fields, tuple(with_cache(source, config.run) for source in sources), sides, srn.augment)]
    if config.domain_gap:
        streams += [
            Stream(("real_lr",), (with_cache(inputs.real_lr, config.run),), (side,), srn.augment),
            Stream(("other_hr",), (with_cache(inputs.hr, config.run),), (srn.crop,), srn.augment),
        ]
    return streams


def train_srn(job: DASRJob, run: LoopConfig | None = None) -> History:
    """Stage srn: the SR network; `run` as in `train_dsn`."""
    config, inputs, run = job.config, job.inputs, run or fit_run(job, "srn")
    torch.manual_seed(config.run.seed)
    distance = load_distance(job) if config.weighted and config.maps.on_the_fly else None
    step = build_srn_step(replace(config, run=run), job.weights, job.device, distance)
    streams = srn_streams(config, inputs, job.folder("generated"))

    def examples() -> Iterator[Example]:
        return sr_examples(inputs, config.scale, config.srn.crop // config.scale)

    def infer(generator: nn.Module, lr: Picture) -> Picture:
        return enlarged(generator, config.scale, lr, job.device)

    return _train("srn", job, step, config.srn, streams, examples, infer, border=config.scale)


def _train(
    name: str,
    job: DASRJob,
    step: DSNStep | SRNStep,
    options: DSNConfig | SRNConfig,
    streams: Sequence[Stream],
    examples: Callable[[], Iterable[Example]],
    infer: Callable[[nn.Module, Picture], Picture],
    border: int,
) -> History:
    """Puts a step, its patches and its validation together and trains to the end of the schedule."""
    config, device, run = job.config, job.device, job.config.run
    dataset = PatchDataset(streams, run.seed, run.bad_images, run.grey_images, run.max_bad_images)
    settle_scale(
        step.features,
        options.perceptual,
        lambda: step.compared(first_batch(dataset, SCALE_PATCHES, run, device)),
        job.run.say,
    )
    schedule = options.schedule

    def update(done: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return step.pretrain(batch) if done < schedule.pretrain else step(batch)

    judge = load_judge(job, border, options.perceptual.network, options.perceptual.layers)

    def measure(generator: nn.Module, done: int) -> dict[str, float]:
        sheet = job.folder(name) / "visualization" / f"{done}.png"
        return validate(lambda given: infer(generator, given), examples(), judge, sheet)

    stage = Stage(
        name,
        networks={"generator": step.players.generator, "discriminator": step.players.discriminator},
        optimizers={"generator": step.players.optimizer_g, "discriminator": step.players.optimizer_d},
        steps=schedule.updates,
        step=update,
        losses=step.names,
        schedule=schedule.factor,
        batches=loader(dataset, options.batch, schedule.updates, run, device, f"--{name}.batch"),
        images=dataset.total,
        pictures=dataset.fingerprints(),
        validate=measure,
        measures=judge.measures,
        accepted=lambda: job.record(dump_yaml(config)),
        phase=lambda done: done < schedule.pretrain,
    )
    return train(stage, job.run, job.folder(name), run, settings_of(config, name), device)


def load_generator(job: DASRJob) -> Callable[[Tensor], Tensor]:
    """The trained down-sampling network as a function of HR pictures, from `--weights.dsn` or from stage dsn."""
    config, path = job.config, _dsn_weights(job)[0]
    network = load_network(path, "--weights.dsn", (DSN, DeResNet), "generator").to(job.device).eval()
    check_scale_of_file(network, "--weights.dsn", 1 if config.dsn.input == "bicubic" else config.scale)
    bicubic_lr = _bicubic_lr(config.scale)

    def generate(hr: Tensor) -> Tensor:
        return network(bicubic_lr(hr) if config.dsn.input == "bicubic" else hr)

    return lambda hr: shrink_tiled(generate, config.scale, hr, **TILES)


def load_distance(job: DASRJob) -> DistanceMap:
    """What computes domain-distance maps, from `--weights.dsn-discriminator` or from stage dsn.

    Its view of a picture is the one that its file names or, if that names none, the configuration's. Raises
    InputError if the two disagree.
    """
    options, path = job.config.dsn.discriminator, _dsn_weights(job)[1]
    assert path is not None  # maps are made where losses are weighted
    network = load_network(path, "--weights.dsn-discriminator", (PatchDiscriminator,), "discriminator")
    if network.frequency is not None:
        if network.frequency != options.frequency:
            raise InputError(f"{path} was trained on {network.frequency}, the run says --frequency {options.frequency}")
        if network.frequency_contrast != options.frequency_contrast:
            raise InputError(
                f"{path} was trained with a contrast of {network.frequency_contrast}, the run says "
                f"--dsn.discriminator.frequency-contrast {options.frequency_contrast}"
            )
        options = replace(options, frequency_kernel=network.frequency_kernel)
    distance = DistanceMap(network, build_filter(options), job.config.maps)
    return distance.to(job.device).requires_grad_(False).eval()


def settings_of(config: DASRConfig, stage: str) -> dict[str, object]:
    """The settings that must not change when a stage is resumed: those that affect its results."""
    whole = to_mapping(config)
    del whole[stage]["schedule"]["steps"]  # a longer training is still the same run
    own = {key: whole[key] for key in ("scale", "source", "domain_gap", "weighting", "maps", stage)}
    return {**own, "run": {key: whole["run"][key] for key in ("seed", "precision", "ema")}}


def _bicubic_lr(scale: int) -> Callable[[Tensor], Tensor]:
    return lambda hr: bicubic(hr, 1 / scale).clamp(0, 1)


def cut_to(hr: Picture, scale: int) -> Picture:
    """The HR picture without what is left over at its right and lower border: its sides become multiples of `scale`."""
    height, width = (side - side % scale for side in hr.shape[:2])
    return hr[:height, :width]
