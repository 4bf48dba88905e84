"""USR-DA in miniature, for `python -m models demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from models.commands.demo.parts import DemoJob, DemoParts, Trained
from models.commands.demo.timing import Work
from models.networks import USRDAGenerator, load_weights
from models.train.batches import first_batch
from models.train.checkpoint import newest_weights
from models.usrda.build import WeightFiles, build_step
from models.usrda.config import USRDAConfig, check_weights, load_preset
from models.usrda.stages import USRDAJob, draw_products, make_dataset, train_usrda


def _training_job(job: DemoJob[USRDAConfig]) -> USRDAJob:
    return USRDAJob(job.config, job.domains.inputs, WeightFiles(**vars(job.weights)), job.run, job.device)


def _trained(job: DemoJob[USRDAConfig]) -> USRDAGenerator:
    network = load_weights(newest_weights(job.run.folder, "generator", job.config.schedule.updates)).to(job.device)
    assert isinstance(network, USRDAGenerator)
    return network


def _train(job: DemoJob[USRDAConfig]) -> Trained:
    training = _training_job(job)
    history = train_usrda(training)
    torch.manual_seed(job.config.run.seed)  # the network as it was before its first update
    before = build_step(job.config, training.weights, job.device).players.generator
    return Trained(before, _trained(job), {"usrda": history})


def _timed(job: DemoJob[USRDAConfig]) -> Sequence[tuple[str, Work, int]]:
    # Separate networks: timing must not train the judged ones any further.
    training = _training_job(job)
    step = build_step(job.config, training.weights, job.device)
    batch = first_batch(make_dataset(job.config, training.inputs), job.config.batch, job.config.run, job.device)
    plain, cast = (step.in_precision(precision) for precision in (None, torch.bfloat16))
    return (("whole step", lambda: plain(batch), 1), ("whole step, bf16 autocast", lambda: cast(batch), 1))


def _draw(job: DemoJob[USRDAConfig], folder: Path) -> None:
    """`domains.png`, the intermediate products of the trained networks."""
    if job.config.restyles:
        draw_products(_training_job(job), _trained(job), folder / "domains.png")


DEMO = DemoParts(
    title="USR-DA",
    config=USRDAConfig,
    load_preset=load_preset,
    check=check_weights,
    teacher=lambda config: config.perceptual.network,
    train=_train,
    timed=_timed,
    ops=("conv2d_act", "dense_block"),
    draw=_draw,
)
