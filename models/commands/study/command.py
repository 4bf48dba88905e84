"""`python -m models study`: a page on which people score results against their references, and what they said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from models.commands.folders import named_folders
from models.commands.study.page import build_page
from models.commands.study.scores import explain, preference_table, read_ratings, score_table
from models.config import Bound, check_bounds
from models.data import InputError
from models.data.files import readable, write_text
from models.train.run import make_console

# MB of a page, beyond which browsers take long to open it and phones may give up.
_LARGE = 100


@dataclass(frozen=True)
class StudyOptions:
    """Makes one self-contained page on which people score results (mean opinion score), or reads what they said.

    The page shows a result beside its reference, without the method's name and in an order of its own for each person,
    and asks for DASR's score: 0 the same, 1 very similar, 2 similar, 3 not similar, 4 different. It needs no
    network, keeps its place when it is reloaded, and gives its scores as a CSV file. Pictures are matched by name as
    `evaluate` does.
    """

    methods: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME=]DIR ...")] = ()
    """Folders of results, one for each method, under the folder's name or the one given."""
    hr: Path | None = None
    """Folder of the reference pictures, of the same sizes."""
    out: Path | None = None
    """The page to write, such as study.html."""
    crop: Annotated[int, Bound(0, 16384)] = 480
    """Side in pixels of the window that is shown of larger pictures, where the reference has most edges. Two of 480
    stand unscaled side by side on a laptop; 0 shows whole pictures."""
    seed: Annotated[int, Bound(0, 2**32 - 1)] = 0
    """Of the orders in which pictures are shown, with each person's own number."""
    score: tuple[Path, ...] = ()
    """CSV files from the page of one study, one for each person: prints the scores, in place of making a page."""


def main(arguments: Sequence[str]) -> int:
    return run_study(tyro.cli(StudyOptions, args=arguments, prog="python -m models study"))


def run_study(options: StudyOptions) -> int:
    """Writes the page, or prints the tables of scores, and returns 0. Raises InputError naming what cannot be used."""
    check_bounds(options)
    console = make_console()
    if options.score:
        if options.methods or options.hr or options.out:
            raise InputError("--score reads CSV files and makes no page: it goes without folders, --hr and --out")
        ratings = read_ratings(options.score)
        console.print(score_table(ratings))
        if len(ratings.methods) > 1:
            console.print(preference_table(ratings))
        console.out(explain(ratings), highlight=False)
        return 0
    if not options.methods or options.hr is None or options.out is None:
        raise InputError("a page needs folders of results, --hr and --out; --score reads the CSV files of one")
    page = build_page(named_folders(options.methods), options.hr, options.crop, options.seed)
    try:
        write_text(options.out, page.html)
    except OSError as error:
        raise InputError(f"--out: cannot write {options.out}: {error.strerror}") from error
    size = len(page.html.encode()) / 1e6
    console.out(
        f"{readable(str(options.out))}: study {page.study}, {page.questions} pictures to score, {size:.1f} MB",
        highlight=False,
    )
    if size > _LARGE:
        console.out("note: a page of this size is slow to open; fewer pictures or a smaller --crop make it smaller")
    return 0
