"""`python -m models usrda`: trains USR-DA on folders of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from models.commands.dry_run import print_memory
from models.commands.training import TrainCommand
from models.config import Bound, check_bounds, option_of
from models.train.checkpoint import newest_weights
from models.train.device import pick_device
from models.train.distributed import process_group
from models.usrda.build import WeightFiles
from models.usrda.config import REGULARISATION, USRDAConfig, check, load_preset
from models.usrda.stages import USRDAJob, train_usrda


@dataclass(frozen=True)
class USRDACommand(TrainCommand):
    """Trains USR-DA: encoder, both decoders and all discriminators together, end to end.

    A preset gives every number a value; any of them can be overridden here. Folders hold png, jpg or webp pictures of 8
    or 16 bits, or are databases in BasicSR's layout (*.lmdb). Runs under torchrun too.
    """

    preset: str = "paper-unpaired"
    """paper-unpaired, paper-paired, bicubic-source, unofficial, tiny, or a YAML file in the same form."""
    align: bool = True
    """--no-align leaves out L_align (Table 3)."""
    regularisation: bool = True
    """--no-regularisation leaves out L_res, L_sty, L_idt and L_cyc (Table 3)."""
    base: bool = False
    """Leaves out both (Table 3): encoder and G_SR on the source domain alone."""
    dry_run: bool = False
    """Trains nothing: prints the counted memory of a step; needs no pictures, weights or GPU."""
    card_gb: Annotated[float, Bound(0, 10**6, above=True)] = 24.0
    """GPU memory, in GB of 1e9 bytes, for which --dry-run finds the largest batch."""
    weights: WeightFiles = field(default_factory=WeightFiles)
    config: Annotated[USRDAConfig, tyro.conf.arg(name="")] = field(default_factory=USRDAConfig)

    def resolved(self) -> USRDAConfig:
        """The configuration with the short options applied. Raises InputError naming what cannot be used."""
        config = self.config
        if self.base or not self.align:
            config = config.without("align")
        if self.base or not self.regularisation:
            config = config.without(*REGULARISATION)
        check(config)
        return config


def parse(arguments: Sequence[str]) -> USRDACommand:
    """Parses the command line; everything it does not set comes from the preset it names."""
    preset = option_of(arguments, "preset", USRDACommand.preset)
    flags = [each for each in (each.replace("_", "-") for each in arguments) if each in ("--dry-run", "--no-dry-run")]
    path = Path() if flags[-1:] == ["--dry-run"] else tyro.MISSING  # a dry run needs no folders
    default = USRDACommand(hr=path, lr=path, out=path, preset=preset, config=load_preset(preset))
    return tyro.cli(
        USRDACommand, args=arguments, default=default, prog="python -m models usrda", description=USRDACommand.__doc__
    )


def main(arguments: Sequence[str]) -> int:
    """Trains as the command line says; returns 0 when done. Raises what `models.train.loop.train` raises."""
    command = parse(arguments)
    check_bounds(command)
    if command.dry_run:
        print_memory(command.resolved(), command.preset, command.card_gb)
        return 0
    with process_group(pick_device(command.device), command.config.run.rank_minutes) as device:
        config = command.resolved()  # here, where the number of ranks is known
        inputs = command.inputs(config.scale)
        run = command.start()
        try:
            train_usrda(USRDAJob(config, inputs, command.weights, run, device))
            run.say(f"done: {command.out}")
            weights = newest_weights(command.out, "generator", config.schedule.updates)
            run.say(f"enlarge pictures with: python -m models upscale --weights {weights} IN OUT")
        finally:
            run.close()
    return 0
