"""`python -m models ablate`: trains the rows of a paper's ablation tables in miniature, beside the paper's numbers.

The tables, row by row, are in a method's `AblationParts`; what is said and written of them is in `report.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
import tyro

from models.commands.ablate import dasr, report, usrda
from models.commands.ablate.parts import AblationParts, PaperTable, Size, Trial
from models.config import Bound, check_bounds, dump_yaml, option_of
from models.data import InputError
from models.data.files import write_text
from models.data.photographs import Domains, Judged, check_bundled_scale, miniature_domains, missing_photographs
from models.evaluate.validation import Score, load_perceptual
from models.networks.weight_options import PerceptualFiles
from models.train.device import pick_device
from models.train.run import Run, read_table
from srkernels.info import processor

C = TypeVar("C")

ABLATIONS: dict[str, AblationParts[Any]] = {"dasr": dasr.ABLATION, "usrda": usrda.ABLATION}

# Seeds from 100 on are for reports, those below for trying settings.
SIZES = {
    "quick": Size(seeds=(100,), updates=0.1),
    "small": Size(seeds=tuple(range(100, 105))),
    "medium": Size(seeds=(100, 101), updates=2.0, features=2, blocks=2, batch=4),
}


@dataclass(frozen=True)
class AblateCommand(Generic[C]):
    """Trains the rows of a paper's ablation tables on bundled photographs and compares their order with the paper's.

    A restarted run resumes where it stopped; finished rows are not trained again.
    """

    out: Path
    """Folder of the tables, the plot, and all that is trained."""
    config: Annotated[C, tyro.conf.arg(name="")]
    weights: PerceptualFiles = field(default_factory=PerceptualFiles)
    preset: str = "miniature"
    """A preset's name, or a YAML file in the same form; any of its numbers can be overridden here."""
    size: Literal["quick", "small", "medium"] = "small"
    """quick: a tenth of the updates, one seed; small: five seeds; medium: wider, longer, for a GPU, a table a run."""
    camera: Literal["soft", "noise5", "point", "aliasing", "regions"] | None = None
    """What takes the real LR, in place of each table's own camera."""
    photographs: Judged = "held-out"
    """What rows are judged on: choose settings on validation photographs, and report held-out ones."""
    seeds: Annotated[tuple[Annotated[int, Bound(0, 2**63 - 1)], ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """Every row is trained once per seed, in place of --run.seed."""
    tables: tuple[str, ...] = ()
    """Tables to train, by name; all of them by default."""
    rows: tuple[str, ...] = ()
    """Rows to train, by name; all of them by default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""
    resume: Literal["auto", "never"] = "auto"
    """auto resumes from what is in the folder; never sets it aside and starts from scratch."""


def main(arguments: Sequence[str]) -> int:
    """Trains and compares; returns 0 when done. Raises what `models.train.loop.train` raises."""
    usage = f"usage: python -m models ablate {{{','.join(ABLATIONS)}}} --out DIR [OPTIONS]"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *options = arguments
    if name not in ABLATIONS:
        raise InputError(f"no method {name!r}, there are {', '.join(ABLATIONS)}")
    method = ABLATIONS[name]
    command = parse(name, method, options)
    check_bundled_scale(command.config.scale)
    given, command = command, replace(command, config=method.prepare(command.config, command.weights))
    tables = _selected(method.tables(command.config), command)
    device = pick_device(command.device)
    lpips = load_perceptual(command.weights, device)
    run = Run(command.out, command.out if command.resume == "never" else None)
    try:
        write_text(run.folder / "config.yaml", dump_yaml(command.config))
        run.say(*missing_photographs())
        if command.config != given.config:
            run.say("without --weights.vgg rows are trained without a perceptual loss, and with other weights")
        for table in tables:
            run.say("", report.rich_table(f"{table.title}: the plan", report.plan_grid(table, command.seeds), 1))
        trials = {
            (table.camera, seed): Trial(
                miniature_domains(seed, table.camera, command.photographs),
                run.folder / f"seed{seed}" / table.camera,
                run,
                device,
                command.weights,
                lpips,
            )
            for table in tables
            for seed in command.seeds
        }
        for trial in trials.values():
            trial.keep_held_out()
        results = train_rows(tables, command.seeds, trials)
        write_results(run.folder / f"{name}_ablation", method, command, tables, results, trials)
        for table in tables:
            scores, claims = report.score_grid(table, results), report.claim_grid(table, results)
            run.say("", report.rich_table(f"{table.title}\n{table.judged}", scores, 1 + len(table.columns)))
            if claims[1]:
                run.say(report.rich_table("Gains", claims, 1))
            run.say(*report.order_notes(table, results))
        run.say(f"\ndone: {run.folder / f'{name}_ablation.md'}")
    finally:
        run.close()
    return 0


def parse(name: str, method: AblationParts[C], arguments: Sequence[str]) -> AblateCommand[C]:
    """Parses the command line; what it does not set comes from the preset it names, in the size it names."""
    preset = option_of(arguments, "preset", AblateCommand.preset)
    size = option_of(arguments, "size", AblateCommand.size)
    amount = SIZES.get(size, SIZES["small"])  # another name is an error of the parser's
    default: AblateCommand[C] = AblateCommand(
        out=tyro.MISSING,
        config=method.resize(method.load_preset(preset), amount),
        preset=preset,
        seeds=amount.seeds,
    )
    command: AblateCommand[C] = tyro.cli(
        AblateCommand[method.config],  # type: ignore[name-defined]
        args=arguments,
        default=default,
        prog=f"python -m models ablate {name}",
        description=AblateCommand.__doc__,
    )
    check_bounds(command)
    if len(set(command.seeds)) < len(command.seeds):
        raise InputError(f"--seeds must be different numbers, got {command.seeds}")
    return command


def train_rows(
    tables: Sequence[PaperTable], seeds: Sequence[int], trials: Mapping[tuple[str, int], Trial]
) -> dict[str, list[list[Score]]]:
    """Scores of every row by its name, and of the baselines by their table's, one list per seed.

    `trials` are by camera and seed.
    """
    results: dict[str, list[list[Score]]] = {}
    for number, seed in enumerate(seeds):
        for table in tables:
            trial = trials[table.camera, seed]
            results.setdefault(table.name, []).append(table.baseline(trial))
            for unseeded in table.rows:
                if len(results.get(unseeded.name, ())) > number:
                    continue  # another table has it too
                config = replace(unseeded.config, run=replace(unseeded.config.run, seed=seed))
                row = replace(unseeded, config=config)
                what = ", ".join(f"{column} {cell}" for column, cell in zip(table.columns, row.cells, strict=True))
                trial.run.say(f"{row.name} of {table.name}, seed {seed}: {what}", style="bold")
                write_text(trial.folder / row.name / "config.yaml", dump_yaml(config))
                results.setdefault(row.name, []).append(table.train(row, trial))
    return results


def write_results(
    stem: Path,
    method: AblationParts[C],
    command: AblateCommand[C],
    tables: Sequence[PaperTable],
    results: report.Results,
    trials: Mapping[tuple[str, int], Trial],
) -> None:
    """Writes the tables, the plot and the CSV."""
    seed, shown = command.seeds[0], next(iter(trials.values()))
    pictures = {t.name: [hr.name for _, hr in trials[t.camera, seed].domains.held_out] for t in tables}
    opening = [
        f"# {method.title}: ablation in miniature",
        "",
        *_setting(method, command, shown.domains, report.measured(tables, results)),
        f"- Trained with `python -m models ablate {stem.name.partition('_')[0]} --size {command.size}"
        f"{_chosen(command)}` and the weights of models/README.md; updates took {_hours(_seconds(trials.values()))} on "
        f"{_machine(shown.device)}, torch {torch.__version__}.",
    ]
    report.write_results(stem, opening, tables, results, command.seeds, pictures)


def _chosen(command: AblateCommand[C]) -> str:
    """The options that leave tables or rows out."""
    given = {"--tables": command.tables, "--rows": command.rows}
    return "".join(f" {option} {' '.join(names)}" for option, names in given.items() if names)


def _seconds(trials: Iterable[Trial]) -> float:
    """How long all updates took that the trials' folders tell of, also those of earlier runs."""
    seconds = 0.0
    for path in (path for trial in trials for path in trial.folder.rglob("losses.csv")):
        done = 0.0
        for row in read_table(path):
            seconds += (row["step"] - done) * row.get("seconds", 0.0)
            done = row["step"]
    return seconds


def _hours(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}"


def _selected(tables: Sequence[PaperTable], command: AblateCommand[C]) -> list[PaperTable]:
    """The tables of these names with only the rows of these names; tables left without rows are dropped."""
    known = [table.name for table in tables]
    for name in command.tables:
        if name not in known:
            raise InputError(f"--tables: no table is named {name!r}, there are {', '.join(known)}")
    tables = [table for table in tables if not command.tables or table.name in command.tables]
    known = [row.name for table in tables for row in table.rows]
    for name in command.rows:
        if name not in known:
            there = ", ".join(dict.fromkeys(known))
            raise InputError(f"--rows: no row of these tables is named {name!r}, there are {there}")
    kept = [
        replace(
            table,
            camera=command.camera or table.camera,
            rows=tuple(row for row in table.rows if not command.rows or row.name in command.rows),
        )
        for table in tables
    ]
    return [table for table in kept if table.rows]


def _setting(method: AblationParts[C], command: AblateCommand[C], shown: Domains, measures: Sequence[str]) -> list[str]:
    names = {
        "one half clean HR, the other half real LR": shown.clean_hr,
        f"judged on ({command.photographs})": [hr for _, hr in shown.held_out],
    }
    pictures = "; ".join(f"{role}: {', '.join(photo.name for photo in photos)}" for role, photos in names.items())
    return [
        "**This is not the paper's setting, and its values are not reproduced here.** What is asked is whether the "
        "rows differ in miniature as they do in the paper.",
        "",
        f"- Here: preset {command.preset}, size {command.size}; {method.setting(command.config)}; "
        f"seed{'s' * (len(command.seeds) > 1)} {', '.join(map(str, command.seeds))}. Every row of a seed starts from "
        "the same weights and sees the same pictures.",
        "- Target domain here: synthetic, a simulated camera for each table that no network knows of "
        f"(`models/data/degradation.py`), on bundled photographs ({pictures}).",
        f"- Paper: {method.paper_setting}.",
        "- Scores are means over the photographs"
        + (", then mean ± standard deviation over the seeds." if len(command.seeds) > 1 else "; one seed, no spread.")
        + _perceptual_note(measures),
        f"- {report.statistics_note()}",
    ]


def _perceptual_note(measures: Sequence[str]) -> str:
    if "hed-lpips" in measures:
        return (
            " HED-LPIPS, of which less is better, has LPIPS's form and linear weights on a VGG-16 that was trained on "
            "edges after ImageNet: its values are not the paper's LPIPS."
        )
    if "lpips" in measures:
        return " Of LPIPS less is better."
    return " LPIPS needs weights that are not bundled, so that only the paper's is shown."
