"""What people said on the page of a study: their CSV files, means with intervals, and preferences."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from models.data import InputError
from models.data.files import read_text, readable
from models.evaluate.statistics import Interval, interval, resample, span

HEADER = ["study", "rater", "question", "of", "picture", "method", "score"]


class Ratings(NamedTuple):
    """Scores (methods, raters, pictures), 0 for the same as the reference to 4 for different; NaN for none."""

    study: str
    methods: list[str]
    scores: NDArray[np.float64]


class _File(NamedTuple):
    path: Path
    study: str
    rater: str
    scores: dict[tuple[str, str], float]  # by (method, picture)


def read_ratings(paths: Sequence[Path]) -> Ratings:
    """The scores in the files of one study, one for each rater.

    Raises InputError naming a file that is damaged, of another study than the first, or of a rater who had one before,
    and if nothing was scored at all.
    """
    files: list[_File] = []
    for path in paths:
        file = _read(path)
        for other in files:
            if file.study != other.study:
                raise InputError(f"{path} is of study {file.study}, {other.path} of study {other.study}")
            if file.scores.keys() != other.scores.keys():
                raise InputError(f"{path} has other pictures or methods than {other.path}, of the same study")
            if file.rater == other.rater:
                raise InputError(f"{path} and {other.path} are both of rater {file.rater}: give one of them")
        files.append(file)
    methods, pictures = (sorted({key[place] for key in files[0].scores}) for place in (0, 1))
    scores = np.array([[[file.scores[m, p] for p in pictures] for file in files] for m in methods])
    if np.isnan(scores).all():
        raise InputError(f"nothing is scored in {', '.join(map(str, paths))}")
    return Ratings(files[0].study, methods, scores)


def _read(path: Path) -> _File:
    try:
        rows = [row for row in csv.reader(io.StringIO(read_text(path), newline=""), strict=True) if row]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"cannot read the scores in {path}: {error}") from error
    if not rows or rows[0] != HEADER:
        raise InputError(f"{path} is no CSV file of a study: its first line must be {','.join(HEADER)}")
    rows = rows[1:]
    scores: dict[tuple[str, str], float] = {}
    for number, row in enumerate(rows, 2):
        if len(row) != len(HEADER):
            raise InputError(f"{path}, row {number}: {len(row)} cells, expected {len(HEADER)}")
        study, rater, _, of, picture, method, score = row
        if [study, rater] != rows[0][:2]:
            raise InputError(
                f"{path}, row {number}: study {study}, rater {rater} in a file of {' and '.join(rows[0][:2])}"
            )
        if of != str(len(rows)):
            raise InputError(f"{path} has {len(rows)} rows of scores, its row {number} speaks of {of}")
        if score not in ("", "0", "1", "2", "3", "4"):
            raise InputError(f"{path}, row {number}: the score must be 0 to 4, or empty, got {score!r}")
        if (method, picture) in scores:
            raise InputError(f"{path}, row {number}: {picture} by {method} was scored in an earlier row")
        scores[method, picture] = float(score) if score else math.nan
    if not rows or len(rows) != math.prod(len({key[place] for key in scores}) for place in (0, 1)):
        raise InputError(f"{path} lacks rows: every picture must be there once for every method")
    return _File(path, rows[0][0], rows[0][1], scores)


def score_table(ratings: Ratings) -> Table:
    """The mean opinion score of every method, best first."""
    table = Table("method", title=f"Mean opinion scores, study {ratings.study}", title_justify="left")
    for name in ("scores", "mean", "95 % interval", "spread"):
        table.add_column(name, justify="right")
    for index in _best_first(ratings):
        scores = ratings.scores[index]
        given = scores[~np.isnan(scores)]
        mean = f"{given.mean():.2f}" if len(given) else "-"
        spread = f"{given.std(ddof=1):.2f}" if len(given) > 1 else "-"
        table.add_row(
            readable(ratings.methods[index]),
            f"{len(given)} of {scores.size}",
            mean,
            span(_interval(scores), ".2f"),
            spread,
        )
    return table


def preference_table(ratings: Ratings) -> Table:
    """For each two methods, how often a person scored one better than the other on the same picture."""
    table = Table(
        title="Preference: one person's scores of one picture by two methods; difference: second less first",
        title_justify="left",
    )
    for name in ("first", "second"):
        table.add_column(name)
    for name in ("pairs", "first better", "alike", "second better", "difference", "95 % interval"):
        table.add_column(name, justify="right")
    for first, second in combinations(_best_first(ratings), 2):
        gain = ratings.scores[second] - ratings.scores[first]
        given = gain[~np.isnan(gain)]
        shares = (
            [f"{100 * np.mean(each):.0f} %" for each in (given > 0, given == 0, given < 0)] if len(given) else "---"
        )
        mean = f"{given.mean():+.2f}" if len(given) else "-"
        names = (readable(ratings.methods[index]) for index in (first, second))
        table.add_row(*names, str(len(given)), *shares, mean, span(_interval(gain), "+.2f"))
    return table


def _best_first(ratings: Ratings) -> list[int]:
    means = [np.nanmean(scores) if not np.isnan(scores).all() else math.inf for scores in ratings.scores]
    return [int(index) for index in np.argsort(means, kind="stable")]


def _interval(values: NDArray[np.float64]) -> Interval | None:
    """Of the mean of (raters, pictures): either may vary in another study, so both are drawn anew."""
    given = ~np.isnan(values)
    if given.sum() < 2:
        return None
    rng = np.random.default_rng(0)
    raters, pictures = (resample(count, rng) for count in values.shape)
    total, count = (((raters @ each) * pictures).sum(1) for each in (np.where(given, values, 0), given))
    with np.errstate(invalid="ignore"):  # a replicate without a score is left out
        return interval(total / count)


def explain(ratings: Ratings) -> str:
    """What the tables' numbers are, on one line."""
    raters, pictures = ratings.scores.shape[1:]
    return (
        f"0 the same to 4 different: less is better; raters: {raters}; pictures: {pictures}; "
        "spread: standard deviation of single scores; intervals: bootstrap over raters and pictures"
    )
