"""DASR in miniature, for `python -m models demo`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

import srkernels
from models.commands.demo.parts import DemoJob, DemoParts, Trained
from models.commands.demo.timing import Work
from models.dasr.build import WeightFiles, build_dsn_step, build_srn_step
from models.dasr.config import DASRConfig, check_weights, load_preset
from models.dasr.stages import DASRJob, dsn_streams, run_stages, srn_streams
from models.dasr.steps import DSNStep, SRNStep
from models.data import FolderSource, MapSource, PatchDataset, Stream
from models.data.photographs import SCALE
from models.evaluate import pictures
from models.evaluate.examples import resized
from models.networks import load_weights
from models.networks.frequency import FrequencyFilter
from models.train.batches import first_batch
from models.train.checkpoint import newest_weights


def _training_job(job: DemoJob[DASRConfig]) -> DASRJob:
    return DASRJob(job.config, job.domains.inputs, WeightFiles(**vars(job.weights)), job.run, job.device)


def _train(job: DemoJob[DASRConfig]) -> Trained:
    training, config = _training_job(job), job.config
    histories = run_stages(training, "all")
    torch.manual_seed(config.run.seed)  # the network as it was before its first update
    before = build_srn_step(config, training.weights, job.device).players.generator
    weights = newest_weights(training.folder("srn"), "generator", config.srn.schedule.updates)
    return Trained(before, load_weights(weights).to(job.device), histories)


def _timed(job: DemoJob[DASRConfig]) -> Sequence[tuple[str, Work, int]]:
    training, config, device = _training_job(job), job.config, job.device
    # Separate networks: timing must not train the judged ones any further.
    dsn_step, srn_step = (build(config, training.weights, device) for build in (build_dsn_step, build_srn_step))
    dsn_batch = _batch(dsn_streams(config, training.inputs), config.dsn.batch, job)
    srn_batch = _batch(srn_streams(config, training.inputs, training.folder("generated")), config.srn.batch, job)
    return (
        ("stage dsn, whole step", lambda: dsn_step(dsn_batch), 1),
        ("stage dsn, whole step, bf16 autocast", _in_bf16(dsn_step, dsn_batch), 1),
        ("stage dsn, Haar alone", _dsn_ops(dsn_step, dsn_batch), 10),
        ("stage srn, whole step", lambda: srn_step(srn_batch), 1),
        ("stage srn, whole step, bf16 autocast", _in_bf16(srn_step, srn_batch), 1),
        ("stage srn, Haar and L1 alone", _srn_ops(srn_step, srn_batch), 10),
    )


def _batch(streams: Sequence[Stream], batch: int, job: DemoJob[DASRConfig]) -> dict[str, Tensor]:
    return first_batch(PatchDataset(streams, 0, grey_images="convert"), batch, job.config.run, job.device)


def _in_bf16(step: DSNStep | SRNStep, batch: Mapping[str, Tensor]) -> Work:
    cast = step.in_precision(torch.bfloat16)
    return lambda: cast(batch)


def _dsn_ops(step: DSNStep, batch: Mapping[str, Tensor]) -> Work:
    """The op calls of one `DSNStep`, forward and backward, on tensors of its shapes."""
    return _view_pair(step.view, batch["real_lr"])


def _srn_ops(step: SRNStep, batch: Mapping[str, Tensor]) -> Work:
    """The op calls of one `SRNStep` except its convolutions, forward and backward, on tensors of its shapes."""
    view, hr = _view_pair(step.view, batch["other_hr"]), batch["hr"]
    sr = torch.rand_like(hr, requires_grad=True)

    def work() -> None:
        view()
        torch.autograd.grad(srkernels.weighted_l1_loss(sr, hr, batch["weight"]), sr)

    return work


def _view_pair(view: FrequencyFilter, real: Tensor) -> Work:
    fake = torch.rand_like(real, requires_grad=True)
    upstream = torch.rand_like(view(real))

    def work() -> None:
        view(real)
        torch.autograd.grad(view(fake), fake, upstream)

    return work


def _draw(job: DemoJob[DASRConfig], folder: Path) -> None:
    """`distance_maps.png` of the first three HR pictures, where maps are kept."""
    training, config = _training_job(job), job.config
    if not config.weighted or config.maps.on_the_fly:
        return
    generated, maps = (
        kind(training.folder("generated") / name) for kind, name in ((FolderSource, "lr"), (MapSource, "maps"))
    )
    hr_of = {photo.name: photo.pixels for photo in job.domains.clean_hr}
    shown = [
        (name, resized(hr_of[name], 1 / SCALE), generated.read(index), maps.read(index)[..., 0])
        for index, name in enumerate(generated.names[:3])
    ]
    pictures.save_maps(folder / "distance_maps.png", shown)


DEMO = DemoParts(
    title="DASR",
    config=DASRConfig,
    load_preset=load_preset,
    check=check_weights,
    teacher=lambda config: config.srn.perceptual.network,
    train=_train,
    timed=_timed,
    ops=("haar_highpass", "weighted_l1_loss", "residual_block", "dense_block"),
    draw=_draw,
)
