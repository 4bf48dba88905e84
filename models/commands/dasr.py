"""`python -m models dasr`: one stage of DASR or all of them, on folders of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from models.commands.training import TrainCommand
from models.config import option_of
from models.dasr.build import WeightFiles
from models.dasr.config import DASRConfig, Frequency, check, load_preset
from models.dasr.stages import DASRJob, run_stages
from models.train import distributed
from models.train.checkpoint import newest_weights
from models.train.device import pick_device


@dataclass(frozen=True)
class DASRCommand(TrainCommand):
    """Trains DASR: the down-sampling network (dsn), its LR pictures and distance maps (maps), the SR network (srn).

    A preset gives every number a value; any of them can be overridden here. Folders hold png, jpg or webp pictures of 8
    or 16 bits, or are databases in BasicSR's layout (*.lmdb). Runs under torchrun too.
    """

    preset: str = "paper"
    """paper, official-aim, official-realsr, official-ntire, tiny, or a YAML file in the same form."""
    stage: Literal["dsn", "maps", "srn", "all"] = "all"
    """Which stage to run; each reads the previous stage's output from the run's folder."""
    frequency: Frequency | None = None
    """Short for --dsn.discriminator.frequency (Table 1)."""
    dsn_input: Literal["hr", "bicubic"] | None = None
    """Short for --dsn.input (Table 1)."""
    weights: WeightFiles = field(default_factory=WeightFiles)
    config: Annotated[DASRConfig, tyro.conf.arg(name="")] = field(default_factory=DASRConfig)

    def resolved(self) -> DASRConfig:
        """The configuration with the short options applied. Raises InputError naming what cannot be used."""
        dsn = self.config.dsn
        if self.frequency is not None:
            dsn = replace(dsn, discriminator=replace(dsn.discriminator, frequency=self.frequency))
        if self.dsn_input is not None:
            dsn = replace(dsn, input=self.dsn_input)
        config = replace(self.config, dsn=dsn)
        check(config)
        return config


def parse(arguments: Sequence[str]) -> DASRCommand:
    """Parses the command line; everything it does not set comes from the preset it names."""
    preset = option_of(arguments, "preset", DASRCommand.preset)
    missing = tyro.MISSING
    default = DASRCommand(hr=missing, lr=missing, out=missing, preset=preset, config=load_preset(preset))
    return tyro.cli(
        DASRCommand, args=arguments, default=default, prog="python -m models dasr", description=DASRCommand.__doc__
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the stages that the command line asks for; returns 0 when they are done.

    Raises what `models.train.loop.train` raises.
    """
    command = parse(arguments)
    config = command.resolved()
    inputs = command.inputs(config.scale)
    with distributed.process_group(pick_device(command.device), config.run.rank_minutes) as device:
        of_stage = {"all": ".", "maps": "generated"}.get(command.stage, command.stage)
        run = command.start(of_stage)
        try:
            run_stages(DASRJob(config, inputs, command.weights, run, device), command.stage)
            run.say(f"done: {command.out}")
            if command.stage in ("srn", "all"):
                weights = newest_weights(command.out / "srn", "generator", config.srn.schedule.updates)
                run.say(f"enlarge pictures with: python -m models upscale --weights {weights} IN OUT")
        finally:
            run.close()
    return 0
