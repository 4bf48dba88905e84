"""`python -m models ablate`: trains the rows of a paper's ablation tables in miniature, beside the paper's numbers.

A method brings its tables, row by row (`METHODS`); what is here is common: seeds, results, order of rows, files.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
import torch
import tyro
from rich.table import Table

from models import metrics
from models.checkpoint import write_whole
from models.config import dump_yaml, option_of
from models.data import InputError
from models.device import pick_device
from models.loop import History
from models.photographs import CAMERA, SCALE, Domains, bundled_domains, check_scale
from models.pictures import Panel, save_comparison
from models.run import Run, set_aside
from models.training import resized
from models.validation import Score, score

C = TypeVar("C")
Results = Mapping[str, Sequence[Score]]

# The module of each method; it has a `METHOD`. Imported when named.
METHODS = {"dasr": "models.dasr.ablation", "usrda": "models.usrda.ablation"}

# Title and digits; higher is better in both that are measured. LPIPS needs weights that are not bundled.
MEASURES = {"psnr": ("PSNR (dB)", 3), "ssim": ("SSIM", 4)}
PAPER_MEASURES = {**{measure: title for measure, (title, _) in MEASURES.items()}, "lpips": "LPIPS"}

# What is measured of an SR network.
JUDGED_SR = f"Real LR of the held-out HR, enlarged, against the HR, {metrics.convention(SCALE, y_channel=False)}"
_BASELINE = "bicubic resize"


@dataclass(frozen=True)
class Trial:
    """What a row is trained with: one seed, its photographs, and the folder of all that is trained with it."""

    seed: int
    domains: Domains
    folder: Path
    run: Run
    device: torch.device


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: for `--rows`.
        cells: what it is, one for each of the table's columns.
        paper: the paper's numbers by measure.
        config: what it is trained with.
    """

    name: str
    cells: tuple[str, ...]
    paper: Mapping[str, float]
    config: Any


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        name: key of its baseline among the results.
        title, columns: its heading, and those of `Row.cells`.
        judged: what our numbers compare, and how.
        digits: as many as the paper prints, by measure.
        rows: in the paper's order.
        train: trains a row, or what is left to train of it, and gives its score on the held-out pictures.
        baseline: score of the bicubic pictures.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    judged: str
    digits: Mapping[str, int]
    rows: tuple[Row, ...]
    train: Callable[[Row, Trial], Score]
    baseline: Callable[[Trial], Score]


@dataclass(frozen=True)
class Method(Generic[C]):
    """What a method brings: its options, its tables for a configuration, and a line on how it is trained here.

    Its options have a `scale`, and those of the loop as `run`.
    """

    title: str
    config: type[C]
    load_preset: Callable[[str], C]
    check: Callable[[C], None]
    tables: Callable[[C], tuple[PaperTable, ...]]
    setting: Callable[[C], str]
    paper_setting: str


@dataclass(frozen=True)
class AblateCommand(Generic[C]):
    """Trains the rows of a paper's ablation tables on bundled photographs and compares their order with the paper's.

    A run that is started again goes on where it was; rows that are done are not trained again.
    """

    out: Path
    """Folder of the tables, the plot, and all that is trained."""
    config: Annotated[C, tyro.conf.arg(name="")]
    preset: str = "tiny"
    """A preset's name, or a YAML file of that form; any of its numbers can be overridden here."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """Every row is trained once per seed, in place of --run.seed."""
    rows: tuple[str, ...] = ()
    """Rows to train, by name; all of them by default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on from what is in the folder; never keeps that under another name and starts anew."""


def main(arguments: Sequence[str]) -> int:
    """Trains and compares; 0 when it is done. Raises what `models.loop.train` raises."""
    usage = f"usage: python -m models ablate {{{','.join(METHODS)}}} --out DIR [OPTIONS]"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *options = arguments
    if name not in METHODS:
        raise InputError(f"no method {name!r}, there are {', '.join(METHODS)}")
    method: Method[Any] = import_module(METHODS[name]).METHOD
    command = parse(name, method, options)
    method.check(command.config)
    check_scale(command.config.scale)
    tables = _selected(method.tables(command.config), command.rows)
    device = pick_device(command.device)
    if command.resume == "never":
        set_aside(command.out)
    run = Run(command.out)
    try:
        (run.folder / "config.yaml").write_text(dump_yaml(command.config), encoding="utf-8")
        results = train_rows(tables, command.seeds, run, device)
        write_results(run.folder / f"{name}_ablation", method, command, tables, results)
        for table in tables:
            run.say("", rich_table(table, results), *order_notes(table, results))
        run.say(f"\ndone: {run.folder / f'{name}_ablation.md'}")
    finally:
        run.close()
    return 0


def parse(name: str, method: Method[C], arguments: Sequence[str]) -> AblateCommand[C]:
    """The command line; the preset it names gives the defaults of all that it does not."""
    preset = option_of(arguments, "preset", AblateCommand.preset)
    command: AblateCommand[C] = tyro.cli(
        AblateCommand[method.config],
        args=arguments,
        default=AblateCommand(out=tyro.MISSING, preset=preset, config=method.load_preset(preset)),
        prog=f"python -m models ablate {name}",
        description=AblateCommand.__doc__,
    )
    if not command.seeds or len(set(command.seeds)) < len(command.seeds) or min(command.seeds) < 0:
        raise InputError(f"--seeds must be different numbers from 0 on, got {command.seeds}")
    return command


def train_rows(
    tables: Sequence[PaperTable], seeds: Sequence[int], run: Run, device: torch.device
) -> dict[str, list[Score]]:
    """Scores of every row by its name, and of the baselines by their table's, one per seed."""
    results: dict[str, list[Score]] = {}
    for seed in seeds:
        trial = Trial(seed, bundled_domains(seed), run.folder / f"seed{seed}", run, device)
        for table in tables:
            results.setdefault(table.name, []).append(table.baseline(trial))
            for unseeded in table.rows:
                config = replace(unseeded.config, run=replace(unseeded.config.run, seed=seed))
                row = replace(unseeded, config=config)
                what = ", ".join(f"{column} {cell}" for column, cell in zip(table.columns, row.cells, strict=True))
                run.say(f"{row.name} of {table.name}, seed {seed}: {what}", style="bold")
                folder = trial.folder / row.name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
                results.setdefault(row.name, []).append(table.train(row, trial))
    return results


def last_score(history: History) -> Score:
    """What the loop measured behind the last update."""
    return Score(**history.measured[-1][1])


def mean_score(scores: Sequence[Score]) -> Score:
    return Score(*(float(values) for values in np.mean(scores, axis=0)))


def score_bicubic_hr(trial: Trial) -> Score:
    """The baseline of SR networks: held-out LR, enlarged."""
    return mean_score([score(resized(lr.pixels, SCALE), hr.pixels, SCALE) for lr, hr in trial.domains.held_out])


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
    for measure, (title, _) in MEASURES.items():
        gains = []  # by seed, of the paper's better row of a pair over its worse one
        for a, b in combinations(table.rows, 2):
            better, worse = (a, b) if a.paper[measure] > b.paper[measure] else (b, a)
            gains.append(_values(results, better.name, measure) - _values(results, worse.name, measure))
        agree = sum(gain.mean() > 0 for gain in gains)
        here = _ordered(table, lambda row, measure=measure: float(np.mean(_values(results, row.name, measure))))
        paper = _ordered(table, lambda row, measure=measure: row.paper[measure])
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
        notes.append(f"{title}, best first: here {here}; in the paper {paper}. {verdict}.")
    return notes


def write_results(
    stem: Path, method: Method[C], command: AblateCommand[C], tables: Sequence[PaperTable], results: Results
) -> None:
    """Writes `<stem>.md`, `<stem>.csv` and `<stem>.png`, each whole."""
    lines = [f"# {method.title}: ablation in miniature", "", *_setting(method, command), ""]
    for table in tables:
        header, rows = _grid(table, results)
        ruler = ["---"] * (1 + len(table.columns)) + ["---:"] * (len(header) - 1 - len(table.columns))
        lines += [f"## {table.title}", "", f"{table.judged}.", ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (header, ruler, *rows)]
        lines += ["", *(f"- {note}" for note in order_notes(table, results)), ""]
    lines += [f"![Rows against the mean of their table]({stem.name}.png)", ""]
    write_whole(stem.with_suffix(".md"), lambda path: path.write_text("\n".join(lines), encoding="utf-8"))
    write_whole(stem.with_suffix(".csv"), lambda path: _write_csv(path, command.seeds, tables, results))
    save_comparison(stem.with_suffix(".png"), [[_panel(table, results, each) for each in MEASURES] for table in tables])


def _selected(tables: Sequence[PaperTable], names: Sequence[str]) -> list[PaperTable]:
    """The tables with the rows of these names alone, those without any left out."""
    known = [row.name for table in tables for row in table.rows]
    for name in names:
        if name not in known:
            raise InputError(f"--rows: no row is named {name!r}, there are {', '.join(known)}")
    kept = (replace(table, rows=tuple(row for row in table.rows if not names or row.name in names)) for table in tables)
    return [table for table in kept if table.rows]


def _setting(method: Method[C], command: AblateCommand[C]) -> list[str]:
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
        + " LPIPS needs weights that are not bundled, so that only the paper's is shown.",
    ]


def _grid(table: PaperTable, results: Results) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of a table, ours and the paper's."""
    measured = [title for title, _ in MEASURES.values()]
    header = ["row", *table.columns, *measured, *(f"{title}, paper" for title in PAPER_MEASURES.values())]
    blanks = [""] * len(table.columns), ["-"] * len(PAPER_MEASURES)
    lines = [[_BASELINE, *blanks[0], *_ours(results, table.name), *blanks[1]]]
    for row in table.rows:
        paper = [f"{row.paper[measure]:.{table.digits[measure]}f}" for measure in PAPER_MEASURES]
        lines.append([row.name, *row.cells, *_ours(results, row.name), *paper])
    return header, lines


def _ours(results: Results, name: str) -> list[str]:
    cells = []
    for measure, (_, digits) in MEASURES.items():
        values = _values(results, name, measure)
        spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{values.mean():.{digits}f}{spread}")
    return cells


def _panel(table: PaperTable, results: Results, measure: str) -> Panel:
    ours = [_values(results, row.name, measure) for row in table.rows]
    title, digits = MEASURES[measure]
    return Panel(
        title=f"{table.title.partition('.')[0]}: {title}",
        labels=[row.name for row in table.rows],
        ours=[float(values.mean()) for values in ours],
        spread=[0.0 if len(values) == 1 else float(values.std(ddof=1)) for values in ours],
        paper=[row.paper[measure] for row in table.rows],
        digits=digits,
    )


def _write_csv(path: Path, seeds: Sequence[int], tables: Sequence[PaperTable], results: Results) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "row", "seed", *MEASURES, *(f"paper_{measure}" for measure in PAPER_MEASURES)])
        for table in tables:
            papers: dict[str, Mapping[str, float]] = {table.name: {}, **{row.name: row.paper for row in table.rows}}
            for name, paper in papers.items():
                for seed, score in zip(seeds, results[name], strict=True):
                    row = "bicubic_resize" if name == table.name else name
                    writer.writerow([table.name, row, seed, *score, *(paper.get(each, "") for each in PAPER_MEASURES)])


def _ordered(table: PaperTable, value: Callable[[Row], float]) -> str:
    return " > ".join(row.name for row in sorted(table.rows, key=value, reverse=True))


def _values(results: Results, name: str, measure: str) -> np.ndarray:
    return np.array([getattr(score, measure) for score in results[name]])


def _single(results: Results) -> bool:
    return all(len(scores) == 1 for scores in results.values())
