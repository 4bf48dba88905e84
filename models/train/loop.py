"""The training loop all methods share: reports, validation, checkpoints, resuming, and how a run ends early."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import srkernels
from models.config import Bound, Size, Updates
from models.data import BadImages, InputError
from models.data.patches import Batch, ReaderKilled
from models.networks import save_weights
from models.train import distributed, graph
from models.train.checkpoint import TrainingStates
from models.train.device import to_device
from models.train.players import Losses
from models.train.readings import NotFinite, Readings
from models.train.run import Interrupted, Run, RunError, StepTable, peak_memory, read_table
from models.train.schedule import Rates

# What a state must hold.
_STATE = ("step", "settings", "networks", "optimizers", "unreported", "rng")
# Every so many updates, ranks ask each other whether a signal came.
_ASK_EVERY = 10


@dataclass(frozen=True)
class LoopConfig:
    """How training runs, whatever the method."""

    seed: Annotated[int, Bound(0, 2**63 - 1)] = 0
    """Seed of the initial weights and of the patches that are drawn."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast: weights and losses stay fp32."""
    channels_last: bool = True
    """Layout of networks and batches; bf16 is fast only in this one."""
    recompute: bool = False
    """Blocks of the generator save only their input and recompute the rest in the backward pass: less memory."""
    feature_signs: bool = False
    """A perceptual loss's VGG keeps one bit in place of each activation for the backward pass: less memory."""
    memory: Annotated[str, Size(1, 10**15)] | None = None
    """A size such as 24GB: takes --run.feature-signs, --run.recompute or both if a step needs them to fit, by count."""
    compile: bool = False
    """Compiles the generator with torch.compile."""
    tune: bool = False
    """Measures during the first update which backend runs each op of srkernels fastest here, and keeps it."""
    cuda_graph: bool = False
    """Captures the training step as a CUDA graph and replays it: for small crops, which are bound by launches."""
    fused_adam: bool = True
    """One kernel for all weights of an optimiser."""
    ema: Annotated[float, Bound(0, 1, below=True)] = 0.0
    """Decay of an exponential moving average of the generator's weights (BasicSR: 0.999); 0 keeps none."""
    workers: Annotated[int, Bound(0, 128)] = 2
    """Processes that read pictures; 0 reads them in the training process."""
    cache_megabytes: Annotated[int, Bound(0, 10**6)] = 0
    """Decoded pictures kept per source and worker; small sets fit whole."""
    bad_images: Literal["skip", "stop"] = "skip"
    """What to do about a corrupt picture or one that is smaller than a patch."""
    grey_images: Literal["skip", "convert", "stop"] = "skip"
    """What to do about a picture of one channel; convert repeats it three times."""
    other_pictures: Literal["refuse", "accept"] = "refuse"
    """What to do when a run is resumed on pictures of other names or sizes than those it was trained on."""
    max_bad_images: Annotated[float, Bound(0, 1)] = 0.01
    """The run stops when more than this share of its pictures had to be skipped."""
    report_every: Updates = 100
    """Updates between two reports; the device is waited for only then."""
    validate_every: Updates = 5000
    """Updates between two validations."""
    save_every: Updates = 5000
    """Updates between two checkpoints."""
    keep_checkpoints: Annotated[int, Bound(1, 10**6)] = 3
    """Checkpoints kept, states and weights; older ones are deleted."""
    rank_minutes: Annotated[float, Bound(0, 10**4, above=True)] = 10.0
    """Under torchrun, the run ends when a rank has not got on for so long, and says which one."""
    tensorboard: bool = True
    """Writes TensorBoard events beside the CSV files."""

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def autocast(self) -> torch.dtype | None:
        """What autocast computes in; None computes in fp32 throughout."""
        return torch.bfloat16 if self.precision == "bf16" else None


@dataclass
class Stage:
    """What the loop trains.

    Attributes:
        name: shown, and the name of its folder.
        networks: by the name of their weight files; `generator` is the one that is averaged.
        optimizers: by name.
        steps: updates in all.
        step: one update from (its number, counted from 0; the batch on the device); gives detached scalar losses.
        losses, statistics: every name that `step` may give; the latter are reported but are not losses.
        schedule: factor of the learning rate at an update's number.
        batches: the batches from an update's number on, as `models.data.make_loader` yields them.
        images: number of different pictures in them.
        pictures: by field, what tells other pictures from these (`PatchDataset.fingerprints`).
        validate: called with the generator to be judged (the average, if one is kept) and the number of updates done.
        measures: every name that `validate` returns.
        watch: returns a warning about the means of a report, or nothing; a resumed run first shows it the earlier ones.
        accepted: called once the folder's checkpoint, if any, is known to belong to this run.
        phase: of an update's number; all updates of one phase run the same operations.
    """

    name: str
    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    steps: int
    step: Callable[[int, Mapping[str, Tensor]], Losses]
    losses: Sequence[str]
    schedule: Callable[[int], float]
    batches: Callable[[int], Generator[Batch, None, None]]
    images: int
    validate: Callable[[nn.Module, int], dict[str, float]] | None = None
    measures: Sequence[str] = ()
    watch: Callable[[Mapping[str, float]], str] | None = None
    statistics: Sequence[str] = ()
    accepted: Callable[[], None] | None = None
    phase: Callable[[int], object] = lambda done: None
    pictures: Mapping[str, str] = field(default_factory=dict)


@dataclass
class History:
    """What a stage recorded.

    Attributes:
        losses: name to (updates, means since the report before).
        measured: (updates done, what `validate` returned).
        seconds: wall time of this process in the stage.
    """

    losses: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    measured: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    seconds: float = 0.0


def train(stage: Stage, run: Run, folder: Path, config: LoopConfig, settings: Any, device: torch.device) -> History:
    """Trains `stage` to its end, from its newest checkpoint in `folder` if there is one.

    `folder` gets `models/` (weights), `training_states/`, `losses.csv`, `validation.csv` and `tensorboard/`. A resumed
    run continues bit for bit on the CPU. `settings` is what the run was started with, in plain types; resuming with
    other settings is refused.

    Raises RunError for a loss that is not finite, for a full disk and for other settings than those of the
    checkpoint; Interrupted after SIGTERM or SIGINT, once the state is saved.
    """
    return _Loop(stage, run, folder, config, settings, device).train()


class _Loop:
    def __init__(
        self, stage: Stage, run: Run, folder: Path, config: LoopConfig, settings: Any, device: torch.device
    ) -> None:
        self._stage, self._run, self._folder, self._config = stage, run, folder, config
        self._settings, self._device = settings, device
        self._states = TrainingStates(folder / "training_states", config.keep_checkpoints)
        self._step = self._graphed() if config.cuda_graph else stage.step
        self._rates = Rates(stage.optimizers.values(), stage.schedule)
        distributed.broadcast_weights(stage.networks.values())
        generator = stage.networks["generator"]
        self._average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
        self._readings = Readings()
        self._done = self._restore()
        if self._step is not stage.step:
            self._make_capturable()  # a checkpoint may say otherwise
        if stage.accepted:
            stage.accepted()
        self._bad = BadImages(stage.images, config.max_bad_images, run.say_anywhere)
        # Without a checkpoint nothing that an earlier process wrote belongs to this run, not even update 0.
        self._kept = self._done or -1
        columns = (*stage.losses, *stage.statistics, "learning_rate", "seconds")
        self._losses = StepTable(folder / "losses.csv", columns, self._kept)
        self._measured = StepTable(folder / "validation.csv", stage.measures, self._kept)
        if stage.watch and distributed.is_main():
            for row in read_table(folder / "losses.csv"):
                stage.watch(row)
        self._board = self._open_board()

    def _graphed(self) -> Callable[[int, Mapping[str, Tensor]], Losses]:
        stage = self._stage
        reason = graph.why_not(self._device, distributed.world_size())
        if reason is not None:
            self._run.say(f"  {stage.name}: no CUDA graph: {reason}")
            return stage.step
        self._make_capturable()
        capture = graph.CUDACapture(self._device)
        return graph.GraphedStep(
            stage.step, stage.phase, capture, lambda line: self._run.say(f"  {stage.name}: {line}")
        )

    def _make_capturable(self) -> None:
        for optimizer in self._stage.optimizers.values():
            graph.make_capturable(optimizer)

    def train(self) -> History:
        start = time.perf_counter()
        try:
            self._train()
        except InputError:
            if self._done and self._states.steps()[-1:] != [self._done]:
                self._readings.wait()
                self._write_checkpoint()
            raise
        except (NotFinite, ReaderKilled, OSError) as error:
            raise RunError(f"{self._stage.name}: {error}; last good checkpoint: {self._last_good()}") from error
        return self._history(start)

    def _train(self) -> None:
        stage, config = self._stage, self._config
        if self._done >= stage.steps:
            self._run.say(f"  {stage.name}: all {stage.steps} updates were done before")
            self._measure_again()
            return
        if self._done:
            self._run.say(f"  {stage.name}: resumed behind update {self._done}")
        elif stage.validate:
            self._validate()
        started = self._done
        waited, reported, since = 0.0, started, time.perf_counter()
        batches = stage.batches(self._done)
        with closing(batches), _signals() as wanted, self._run.progress("losses", "rate") as progress:
            task = progress.add_task(stage.name, total=stage.steps, completed=self._done, losses="", rate="")
            while self._done < stage.steps:
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                if config.tune and self._done == started:
                    with srkernels.tuning() as tuner:
                        self._update(batch)
                    self._run.say(f"  {stage.name}: {tuner}")
                else:
                    self._update(batch)
                progress.advance(task)
                last = self._done == stage.steps
                if self._done % config.report_every == 0 or last:
                    elapsed = time.perf_counter() - since
                    rate = (self._done - reported) / elapsed
                    words = self._report(rate, waited / elapsed)
                    progress.update(task, losses=words, rate=f"{rate:.2f}/s {peak_memory(self._device):.1f} GB")
                    waited, reported, since = 0.0, self._done, time.perf_counter()
                # Before the checkpoint, so that a run that resumes from it misses nothing.
                if stage.validate and (self._done % config.validate_every == 0 or last):
                    self._validate()
                    since = time.perf_counter()
                stop = self._must_stop(bool(wanted), last)
                if self._done % config.save_every == 0 or last or stop:
                    self._save()
                if stop:
                    raise Interrupted(f"stopped behind update {self._done} of {stage.name}; the state is saved")

    def _update(self, batch: Batch) -> None:
        self._bad.note(batch["bad"])
        tensors = to_device(batch, self._device, self._config.layout)
        self._rates.set(self._done)
        losses = self._step(self._done, tensors)
        if self._average is not None:
            self._average.update_parameters(self._stage.networks["generator"])
        self._done += 1
        self._readings.add(self._done, losses, batch["files"])

    def _means(self) -> dict[str, float]:
        """Means of the losses since the last call."""
        self._readings.wait()
        names = (*self._stage.losses, *self._stage.statistics)
        columns = {name: [row[name] for row in self._readings.rows if name in row] for name in names}
        self._readings.rows.clear()
        return {name: sum(values) / len(values) for name, values in columns.items() if values}

    def _report(self, rate: float, waiting: float) -> str:
        """Prints and records the losses since the last report; returns them in words."""
        means = self._means()
        words = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        if not distributed.is_main():
            return words
        stage, left = self._stage, (self._stage.steps - self._done) / rate
        learning_rate = self._rates.at(self._done - 1)
        self._run.say(
            f"  {stage.name} {self._done}/{stage.steps}  {words}  lr {learning_rate:.2g}  {rate:.2f}/s  "
            f"data {waiting:.0%}  {peak_memory(self._device):.1f} GB  {_duration(left)} left"
        )
        self._losses.add(self._done, {**means, "learning_rate": learning_rate, "seconds": 1 / rate})
        self._write_board({f"loss/{name}": value for name, value in means.items()})
        if stage.watch and (warning := stage.watch(means)):
            self._run.say(f"  {stage.name} {self._done}/{stage.steps}  warning: {warning}", style="yellow")
        return words

    def _measure_again(self) -> None:
        """Validates a finished stage once more if it was last measured without what it can be measured by now."""
        path, wanted = self._folder / "validation.csv", set(self._stage.measures)
        found = {name for row in read_table(path)[-1:] for name in row if name != "step"}
        distributed.barrier()  # all have read
        if found and wanted - found:
            self._measured = StepTable(path, self._stage.measures, self._done - 1)
            self._validate()

    def _validate(self) -> None:
        judged = self._average.module if self._average is not None else self._stage.networks["generator"]
        if distributed.is_main() and self._stage.validate:
            values = self._stage.validate(judged, self._done)
            self._measured.add(self._done, values)
            self._write_board({f"validation/{name}": value for name, value in values.items()})
            words = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self._run.say(
                f"  {self._stage.name} {self._done}/{self._stage.steps}  held out: {words or 'no pairs, pictures only'}"
            )
        distributed.barrier()

    def _must_stop(self, wanted: bool, last: bool) -> bool:
        """Whether a signal came, to any rank; all ranks stop after the same update."""
        if distributed.world_size() > 1 and self._done % _ASK_EVERY and not last:
            return False
        return distributed.any_rank(wanted)

    def _save(self) -> None:
        self._readings.wait()  # a state that follows a non-finite loss must not be saved
        self._write_checkpoint()
        distributed.barrier()  # the next stage reads these weights

    def _write_checkpoint(self) -> None:
        if not distributed.is_main():
            return
        stage = self._stage
        networks = dict(stage.networks)
        if self._average is not None:
            networks["generator_ema"] = self._average.module
        for name, network in networks.items():
            if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
                raise RunError(
                    f"{stage.name}: weights of the {name} are not finite behind update {self._done}; "
                    f"last good checkpoint: {self._last_good()}"
                )
        state = {
            "step": self._done,
            "settings": self._settings,
            "pictures": dict(stage.pictures),
            "networks": {name: network.state_dict() for name, network in networks.items()},
            "optimizers": {name: each.state_dict() for name, each in stage.optimizers.items()},
            "unreported": self._readings.rows,
            "rng": torch.get_rng_state(),
        }
        if self._average is not None:
            state["averaged"] = self._average.n_averaged
        if self._device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self._device)
        try:
            for name, network in networks.items():
                save_weights(network, self._weights(self._done, name))
            self._states.save(self._done, state)
        except OSError as error:
            raise RunError(
                f"{stage.name}: cannot write the checkpoint of update {self._done}: {error}; "
                f"last good checkpoint: {self._last_good()}"
            ) from error
        kept = self._states.steps()
        for path in (self._folder / "models").iterdir():
            match = re.fullmatch(r"(\d+)_\w+\.safetensors", path.name)
            if match and int(match[1]) not in kept:
                path.unlink()

    def _restore(self) -> int:
        state = self._states.latest(_STATE, self._run.say)
        if state is None:
            return 0
        changed = _differences(state["settings"], self._settings)
        if changed:
            raise RunError(
                f"{self._stage.name}: the checkpoint {self._states.path(state['step'])} is of a run with other "
                f"settings: {'; '.join(changed)}. Start anew with --resume never, or in another folder."
            )
        stage = self._stage
        pictures = _differences(state.get("pictures", stage.pictures), stage.pictures)  # older states have none
        if pictures and self._config.other_pictures == "refuse":
            raise RunError(
                f"{stage.name}: the checkpoint {self._states.path(state['step'])} was trained on other pictures: "
                f"{'; '.join(pictures)}. Go on with these by --run.other-pictures accept, or start anew with "
                "--resume never, or in another folder."
            )
        for name, network in stage.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, optimizer in stage.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self._average is not None:
            self._average.module.load_state_dict(state["networks"]["generator_ema"])
            self._average.n_averaged.copy_(state["averaged"])
        self._readings.rows = state["unreported"]
        torch.set_rng_state(state["rng"])
        if self._device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self._device)
        step: int = state["step"]
        return step

    def _weights(self, step: int, name: str) -> Path:
        return self._folder / "models" / f"{step}_{name}.safetensors"

    def _last_good(self) -> str:
        steps = self._states.steps()
        return str(self._states.path(steps[-1])) if steps else "none was saved yet"

    def _history(self, start: float) -> History:
        if self._board is not None:
            self._board.close()
        history = History(seconds=time.perf_counter() - start)
        for row in read_table(self._folder / "losses.csv"):
            for name in self._stage.losses:
                if name in row:
                    steps, values = history.losses.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(row[name])
        for row in read_table(self._folder / "validation.csv"):
            history.measured.append((int(row.pop("step")), row))
        return history

    def _open_board(self) -> Any:
        if not self._config.tensorboard or not distributed.is_main():
            return None
        from torch.utils.tensorboard import SummaryWriter  # a second of imports that other commands do not need

        return SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._kept + 1)

    def _write_board(self, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, self._done)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying from them; a second SIGINT interrupts as usual."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        prefix = f"{key}." if key else ""
        names = dict.fromkeys((*before, *now))
        return [line for name in names for line in _differences(before.get(name), now.get(name), prefix + name)]
    return [] if before == now else [f"{key} was {before}, is {now}"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
