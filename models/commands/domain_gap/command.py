"""`python -m models domain-gap`: how far generated LR pictures are from real ones, as DASR's Figure 1 shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.progress import track
from rich.table import Table

from models.commands.domain_gap.judge import Gap, JudgeConfig, gap, judge
from models.commands.domain_gap.maps import Found, correlate
from models.commands.folders import named_folders
from models.config import Bound, Pixels, check_bounds, to_mapping
from models.data import InputError, MapSource, Source, check_names, open_source
from models.data.files import readable, write_text
from models.evaluate.pictures import save_histograms
from models.evaluate.statistics import span
from models.train.device import pick_device
from models.train.run import make_console


@dataclass(frozen=True)
class DomainGapOptions:
    """Trains a fresh discriminator to tell groups of generated LR pictures from real ones, and scores held-out ones.

    Writes a histogram of its scores for each group, and one number of how far each is from real LR: the area under the
    ROC curve, 0.5 where the discriminator cannot tell them apart and 1 where it always can. Groups and real LR should
    show the same contents, or contents of one kind: the discriminator learns whatever difference there is.
    """

    groups: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME=]DIR ...")]
    """Folders or databases of generated LR pictures, under their own names or the ones given."""
    real: Path
    """Real LR pictures."""
    out: Path
    """The folder to write."""
    config: Annotated[JudgeConfig, tyro.conf.arg(name="")] = field(default_factory=JudgeConfig)
    seeds: Annotated[tuple[Annotated[int, Bound(0, 2**63 - 1)], ...], tyro.conf.arg(aliases=["--seed"])] = (*range(5),)
    """One training and one choice of held-out pictures for each."""
    maps: tuple[str, ...] = ()
    """Folders of a group's domain-distance maps, NAME=DIR: are they low where the group's pictures are wrong?"""
    truth: Path | None = None
    """What the real camera gives of the same scenes, under the same names; for --maps."""
    region: Pixels = 8
    """Side in pixels of the regions over which --maps and the true error are compared."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""


def main(arguments: Sequence[str]) -> int:
    return run_domain_gap(tyro.cli(DomainGapOptions, args=arguments, prog="python -m models domain-gap"))


def run_domain_gap(options: DomainGapOptions) -> int:
    """Writes `domain_gap.png` and `domain_gap.json`, prints the table, and returns 0.

    Raises InputError naming an option, a folder or a picture that cannot be used.
    """
    check_bounds(options)
    if len(set(options.seeds)) < len(options.seeds):
        raise InputError(f"--seeds must be different numbers, got {options.seeds}")
    folders = named_folders(options.groups)
    if not folders:
        raise InputError("no group is given: name folders of generated LR pictures, [NAME=]DIR")
    if "real" in folders:
        raise InputError("no group can be named real, as what it is compared with: write NAME=DIR")
    sources = [open_source(folder) for folder in (options.real, *folders.values())]
    for source in sources:
        check_names(source)
    correlations = _correlations(options, dict(zip(folders, sources[1:], strict=True)))
    device = pick_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    trainings = track(options.seeds, description="trainings", transient=True)
    scored = [judge(sources, options.config, seed, device) for seed in trainings]
    real, *groups = zip(*scored, strict=True)
    gaps = {name: gap(real, group) for name, group in zip(folders, groups, strict=True)}
    scores = {
        name: np.concatenate([each.scores for each in group])
        for name, group in zip(("real", *folders), (real, *groups), strict=True)
    }
    notes = {name: f"area under the ROC curve {found.area:.3f}" for name, found in gaps.items()}
    save_histograms(options.out / "domain_gap.png", scores, notes)
    record = {
        "real": {"pictures": len(sources[0]), "crops": len(scores["real"])},
        "groups": {
            name: {"pictures": len(source), "crops": len(scores[name]), **found._asdict()}
            for (name, found), source in zip(gaps.items(), sources[1:], strict=True)
        },
        "maps": {
            name: {"spearman": plain._asdict(), "contrast_held_fixed": partial._asdict()}
            for name, (plain, partial) in correlations.items()
        },
        "settings": {**to_mapping(options.config), "seeds": list(options.seeds)},
    }
    write_text(options.out / "domain_gap.json", json.dumps(record, indent=2) + "\n")
    console = make_console()
    console.print(_table(gaps))
    if correlations:
        console.print(_map_table(correlations, options.region))
    if not any(set(source.names) & set(sources[0].names) for source in sources[1:]):
        console.out("note: no group shares a name with real LR; where contents differ, they are part of the gap")
    console.out(f"done: {readable(str(options.out / 'domain_gap.png'))}", highlight=False)
    return 0


def _correlations(options: DomainGapOptions, groups: Mapping[str, Source]) -> dict[str, tuple[Found, Found]]:
    """How well the maps of groups find their true error."""
    folders = named_folders(options.maps)
    if bool(folders) != (options.truth is not None):
        raise InputError("--maps and --truth go together: maps are compared with the true error")
    for name in folders:
        if name not in groups:
            raise InputError(f"--maps: no group is named {name}, there are {', '.join(groups)}")
    return {
        name: correlate(groups[name], open_source(options.truth), MapSource(folder), options.region)
        for name, folder in folders.items()
    }


def _map_table(found: Mapping[str, tuple[Found, Found]], region: int) -> Table:
    table = Table(
        "group",
        title=f"Maps against the true error, regions of {region} pixels: below 0 they find it",
        title_justify="left",
    )
    for column in ("Spearman", "95 % interval", "contrast held fixed", "95 % interval", "pictures"):
        table.add_column(column, justify="right")
    for name, both in found.items():
        cells = [cell for each in both for cell in (f"{each.mean:+.3f}", span(each.interval, "+.3f"))]
        table.add_row(readable(name), *cells, str(len(both[0].pictures)))
    return table


def _table(gaps: Mapping[str, Gap]) -> Table:
    table = Table("group", title="Area under the ROC curve against real LR, held-out crops", title_justify="left")
    for name in ("area", "95 % interval", "least to most of a seed"):
        table.add_column(name, justify="right")
    for name, found in gaps.items():
        table.add_row(
            readable(name),
            f"{found.area:.3f}",
            span(found.interval, ".3f"),
            f"{min(found.each):.3f} to {max(found.each):.3f}",
        )
    return table
