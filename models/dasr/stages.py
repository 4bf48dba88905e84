"""The three stages of DASR: what each trains or writes, from a configuration and sources of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from models import distributed
from models.checkpoint import TrainingStates, write_whole
from models.config import dump_yaml, to_mapping
from models.dasr.build import WeightFiles, build_dsn_step, build_filter, build_srn_step, check_scale
from models.dasr.config import DASRConfig, DSNConfig, SRNConfig
from models.dasr.maps import DistanceMap
from models.dasr.steps import DSNStep, SRNStep
from models.data import (
    BadImages,
    Cached,
    FolderSource,
    InputError,
    MapSource,
    PatchDataset,
    Selected,
    Source,
    Stream,
    Unusable,
    as_rgb,
    eight_bit_rgb,
    make_loader,
    read_usable,
    to_pixels,
    to_tensor,
    write_picture,
)
from models.loop import Batch, History, Stage, train
from models.networks import DSN, DeResNet, PatchDiscriminator
from models.pictures import enlarge_nearest
from models.resize import bicubic
from models.run import Run, set_aside
from models.tiling import enlarge_tiled, shrink_tiled
from models.validation import Example, Pixels, validate
from models.weight_files import load_network

HeldOut = Iterable[tuple[str, Pixels, Pixels]]

# How large pictures go through a network, in LR pixels; at x4 the overlap is the reach of the paper's DSN.
TILES = {"tile": 256, "overlap": 16}

# What is tried on training pictures where nothing is held out: how many, and how large at most (LR pixels).
_TRIED, _TRIED_SIDE = 3, 192


@dataclass(frozen=True)
class Inputs:
    """Sources of pictures.

    Attributes:
        hr: clean HR pictures.
        real_lr: LR pictures of the target domain, of other scenes.
        held_out: gives the held-out (name, LR, HR) of the target domain, one after the other; None if there are none.
    """

    hr: Source
    real_lr: Source
    held_out: Callable[[], HeldOut] | None = None


@dataclass(frozen=True)
class Context:
    """What every stage works with. A stage lives in a folder of its own and takes what the one before left in its."""

    config: DASRConfig
    inputs: Inputs
    weights: WeightFiles
    run: Run
    device: torch.device

    def folder(self, stage: str) -> Path:
        return self.run.folder / stage


def run_stages(context: Context, which: Literal["dsn", "maps", "srn", "all"]) -> dict[str, History]:
    """Runs one stage, or all that the configuration needs; gives the history of those that train."""
    run, config = context.run, context.config
    _check_names(context.inputs.hr)
    if distributed.is_main():
        (run.folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    histories = {}
    if which == "dsn" or (which == "all" and config.source == "dsn" and context.weights.dsn is None):
        run.say("Stage dsn: the down-sampling network learns the look of the real LR pictures", style="bold")
        histories["dsn"] = train_dsn(context)
    if which in ("maps", "all"):
        run.say("Stage maps: an LR picture and a domain-distance map for every HR picture", style="bold")
        write_pairs(context)
    if which in ("srn", "all"):
        run.say("Stage srn: the SR network learns from those pairs and from real LR", style="bold")
        histories["srn"] = train_srn(context)
    return histories


def dsn_streams(config: DASRConfig, inputs: Inputs) -> list[Stream]:
    """The patches of stage dsn."""
    dsn = config.dsn
    return [
        Stream(("hr",), (_cached(inputs.hr, config),), (dsn.crop,), dsn.augment),
        Stream(("real_lr",), (_cached(inputs.real_lr, config),), (dsn.crop // config.scale,), dsn.augment),
    ]


def train_dsn(context: Context) -> History:
    """Stage dsn: the down-sampling network, and the discriminator that will judge its pictures."""
    config, inputs = context.config, context.inputs
    torch.manual_seed(config.run.seed)
    step = build_dsn_step(config, context.weights, context.device)
    streams = dsn_streams(config, inputs)

    def examples() -> Iterator[Example]:
        if inputs.held_out is None:
            tried = _tried(inputs.hr, config.dsn.crop, config.scale * _TRIED_SIDE)
            pairs = ((name, None, _whole_cells(hr, config.scale)) for name, hr in tried)
        else:
            pairs = inputs.held_out()
        for name, lr, hr in pairs:
            yield Example(name, hr, {"bicubic": resized(hr, 1 / config.scale)}, lr)

    def infer(generator: nn.Module, hr: Pixels) -> Pixels:
        image = to_tensor(hr, context.device)[None]
        # Not the compiled one, which would be compiled anew for every size.
        return to_pixels(
            shrink_tiled(lambda x: step.generate(generator.forward, x)[0], config.scale, image, **TILES)[0]
        )

    return _train("dsn", context, step, config.dsn, streams, examples, infer, border=0)


def write_pairs(context: Context) -> None:
    """Stage maps: for every HR picture a generated LR picture (8-bit PNG) and its domain-distance map (`.npy`).

    Pictures are streamed; those whose files exist are left as they are, so a stage that was stopped goes on where it
    was. One that stage srn could not use is named and left out, as `run.bad_images` and `run.grey_images` say.
    """
    config, source, folder = context.config, context.inputs.hr, context.folder("generated")
    generate = load_generator(context) if config.source == "dsn" else _bicubic_lr(config.scale)
    distance = load_distance(context) if config.weighted and not config.maps.on_the_fly else None
    least = max(config.srn.crop, config.scale * (distance.margin + 1) if distance is not None else 0)
    _set_aside_other_pairs(context, folder)
    bad = BadImages(len(source), config.run.max_bad_images, context.run.say_anywhere)
    mine = range(distributed.rank(), len(source), distributed.world_size())
    with context.run.progress() as progress:
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
                lr = generate(to_tensor(_whole_cells(hr, config.scale), context.device)[None])
                if distance is not None:
                    weight = distance(lr)[0, 0].float().cpu().numpy()
                    write_whole(map_path, lambda path, weight=weight: np.save(path, weight))
            write_picture(lr_path, to_pixels(lr[0]))
    distributed.barrier()
    context.run.say(f"  {len(list((folder / 'lr').glob('*.png')))} of {len(source)} pictures have their pair")


def _set_aside_other_pairs(context: Context, folder: Path) -> None:
    """Keeps pairs that were made with other settings or weights under another name."""
    config = to_mapping(context.config)
    made = {key: config[key] for key in ("scale", "source", "maps")}
    if context.config.source == "dsn":
        made |= {"input": config["dsn"]["input"], "view": config["dsn"]["discriminator"]["frequency"]}
        made |= {"weights": [_fingerprint(path) for path in _dsn_weights(context) if path is not None]}
    record = folder / "made_with.yaml"
    text = yaml.safe_dump(made, sort_keys=False)
    if distributed.is_main() and folder.exists() and (not record.exists() or record.read_text("utf-8") != text):
        context.run.say(f"  {folder} holds pairs made with other settings or weights: set aside")
        set_aside(folder)
    if distributed.is_main():
        folder.mkdir(exist_ok=True)
        write_whole(record, lambda path: path.write_text(text, "utf-8"))
    distributed.barrier()


def _dsn_weights(context: Context) -> tuple[Path, Path | None]:
    """Files of the down-sampling network and its discriminator; only maps need the latter."""
    config, named = context.config, context.weights
    generator = named.dsn or newest_weights(context.folder("dsn"), "generator", config.dsn)
    discriminator = named.dsn_discriminator
    if discriminator is None and (config.weighted or named.dsn is None):
        discriminator = newest_weights(context.folder("dsn"), "discriminator", config.dsn)
    return generator, discriminator


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def srn_streams(config: DASRConfig, inputs: Inputs, generated: Path) -> list[Stream]:
    """The patches of stage srn: pairs that stage maps left, and real LR with unrelated HR where they are used."""
    srn, side = config.srn, config.srn.crop // config.scale
    lr = FolderSource(generated / "lr")
    # An HR picture that could not be used has no LR picture.
    aligned: list[tuple[str, Source, int]] = [("fake_lr", lr, side), ("hr", Selected(inputs.hr, lr.names), srn.crop)]
    if config.weighted and not config.maps.on_the_fly:
        stride = build_filter(config.dsn.discriminator).stride
        aligned.append(("weight", Selected(MapSource(generated / "maps"), lr.names), side // stride))
    fields, sources, sides = zip(*aligned, strict=True)
    streams = [Stream(fields, tuple(_cached(source, config) for source in sources), sides, srn.augment)]
    if config.domain_gap:
        streams += [
            Stream(("real_lr",), (_cached(inputs.real_lr, config),), (side,), srn.augment),
            Stream(("other_hr",), (_cached(inputs.hr, config),), (srn.crop,), srn.augment),
        ]
    return streams


def train_srn(context: Context) -> History:
    """Stage srn: the SR network."""
    config, inputs = context.config, context.inputs
    torch.manual_seed(config.run.seed)
    distance = load_distance(context) if config.weighted and config.maps.on_the_fly else None
    step = build_srn_step(config, context.weights, context.device, distance)
    streams = srn_streams(config, inputs, context.folder("generated"))

    def examples() -> Iterator[Example]:
        if inputs.held_out is None:
            pairs = (
                (name, lr, None) for name, lr in _tried(inputs.real_lr, config.srn.crop // config.scale, _TRIED_SIDE)
            )
        else:
            pairs = inputs.held_out()
        for name, lr, hr in pairs:
            large = resized(lr, config.scale)
            shown = {"LR": enlarge_nearest(lr, config.scale), "bicubic": large}
            yield Example(name, lr, shown, hr)

    def infer(generator: nn.Module, lr: Pixels) -> Pixels:
        return enlarge_tiled(lambda x: generator.forward(x.to(context.device)), config.scale, lr, **TILES)

    return _train("srn", context, step, config.srn, streams, examples, infer, border=config.scale)


def _train(
    name: str,
    context: Context,
    step: DSNStep | SRNStep,
    options: DSNConfig | SRNConfig,
    streams: Sequence[Stream],
    examples: Callable[[], Iterable[Example]],
    infer: Callable[[nn.Module, Pixels], Pixels],
    border: int,
) -> History:
    """Puts a step, its patches and its validation together and trains to the end of the schedule."""
    config, device, run = context.config, context.device, context.config.run
    dataset = PatchDataset(streams, run.seed, run.bad_images, run.grey_images, run.max_bad_images)
    schedule = options.schedule
    steps = schedule.pretrain + schedule.steps
    if options.batch % distributed.world_size():
        raise InputError(f"--{name}.batch of {options.batch} cannot be shared out to {distributed.world_size()} ranks")

    def update(done: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return step.pretrain(batch) if done < schedule.pretrain else step(batch)

    def batches(done: int) -> Generator[Batch, None, None]:
        return make_loader(
            dataset,
            options.batch,
            done,
            steps - done,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=run.workers,
            pin_memory=device.type == "cuda",
        )

    def judge(generator: nn.Module, done: int) -> dict[str, float]:
        sheet = context.folder(name) / "visualization" / f"{done}.png"
        return validate(lambda given: infer(generator, given), examples(), border, sheet)

    stage = Stage(
        name,
        networks={"generator": step.players.generator, "discriminator": step.players.discriminator},
        optimizers={"generator": step.players.optimizer_g, "discriminator": step.players.optimizer_d},
        steps=steps,
        step=update,
        losses=step.names,
        schedule=schedule.factor,
        batches=batches,
        images=dataset.total,
        validate=judge,
        measures=("psnr", "ssim"),
    )
    return train(stage, context.run, context.folder(name), run, settings_of(config, name), device)


def load_generator(context: Context) -> Callable[[Tensor], Tensor]:
    """The trained down-sampling network as a function of HR pictures, from `--weights.dsn` or from stage dsn."""
    config, path = context.config, _dsn_weights(context)[0]
    network = load_network(path, "--weights.dsn", (DSN, DeResNet), "generator").to(context.device).eval()
    check_scale(network, "--weights.dsn", 1 if config.dsn.input == "bicubic" else config.scale)
    bicubic_lr = _bicubic_lr(config.scale)

    def generate(hr: Tensor) -> Tensor:
        return network(bicubic_lr(hr) if config.dsn.input == "bicubic" else hr)

    return lambda hr: shrink_tiled(generate, config.scale, hr, **TILES)


def load_distance(context: Context) -> DistanceMap:
    """What computes domain-distance maps, from `--weights.dsn-discriminator` or from stage dsn.

    Its view of a picture is the one that its file names; a file that names none takes the configuration's. Raises
    InputError if the two disagree.
    """
    options, path = context.config.dsn.discriminator, _dsn_weights(context)[1]
    assert path is not None  # maps are made where losses are weighted
    network = load_network(path, "--weights.dsn-discriminator", (PatchDiscriminator,), "discriminator")
    if network.frequency is not None:
        if network.frequency != options.frequency:
            raise InputError(f"{path} was trained on {network.frequency}, the run says --frequency {options.frequency}")
        options = replace(options, frequency_kernel=network.frequency_kernel)
    distance = DistanceMap(network, build_filter(options), context.config.maps)
    return distance.to(context.device).requires_grad_(False).eval()


def newest_weights(folder: Path, name: str, options: DSNConfig | SRNConfig) -> Path:
    """The weights that a finished stage left, the averaged ones where there are some.

    Raises InputError if the stage was not trained, or not to its end.
    """
    steps = TrainingStates(folder / "training_states", keep=1).steps()
    if not steps:
        raise InputError(f"no weights of a {name} in {folder / 'models'}: train that stage first, or name a file")
    whole = options.schedule.pretrain + options.schedule.steps
    if steps[-1] < whole:
        raise InputError(f"stage {folder.name} stopped behind update {steps[-1]} of {whole}: train it to its end first")
    averaged = folder / "models" / f"{steps[-1]}_{name}_ema.safetensors"
    return averaged if averaged.exists() else averaged.with_name(f"{steps[-1]}_{name}.safetensors")


def _check_names(source: Source) -> None:
    seen: dict[str, int] = {}
    for index, name in enumerate(source.names):
        if name in seen:
            raise InputError(f"two pictures are named {name}: {source.label(seen[name])} and {source.label(index)}")
        seen[name] = index


def settings_of(config: DASRConfig, stage: str) -> dict[str, object]:
    """What must be the same when a stage is resumed: its own numbers, and none that only say how to go about it."""
    whole = to_mapping(config)
    del whole[stage]["schedule"]["steps"]  # training longer is no other run
    own = {key: whole[key] for key in ("scale", "source", "domain_gap", "weighting", "maps", stage)}
    return {**own, "run": {key: whole["run"][key] for key in ("seed", "precision", "ema")}}


def _bicubic_lr(scale: int) -> Callable[[Tensor], Tensor]:
    return lambda hr: bicubic(hr, 1 / scale).clamp(0, 1)


def _cached(source: Source, config: DASRConfig) -> Source:
    return Cached(source, config.run.cache_megabytes * 2**20) if config.run.cache_megabytes else source


def _tried(source: Source, least: int, side: int) -> Iterator[tuple[str, Pixels]]:
    """The middles of the first pictures that can be read and have `least` pixels a side, as uint8 RGB."""
    found = 0
    for index in range(len(source)):
        try:
            pixels = eight_bit_rgb(source.read(index))
        except InputError:
            continue
        if min(pixels.shape[:2]) < least:
            continue
        top, left = (max(0, (whole - side) // 2) for whole in pixels.shape[:2])
        yield source.names[index], pixels[top : top + side, left : left + side]
        found += 1
        if found == _TRIED:
            return


def _whole_cells(hr: Pixels, scale: int) -> Pixels:
    """The HR picture without what does not make a whole place of a Haar map: sides are multiples of 2 * scale."""
    height, width = (side - side % (2 * scale) for side in hr.shape[:2])
    return hr[:height, :width]


def resized(pixels: Pixels, scale: float) -> Pixels:
    """The bicubic picture, rounded to 8 bits."""
    return to_pixels(bicubic(to_tensor(pixels)[None], scale)[0])
