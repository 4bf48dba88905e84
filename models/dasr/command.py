"""`python -m models dasr`: one stage of DASR or all of them, on folders of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from models import distributed
from models.config import option_of
from models.dasr.build import WeightFiles
from models.dasr.config import DASRConfig, Frequency, check, load_preset
from models.dasr.stages import Context, HeldOut, Inputs, newest_weights, run_stages
from models.data import InputError, open_source
from models.device import pick_device
from models.run import Run, set_aside
from models.validation import Pairs


@dataclass(frozen=True)
class DASRCommand:
    """Trains DASR: the down-sampling network (dsn), its LR pictures and distance maps (maps), the SR network (srn).

    A preset states every number; any of them can be overridden here. Folders hold png, jpg or webp pictures of 8 or 16
    bits, or are databases in BasicSR's layout (*.lmdb). Runs under torchrun too.
    """

    hr: Path
    """Clean HR pictures."""
    lr: Path
    """Real LR pictures of other scenes, the target domain."""
    out: Path
    """The run's folder."""
    preset: str = "paper"
    """paper, official-aim, official-realsr, official-ntire, tiny, or a YAML file of that form."""
    stage: Literal["dsn", "maps", "srn", "all"] = "all"
    """Which stage to run; each takes what the one before left in the run's folder."""
    val_hr: Path | None = None
    """Held-out HR pictures to validate on; needs --val-lr."""
    val_lr: Path | None = None
    """Their real LR pictures, under the same names."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on from the run's last checkpoint; never keeps an earlier run under another name and starts anew."""
    frequency: Frequency | None = None
    """Short for --dsn.discriminator.frequency (Table 1)."""
    dsn_input: Literal["hr", "bicubic"] | None = None
    """Short for --dsn.input (Table 1)."""
    weights: WeightFiles = field(default_factory=WeightFiles)
    config: Annotated[DASRConfig, tyro.conf.arg(name="")] = field(default_factory=DASRConfig)

    def resolved(self) -> DASRConfig:
        """The configuration with the short options in it. Raises InputError naming what cannot be used."""
        dsn = self.config.dsn
        if self.frequency is not None:
            dsn = replace(dsn, discriminator=replace(dsn.discriminator, frequency=self.frequency))
        if self.dsn_input is not None:
            dsn = replace(dsn, input=self.dsn_input)
        config = replace(self.config, dsn=dsn)
        check(config)
        return config


def parse(arguments: Sequence[str]) -> DASRCommand:
    """The command line; the preset it names gives the defaults of all that it does not."""
    preset = option_of(arguments, "preset", DASRCommand.preset)
    missing = tyro.MISSING
    default = DASRCommand(hr=missing, lr=missing, out=missing, preset=preset, config=load_preset(preset))
    return tyro.cli(
        DASRCommand, args=arguments, default=default, prog="python -m models dasr", description=DASRCommand.__doc__
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the stages that the command line asks for; 0 when they are done. Raises what `models.loop.train` raises."""
    command = parse(arguments)
    config = command.resolved()
    inputs = Inputs(open_source(command.hr), open_source(command.lr), _held_out(command))
    with distributed.process_group(pick_device(command.device)) as device:
        if command.resume == "never" and distributed.is_main():
            of_stage = {"all": ".", "maps": "generated"}.get(command.stage, command.stage)
            set_aside(command.out / of_stage)
        distributed.barrier()
        run = Run(command.out)
        try:
            context = Context(config, inputs, command.weights, run, device)
            run_stages(context, command.stage)
            run.say(f"done: {command.out}")
            if command.stage in ("srn", "all"):
                weights = newest_weights(command.out / "srn", "generator", config.srn)
                run.say(f"enlarge pictures with: python -m models upscale --weights {weights} IN OUT")
        finally:
            run.close()
    return 0


def _held_out(command: DASRCommand) -> Callable[[], HeldOut] | None:
    if command.val_hr is None and command.val_lr is None:
        return None
    if command.val_hr is None or command.val_lr is None:
        raise InputError("--val-hr and --val-lr go together: validation needs pairs")
    return Pairs(open_source(command.val_lr), open_source(command.val_hr), command.config.scale)
