"""`python -m models ablate`: trains the rows of a paper's ablation tables in miniature, beside the paper's numbers.

The tables, row by row, are in a method's `AblationParts`; seeds, results, order of rows and files are here.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
import tyro
from rich.table import Table

from models.commands.ablate import dasr, usrda
from models.commands.ablate.parts import AblationParts, PaperTable, Row, Trial
from models.config import Bound, check_bounds, dump_yaml, option_of
from models.data import InputError
from models.data.files import write_text, write_whole
from models.data.photographs import CAMERA, bundled_domains, check_bundled_scale
from models.evaluate.pictures import Panel, save_comparison
from models.evaluate.validation import MEASURES, Score, load_perceptual
from models.networks.weight_options import PerceptualFiles
from models.train.device import pick_device
from models.train.run import Run

C = TypeVar("C")
Results = Mapping[str, Sequence[Score]]

ABLATIONS: dict[str, AblationParts[Any]] = {"dasr": dasr.ABLATION, "usrda": usrda.ABLATION}

# Digits that are shown, and what a paper's numbers are compared with: HED-LPIPS is not what it calls LPIPS.
_DIGITS = {"psnr": 3, "ssim": 4, "lpips": 4, "hed-lpips": 4}
_IN_PAPER = {"psnr": "psnr", "ssim": "ssim", "lpips": "lpips", "hed-lpips": "lpips"}
PAPER_MEASURES = ("psnr", "ssim", "lpips")

_BASELINE = "bicubic resize"


@dataclass(frozen=True)
class AblateCommand(Generic[C]):
    """Trains the rows of a paper's ablation tables on bundled photographs and compares their order with the paper's.

    A restarted run resumes where it stopped; finished rows are not trained again.
    """

    out: Path
    """Folder of the tables, the plot, and all that is trained."""
    config: Annotated[C, tyro.conf.arg(name="")]
    weights: PerceptualFiles = field(default_factory=PerceptualFiles)
    preset: str = "tiny"
    """A preset's name, or a YAML file in the same form; any of its numbers can be overridden here."""
    seeds: Annotated[tuple[Annotated[int, Bound(0, 2**63 - 1)], ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """Every row is trained once per seed, in place of --run.seed."""
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
    method.check(command.config, command.weights)
    check_bundled_scale(command.config.scale)
    tables = _selected(method.tables(command.config), command.rows)
    device = pick_device(command.device)
    lpips = load_perceptual(command.weights, device)
    run = Run(command.out, command.out if command.resume == "never" else None)
    try:
        write_text(run.folder / "config.yaml", dump_yaml(command.config))
        shared = run, device, command.weights, lpips
        trials = [Trial(seed, bundled_domains(seed), run.folder / f"seed{seed}", *shared) for seed in command.seeds]
        results = train_rows(tables, trials)
        write_results(run.folder / f"{name}_ablation", method, command, tables, results)
        for table in tables:
            run.say("", rich_table(table, results), *order_notes(table, results))
        run.say(f"\ndone: {run.folder / f'{name}_ablation.md'}")
    finally:
        run.close()
    return 0


def parse(name: str, method: AblationParts[C], arguments: Sequence[str]) -> AblateCommand[C]:
    """Parses the command line; everything it does not set comes from the preset it names."""
    preset = option_of(arguments, "preset", AblateCommand.preset)
    command: AblateCommand[C] = tyro.cli(
        AblateCommand[method.config],
        args=arguments,
        default=AblateCommand(out=tyro.MISSING, preset=preset, config=method.load_preset(preset)),
        prog=f"python -m models ablate {name}",
        description=AblateCommand.__doc__,
    )
    check_bounds(command)
    if len(set(command.seeds)) < len(command.seeds):
        raise InputError(f"--seeds must be different numbers, got {command.seeds}")
    return command


def train_rows(tables: Sequence[PaperTable], trials: Sequence[Trial]) -> dict[str, list[Score]]:
    """Scores of every row by its name, and of the baselines by their table's, one per seed."""
    results: dict[str, list[Score]] = {}
    for trial in trials:
        seed = trial.seed
        for table in tables:
            results.setdefault(table.name, []).append(table.baseline(trial))
            for unseeded in table.rows:
                config = replace(unseeded.config, run=replace(unseeded.config.run, seed=seed))
                row = replace(unseeded, config=config)
                what = ", ".join(f"{column} {cell}" for column, cell in zip(table.columns, row.cells, strict=True))
                trial.run.say(f"{row.name} of {table.name}, seed {seed}: {what}", style="bold")
                folder = trial.folder / row.name
                write_text(folder / "config.yaml", dump_yaml(config))
                results.setdefault(row.name, []).append(table.train(row, trial))
    return results


def rich_table(table: PaperTable, results: Results) -> Table:
    header, lines = _grid(table, results)
    shown = Table(title=f"{table.title}\n{table.judged}")
    for number, name in enumerate(header):
        numeric = number > len(table.columns)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=number == 0)
    for line in lines:
        shown.add_row(*line)
    return shown


def order_notes(table: PaperTable, results: Results) -> list[str]:
    """For each measure, the order of the rows here and in the paper, and how many pairs of rows agree.

    The rows of a pair are compared seed by seed: they start alike and see the same pictures. A difference counts as
    clear if its mean exceeds its standard deviation over the seeds.
    """
    if len(table.rows) < 2:
        return []
    notes = []
    for measure in measured(table, results):
        title, sign, of_paper = _title(measure), _sign(measure), _IN_PAPER[measure]
        gains = []  # by seed, of the paper's better row of a pair over its worse one
        for a, b in combinations(table.rows, 2):
            better, worse = (a, b) if sign * a.paper[of_paper] > sign * b.paper[of_paper] else (b, a)
            gains.append(sign * (_values(results, better.name, measure) - _values(results, worse.name, measure)))
        agree = sum(gain.mean() > 0 for gain in gains)
        here = _ordered(
            table, lambda row, measure=measure, sign=sign: sign * float(np.mean(_values(results, row.name, measure)))
        )
        paper = _ordered(table, lambda row, of_paper=of_paper, sign=sign: sign * row.paper[of_paper])
        by = "" if measure == of_paper else f" by {_title(of_paper)}"
        verdict = f"{agree} of {len(gains)} pairs of rows stand as in the paper"
        if _single(results):
            verdict += "; one seed does not tell which of these differences are more than chance"
        else:
            clear = [gain.mean() for gain in gains if abs(gain.mean()) > gain.std(ddof=1)]
            clearly = sum(mean > 0 for mean in clear)
            verdict += (
                f"; {len(clear)} differ by more than the spread over the seeds, {clearly} of these as in the paper and "
                f"{len(clear) - clearly} the other way round"
            )
        notes.append(f"{title}, best first: here {here}; in the paper{by} {paper}. {verdict}.")
    return notes


def write_results(
    stem: Path, method: AblationParts[C], command: AblateCommand[C], tables: Sequence[PaperTable], results: Results
) -> None:
    """Writes `<stem>.md`, `<stem>.csv` and `<stem>.png`, each whole."""
    setting = _setting(method, command, measured(tables[0], results))
    lines = [f"# {method.title}: ablation in miniature", "", *setting, ""]
    for table in tables:
        header, rows = _grid(table, results)
        ruler = ["---"] * (1 + len(table.columns)) + ["---:"] * (len(header) - 1 - len(table.columns))
        lines += [f"## {table.title}", "", f"{table.judged}.", ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (header, ruler, *rows)]
        lines += ["", *(f"- {note}" for note in order_notes(table, results)), ""]
    lines += [f"![Rows against the mean of their table]({stem.name}.png)", ""]
    write_text(stem.with_suffix(".md"), "\n".join(lines))
    write_whole(stem.with_suffix(".csv"), lambda path: _write_csv(path, command.seeds, tables, results))
    panels = [[_panel(table, results, each) for each in measured(table, results)] for table in tables]
    save_comparison(stem.with_suffix(".png"), panels)


def _selected(tables: Sequence[PaperTable], names: Sequence[str]) -> list[PaperTable]:
    """The tables with only the rows of these names; tables left without rows are dropped."""
    known = [row.name for table in tables for row in table.rows]
    for name in names:
        if name not in known:
            raise InputError(f"--rows: no row is named {name!r}, there are {', '.join(known)}")
    kept = (replace(table, rows=tuple(row for row in table.rows if not names or row.name in names)) for table in tables)
    return [table for table in kept if table.rows]


def _setting(method: AblationParts[C], command: AblateCommand[C], measures: Sequence[str]) -> list[str]:
    domains = bundled_domains(command.seeds[0])
    names = {
        "clean HR": domains.clean_hr,
        "real LR": domains.real_lr,
        "held out": [hr for _, hr in domains.held_out],
    }
    pictures = "; ".join(f"{role}: {', '.join(photo.name for photo in photos)}" for role, photos in names.items())
    return [
        "**This is not the paper's setting, and its values are not reproduced here.** One thing is asked: whether the "
        "rows come out in the same order in miniature.",
        "",
        f"- Here: preset {command.preset}; {method.setting(command.config)}; seed{'s' * (len(command.seeds) > 1)} "
        f"{', '.join(map(str, command.seeds))}. Every row starts from the same seed and sees the same pictures.",
        f"- Target domain here: synthetic, a simulated camera that no network knows of (lens blur {CAMERA.blur} HR "
        f"pixels, shot and read noise, JPEG {CAMERA.jpeg_quality}), on bundled photographs ({pictures}).",
        f"- Paper: {method.paper_setting}.",
        "- Our numbers are means over the held-out pictures"
        + (", then mean ± standard deviation over the seeds." if len(command.seeds) > 1 else "; one seed, no spread.")
        + _perceptual_note(measures),
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


def measured(table: PaperTable, results: Results) -> list[str]:
    """What every row of a table, and its baseline, was measured by."""
    names = (table.name, *(row.name for row in table.rows))
    return [each for each in MEASURES if all(each in score for name in names for score in results.get(name, ()))]


def _title(measure: str) -> str:
    title, _, unit, _ = MEASURES[measure]
    return f"{title} ({unit.strip()})" if unit else title


def _sign(measure: str) -> int:
    return -1 if MEASURES[measure].lower_is_better else 1


def _grid(table: PaperTable, results: Results) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of a table, ours and the paper's."""
    ours, paper = measured(table, results), [f"{_title(each)}, paper" for each in PAPER_MEASURES]
    header = ["row", *table.columns, *map(_title, ours), *paper]
    blanks = [""] * len(table.columns), ["-"] * len(PAPER_MEASURES)
    lines = [[_BASELINE, *blanks[0], *_ours(results, table.name, ours), *blanks[1]]]
    for row in table.rows:
        of_paper = [f"{row.paper[measure]:.{table.digits[measure]}f}" for measure in PAPER_MEASURES]
        lines.append([row.name, *row.cells, *_ours(results, row.name, ours), *of_paper])
    return header, lines


def _ours(results: Results, name: str, measures: Sequence[str]) -> list[str]:
    cells = []
    for measure in measures:
        values, digits = _values(results, name, measure), _DIGITS[measure]
        spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{values.mean():.{digits}f}{spread}")
    return cells


def _panel(table: PaperTable, results: Results, measure: str) -> Panel:
    ours = [_values(results, row.name, measure) for row in table.rows]
    better = " (less is better)" if MEASURES[measure].lower_is_better else ""
    return Panel(
        title=f"{table.title.partition('.')[0]}: {_title(measure)}{better}",
        labels=[row.name for row in table.rows],
        ours=[float(values.mean()) for values in ours],
        spread=[0.0 if len(values) == 1 else float(values.std(ddof=1)) for values in ours],
        paper=[row.paper[_IN_PAPER[measure]] for row in table.rows],
        digits=_DIGITS[measure],
    )


def _write_csv(path: Path, seeds: Sequence[int], tables: Sequence[PaperTable], results: Results) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        known = [each for each in MEASURES if any(each in score for scores in results.values() for score in scores)]
        writer.writerow(["table", "row", "seed", *known, *(f"paper_{measure}" for measure in PAPER_MEASURES)])
        for table in tables:
            papers: dict[str, Mapping[str, float]] = {table.name: {}, **{row.name: row.paper for row in table.rows}}
            for name, paper in papers.items():
                for seed, score in zip(seeds, results[name], strict=True):
                    row = "bicubic_resize" if name == table.name else name
                    cells = [
                        *(score.get(each, "") for each in known),
                        *(paper.get(each, "") for each in PAPER_MEASURES),
                    ]
                    writer.writerow([table.name, row, seed, *cells])


def _ordered(table: PaperTable, value: Callable[[Row], float]) -> str:
    return " > ".join(row.name for row in sorted(table.rows, key=value, reverse=True))


def _values(results: Results, name: str, measure: str) -> np.ndarray:
    return np.array([score[measure] for score in results[name]])


def _single(results: Results) -> bool:
    return all(len(scores) == 1 for scores in results.values())
