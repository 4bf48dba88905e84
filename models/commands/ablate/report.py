"""What the ablation says and writes: the plan, the tables beside the paper's, paired differences, plot and CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from models.commands.ablate.parts import Claim, PaperTable, Row
from models.data.files import write_text, write_whole
from models.evaluate.pictures import Panel, save_comparison
from models.evaluate.statistics import CONFIDENCE, Difference, difference
from models.evaluate.validation import MEASURES, Score

# Of a row, or of a table's baseline, by name: the scores of every picture, one list per seed.
Results = Mapping[str, Sequence[Sequence[Score]]]
Grid = tuple[list[str], list[list[str]]]

BASELINE = "bicubic resize"


# Digits that are shown, and what a paper's numbers are compared with: HED-LPIPS is not what it calls LPIPS.
_DIGITS = {"psnr": 3, "ssim": 4, "lpips": 4, "hed-lpips": 4}
_IN_PAPER = {"psnr": "psnr", "ssim": "ssim", "lpips": "lpips", "hed-lpips": "lpips"}
PAPER_MEASURES = ("psnr", "ssim", "lpips")


def measured(tables: Sequence[PaperTable], results: Results) -> list[str]:
    """What every row of the tables, and their baselines, were measured by."""
    names = {name for table in tables for name in (table.name, *(row.name for row in table.rows))}
    scores = [score for name in names for score in chain.from_iterable(results.get(name, ()))]
    return [each for each in MEASURES if all(each in score for score in scores)]


def plan_grid(table: PaperTable, seeds: Sequence[int]) -> Grid:
    """Weights and lengths of every row, for before anything is trained."""
    plans = [table.plan(row.config) for row in table.rows]
    lines = [[row.name, *plan.values(), str(len(seeds))] for row, plan in zip(table.rows, plans, strict=True)]
    return ["row", *plans[0], "seeds"], lines


def score_grid(table: PaperTable, results: Results) -> Grid:
    """Heading and cells of a table, ours and the paper's."""
    ours = measured([table], results)
    header = ["row", *table.columns, *map(_title, ours), *(f"{_title(each)}, paper" for each in PAPER_MEASURES)]
    lines = [[BASELINE, *[""] * len(table.columns), *_ours(results, table.name, ours), *["-"] * len(PAPER_MEASURES)]]
    for row in table.rows:
        paper = [
            f"{row.paper[measure]:.{table.digits[measure]}f}" if measure in row.paper else "-"
            for measure in PAPER_MEASURES
        ]
        lines.append([row.name, *row.cells, *_ours(results, row.name, ours), *paper])
    return header, lines


def claim_grid(table: PaperTable, results: Results) -> Grid:
    """What each claim's rows differ by, picture by picture and seed by seed, positive where the claim holds."""
    measures = measured([table], results)
    header = ["gain of", *map(_title, measures)]
    lines = []
    for claim in table.claims:
        if all(name in results for name in (*claim.better, *claim.worse)):
            cells = [_told(gain(claim, results, measure), _DIGITS[measure]) for measure in measures]
            lines.append([claim.says, *cells])
    return header, lines


def gain(claim: Claim, results: Results, measure: str) -> Difference:
    """Positive is in the claim's favour, whether higher or lower is better."""
    better, worse = (sum(_values(results, name, measure) for name in names) for names in (claim.better, claim.worse))
    return difference(_sign(measure) * (better - worse).ravel())  # type: ignore[union-attr]


def rich_table(title: str, grid: Grid, words: int) -> Table:
    """A table for the terminal, whose first `words` columns are no numbers."""
    header, lines = grid
    shown = Table(title=title)
    for number, name in enumerate(header):
        shown.add_column(name, justify="left" if number < words else "right", overflow="fold", no_wrap=number == 0)
    for line in lines:
        shown.add_row(*line)
    return shown


def order_notes(table: PaperTable, results: Results) -> list[str]:
    """For each measure that the paper has too, the order of its rows here and there, and how many pairs agree.

    The rows of a pair are compared seed by seed: they start alike and see the same pictures. A difference counts as
    clear if its mean exceeds its standard deviation over the seeds.
    """
    rows, notes = [row for row in table.rows if row.paper], []
    if len(rows) < 2:
        return []
    seeds = len(results[rows[0].name])
    for name in _comparable(table, rows, results):
        title, sign, of_paper = _title(name), _sign(name), _IN_PAPER[name]
        gains = []  # by seed, of the paper's better row of a pair over its worse one
        for a, b in combinations(rows, 2):
            better, worse = (a, b) if sign * a.paper[of_paper] > sign * b.paper[of_paper] else (b, a)
            gains.append(sign * (_by_seed(results, better.name, name) - _by_seed(results, worse.name, name)))
        agree = sum(each.mean() > 0 for each in gains)
        here = _ordered(rows, lambda row, name=name, sign=sign: sign * _by_seed(results, row.name, name).mean())
        paper = _ordered(rows, lambda row, of_paper=of_paper, sign=sign: sign * row.paper[of_paper])
        by = "" if name == of_paper else f" by {_title(of_paper)}"
        verdict = f"{agree} of {len(gains)} pairs of rows stand as in the paper"
        if seeds == 1:
            verdict += "; one seed does not tell which of these differences are more than chance"
        else:
            clear = [each.mean() for each in gains if abs(each.mean()) > each.std(ddof=1)]
            clearly = sum(mean > 0 for mean in clear)
            verdict += (
                f"; {len(clear)} differ by more than the spread over the seeds, {clearly} of these as in the paper and "
                f"{len(clear) - clearly} the other way round"
            )
        notes.append(f"{title}, best first: here {here}; in the paper{by} {paper}. {verdict}.")
    return notes


def write_results(
    stem: Path,
    opening: Sequence[str],
    tables: Sequence[PaperTable],
    results: Results,
    seeds: Sequence[int],
    pictures: Mapping[str, Sequence[str]],
) -> None:
    """Writes `<stem>.md`, `<stem>.csv` and, if the paper has numbers to compare with, `<stem>.png`, each whole.

    `opening` stands at the top of the page; `pictures` names the judged photographs of each table.
    """
    lines = [*opening, ""]
    for table in tables:
        words = 1 + len(table.columns)
        lines += [f"## {table.title}", "", f"{table.judged}. Camera: {table.camera}.", ""]
        lines += [*_markdown(plan_grid(table, seeds), 1), "", *_markdown(score_grid(table, results), words), ""]
        claims = claim_grid(table, results)
        if claims[1]:
            lines += [*_markdown(claims, 1), ""]
        lines += [*(f"- {note}" for note in order_notes(table, results)), ""]
    panels = [_panels(table, results) for table in tables]
    if any(panels):
        lines += [f"![Rows against the mean of their table]({stem.name}.png)", ""]
        save_comparison(stem.with_suffix(".png"), [each for each in panels if each])
    write_text(stem.with_suffix(".md"), "\n".join(lines))
    write_whole(stem.with_suffix(".csv"), lambda path: _write_csv(path, tables, results, seeds, pictures))


def statistics_note() -> str:
    """What the numbers of the tables of claims are."""
    return (
        "Gains are differences of two rows, picture by picture and seed by seed, positive where the first is better: "
        "their mean, the "
        f"{CONFIDENCE:.0%} interval of Student's t over all pictures x seeds, taken for independent (they share "
        "photographs, so it is narrower than one over fresh photographs would be), and how many of them are above 0. "
        "An interval that excludes 0 is bold."
    )


def _told(found: Difference, digits: int) -> str:
    favour = f"({found.above} of {found.pairs})"
    if found.pairs == 1:
        return f"{found.mean:+.{digits}f} {favour}"
    text = f"{found.mean:+.{digits}f} ± {found.half_width:.{digits}f}"
    shown = found.clear and float(f"{found.mean:.{digits}f}") != 0
    return f"**{text}** {favour}" if shown else f"{text} {favour}"


def _markdown(grid: Grid, words: int) -> list[str]:
    header, lines = grid
    ruler = ["---"] * words + ["---:"] * (len(header) - words)
    return [f"| {' | '.join(cells)} |" for cells in (header, ruler, *lines)]


def _title(measure: str) -> str:
    title, _, unit, _ = MEASURES[measure]
    return f"{title} ({unit.strip()})" if unit else title


def _sign(measure: str) -> int:
    return -1 if MEASURES[measure].lower_is_better else 1


def _comparable(table: PaperTable, rows: Sequence[Row], results: Results) -> list[str]:
    """What these rows were measured by and have numbers of in the paper."""
    return [each for each in measured([table], results) if rows and all(_IN_PAPER[each] in row.paper for row in rows)]


def _ours(results: Results, name: str, measures: Sequence[str]) -> list[str]:
    cells = []
    for measure in measures:
        values, digits = _by_seed(results, name, measure), _DIGITS[measure]
        spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{values.mean():.{digits}f}{spread}")
    return cells


def _panels(table: PaperTable, results: Results) -> list[Panel]:
    rows = [row for row in table.rows if row.paper]
    panels = []
    for name in _comparable(table, rows, results):
        ours = [_by_seed(results, row.name, name) for row in rows]
        better = " (less is better)" if MEASURES[name].lower_is_better else ""
        panels.append(
            Panel(
                title=f"{table.title.partition('.')[0]}: {_title(name)}{better}",
                labels=[row.name for row in rows],
                ours=[float(values.mean()) for values in ours],
                spread=[0.0 if len(values) == 1 else float(values.std(ddof=1)) for values in ours],
                paper=[row.paper[_IN_PAPER[name]] for row in rows],
                digits=_DIGITS[name],
            )
        )
    return panels


def _write_csv(
    path: Path,
    tables: Sequence[PaperTable],
    results: Results,
    seeds: Sequence[int],
    pictures: Mapping[str, Sequence[str]],
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        measures = measured(tables, results)
        writer.writerow(["table", "row", "seed", "picture", *measures])
        for table in tables:
            for name in (table.name, *(row.name for row in table.rows)):
                row = "bicubic_resize" if name == table.name else name
                for seed, scores in zip(seeds, results[name], strict=True):
                    for picture, score in zip(pictures[table.name], scores, strict=True):
                        writer.writerow([table.name, row, seed, picture, *(score[each] for each in measures)])


def _ordered(rows: Sequence[Row], value: Callable[[Row], float]) -> str:
    return " > ".join(row.name for row in sorted(rows, key=value, reverse=True))


def _by_seed(results: Results, name: str, measure: str) -> NDArray[np.float64]:
    """Means over the pictures, one per seed."""
    return _values(results, name, measure).mean(1)


def _values(results: Results, name: str, measure: str) -> NDArray[np.float64]:
    """(seeds, pictures)."""
    return np.array([[each[measure] for each in scores] for scores in results[name]])
