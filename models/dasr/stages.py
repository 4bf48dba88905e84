"""The three stages of DASR: what each trains or writes, from a configuration and sources of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import distributed
from models.checkpoint import write_whole
from models.config import dump_yaml, to_mapping
from models.dasr.build import WeightFiles, build_dsn_step, build_filter, build_srn_step, load_network
from models.dasr.config import DASRConfig, DSNConfig, SRNConfig
from models.dasr.maps import DistanceMap
from models.dasr.steps import DSNStep, SRNStep
from models.data import (
    BadImage,
    BadImages,
    Cached,
    FolderSource,
    InputError,
    MapSource,
    PatchDataset,
    Selected,
    Source,
    Stream,
    as_rgb,
    eight_bit_rgb,
    make_loader,
    to_pixels,
    to_tensor,
    write_picture,
)
from models.loop import Batch, History, Stage, train
from models.networks import DSN, DeResNet, PatchDiscriminator
from models.pictures import enlarge_nearest
from models.resize import bicubic
from models.run import Run
from models.tiling import enlarge_tiled, shrink_tiled
from models.validation import Example, validate

Pixels = NDArray[np.uint8]
HeldOut = Iterable[tuple[str, Pixels, Pixels]]

# How large pictures go through a network, in LR pixels; the overlap is the reach of the paper's down-sampling network.
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
    if distributed.is_main():
        (run.folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    histories = {}
    if which == "dsn" or (which == "all" and config.source == "dsn" and context.weights.dsn is None):
        run.say("[bold]Stage dsn[/]  the down-sampling network learns the look of the real LR pictures")
        histories["dsn"] = train_dsn(context)
    if which in ("maps", "all"):
        run.say("[bold]Stage maps[/]  an LR picture and a domain-distance map for every HR picture")
        write_pairs(context)
    if which in ("srn", "all"):
        run.say("[bold]Stage srn[/]  the SR network learns from those pairs and from real LR")
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
            tried = _tried(inputs.hr, config.scale * _TRIED_SIDE)
            pairs = ((name, None, _whole_cells(hr, config.scale)) for name, hr in tried)
        else:
            pairs = inputs.held_out()
        for name, lr, hr in pairs:
            yield Example(name, hr, {"bicubic": resized(hr, 1 / config.scale)}, lr)

    def infer(generator: nn.Module, hr: Pixels) -> Pixels:
        return to_pixels(step.generate(generator, to_tensor(hr, context.device)[None])[0][0])

    return _train("dsn", context, step, config.dsn, streams, examples, infer, border=0)


def write_pairs(context: Context) -> None:
    """Stage maps: for every HR picture a generated LR picture (8-bit PNG) and its domain-distance map (`.npy`).

    Pictures are streamed; those whose files exist are left as they are, so a stage that was stopped goes on where it
    was. One that cannot be used is named and left out, as `run.bad_images` says.
    """
    config, source, folder = context.config, context.inputs.hr, context.folder("generated")
    generate = load_generator(context) if config.source == "dsn" else _bicubic_lr(config.scale)
    distance = load_distance(context) if config.weighted and not config.maps.on_the_fly else None
    bad = BadImages(len(source), config.run.max_bad_images, context.run.say)
    mine = range(distributed.rank(), len(source), distributed.world_size())
    with context.run.progress() as progress:
        for index in progress.track(mine, description="maps"):
            name = source.names[index]
            lr_path, map_path = folder / "lr" / f"{name}.png", folder / "maps" / f"{name}.npy"
            if lr_path.exists() and (distance is None or map_path.exists()):
                continue
            try:
                hr = as_rgb(source.read(index))
            except InputError as error:
                if config.run.bad_images == "stop":
                    raise
                bad.note([BadImage(source.label(index), str(error))])
                continue
            with torch.inference_mode():
                lr = generate(to_tensor(_whole_cells(hr, config.scale), context.device)[None])
                if distance is not None:
                    weight = distance(lr)[0, 0].float().cpu().numpy()
                    write_whole(map_path, lambda path, weight=weight: np.save(path, weight))
            write_picture(lr_path, to_pixels(lr[0]))
    distributed.barrier()


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
            pairs = ((name, lr, None) for name, lr in _tried(inputs.real_lr, _TRIED_SIDE))
        else:
            pairs = inputs.held_out()
        for name, lr, hr in pairs:
            large = resized(lr, config.scale)
            shown = {"LR": enlarge_nearest(lr, config.scale), "bicubic": large}
            yield Example(name, lr, shown, hr)

    def infer(generator: nn.Module, lr: Pixels) -> Pixels:
        return enlarge_tiled(lambda x: generator(x.to(context.device)), config.scale, lr, **TILES)

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

    def update(done: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return step.pretrain(batch) if done < schedule.pretrain else step(batch)

    def batches(done: int) -> Iterator[Batch]:
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
    config = context.config
    path = context.weights.dsn or newest_weights(context.folder("dsn"), "generator")
    network = load_network(path, "--weights.dsn", (DSN, DeResNet), "generator").to(context.device).eval()
    bicubic_lr = _bicubic_lr(config.scale)

    def generate(hr: Tensor) -> Tensor:
        return network(bicubic_lr(hr) if config.dsn.input == "bicubic" else hr)

    return lambda hr: shrink_tiled(generate, config.scale, hr, **TILES)


def load_distance(context: Context) -> DistanceMap:
    """What computes domain-distance maps, from `--weights.dsn-discriminator` or from stage dsn.

    The view of the picture is the one that the discriminator was trained with, where its file says so.
    """
    config = context.config
    path = context.weights.dsn_discriminator or newest_weights(context.folder("dsn"), "discriminator")
    network = load_network(path, "--weights.dsn-discriminator", (PatchDiscriminator,), "discriminator")
    options = config.dsn.discriminator
    if network.frequency not in (None, options.frequency):
        raise InputError(
            f"the discriminator {path} was trained on {network.frequency}, the run says --frequency {options.frequency}"
        )
    view = build_filter(options)
    return DistanceMap(network, view, config.maps).to(context.device).requires_grad_(False).eval()


def newest_weights(folder: Path, name: str) -> Path:
    """The weights of a stage's last checkpoint, the averaged ones where there are some; InputError without any."""
    for kind in (f"{name}_ema", name):
        found = {int(path.name.split("_")[0]): path for path in (folder / "models").glob(f"[0-9]*_{kind}.safetensors")}
        if found:
            return found[max(found)]
    raise InputError(f"no weights of a {name} in {folder / 'models'}: train that stage first, or name a file")


def settings_of(config: DASRConfig, stage: str) -> dict[str, object]:
    """What must be the same when a stage is resumed: its own numbers, and none that only say how to go about it."""
    whole = to_mapping(config)
    own = {key: whole[key] for key in ("scale", "source", "domain_gap", "weighting", "maps", stage)}
    return {**own, "run": {key: whole["run"][key] for key in ("seed", "precision", "ema")}}


def _bicubic_lr(scale: int) -> Callable[[Tensor], Tensor]:
    return lambda hr: bicubic(hr, 1 / scale).clamp(0, 1)


def _cached(source: Source, config: DASRConfig) -> Source:
    return Cached(source, config.run.cache_megabytes * 2**20) if config.run.cache_megabytes else source


def _tried(source: Source, side: int) -> Iterator[tuple[str, Pixels]]:
    """The middles of the first pictures that can be read, as uint8 RGB."""
    found = 0
    for index in range(len(source)):
        try:
            pixels = eight_bit_rgb(source.read(index))
        except InputError:
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
