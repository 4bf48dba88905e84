"""What the demo reports at its end: scores, tables, pictures, `metrics.json`."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

import srkernels
from models.commands.demo.timing import Timing
from models.data import Photo, write_picture
from models.data.files import write_text
from models.data.photographs import SCALE, Domains
from models.evaluate import pictures
from models.evaluate.validation import MEASURES, Judge, Picture, Score, caption, mean_score
from models.train.loop import History
from srkernels.info import processor


@dataclass(frozen=True)
class Results:
    """Scores by `judge` of every held-out picture, in the order of `Domains.held_out`.

    `taught`: there was a perceptual loss.
    """

    judge: Judge
    taught: bool
    bicubic: list[Score]
    untrained: list[Score]
    trained: list[Score]

    def named(self) -> dict[str, list[Score]]:
        return {"bicubic": self.bicubic, "ours, step 0": self.untrained, "ours, trained": self.trained}

    def gain(self) -> Score:
        """Mean of trained minus mean of untrained."""
        return _difference(mean_score(self.trained), mean_score(self.untrained))

    @property
    def decisive(self) -> Sequence[str]:
        """The measures that must get better: PSNR and SSIM, or after a perceptual loss LPIPS, if it judges."""
        return self.judge.measures[2:] if self.taught and self.judge.lpips is not None else ("psnr", "ssim")

    def learned(self) -> bool:
        """Whether the means of the decisive measures got better by at least the last digit that is shown."""
        gain = self.gain()
        return all(
            (-gain[name] if MEASURES[name].lower_is_better else gain[name]) >= 10.0 ** -MEASURES[name].digits
            for name in self.decisive
        )


def _difference(after: Score, before: Score) -> Score:
    return {name: after[name] - before[name] for name in after}


def roles_table(domains: Domains) -> Table:
    """Which picture plays which role, with sizes in pixels."""

    def names(photos: Sequence[Photo]) -> str:
        return ", ".join(f"{photo.name} {photo.pixels.shape[1]}x{photo.pixels.shape[0]}" for photo in photos)

    table = Table("role", "pictures (width x height)", title="Pictures, each in one role", title_justify="left")
    table.add_row("clean HR", names(domains.clean_hr))
    table.add_row("real LR, unpaired", names(domains.real_lr))
    table.add_row("held out, LR", names([lr for lr, _ in domains.held_out]))
    return table


def result_table(domains: Domains, results: Results) -> Table:
    """Scores of bicubic and of the network before and after training."""
    judge = results.judge
    table = Table(title=f"Held-out pictures, {judge.titles} ({judge.convention})", title_justify="left")
    table.add_column("picture")
    for name in (*results.named(), "gain"):
        table.add_column(name, justify="right")
    names = [hr.name for _, hr in domains.held_out]
    for name, *scores in (
        *zip(names, *results.named().values(), strict=True),
        ("mean", *(mean_score(scores) for scores in results.named().values())),
    ):
        _, before, after = scores
        cells = [*map(_cell, scores), _cell(_difference(after, before), "+")]
        table.add_row(name, *cells, style="bold" if name == "mean" else None)
    return table


def _cell(score: Score, sign: str = "") -> str:
    return "/".join(f"{value:{sign}.{MEASURES[name].digits}f}" for name, value in score.items())


def timing_table(timings: Sequence[Timing], ops: Sequence[str], pairs: int, device: torch.device) -> Table:
    """Medians of interleaved runs on the reference ops and on the automatic choice, named in the caption."""
    picture = torch.empty(1, 3, 8, 8, device=device)
    features = torch.empty(1, 32, 8, 8, device=device).contiguous(memory_format=torch.channels_last)
    filters = torch.empty(32, 32, 3, 3, device=device)
    of_pictures = ("haar_highpass", "weighted_l1_loss")
    given = {op: (picture,) if op in of_pictures else (features, filters) for op in ops}
    chosen = [srkernels.explain(op, *inputs).splitlines()[0] for op, inputs in given.items()]
    table = Table(
        title=f"Time per step, medians of {pairs} interleaved pairs",
        title_justify="left",
        caption="\n".join(chosen),
        caption_justify="left",
    )
    table.add_column("work")
    for name in ("reference ops", "automatic choice", "ratio"):
        table.add_column(name, justify="right")
    for timing in timings:
        table.add_row(timing.what, f"{timing.reference:.3f} ms", f"{timing.automatic:.3f} ms", f"{timing.ratio:.2f}x")
    return table


def draw(
    folder: Path,
    domains: Domains,
    by_bicubic: Sequence[Picture],
    ours: Sequence[Picture],
    results: Results,
    histories: Mapping[str, History],
) -> None:
    """Writes `sheet.png` of the first four held-out pictures, `curves.png`, and every picture as `<name>_x4.png`."""
    judge, rows = results.judge, []
    for (lr, hr), before, after, score_before, score_after in zip(
        domains.held_out, by_bicubic, ours, results.bicubic, results.trained, strict=True
    ):
        write_picture(folder / f"{hr.name}_x{SCALE}.png", after)
        cells = (
            pictures.SheetCell("LR", pictures.enlarge_nearest(lr.pixels, SCALE), f"nearest x{SCALE}"),
            pictures.SheetCell("bicubic", before, caption(score_before)),
            pictures.SheetCell("ours", after, caption(score_after)),
            pictures.SheetCell("reference", hr.pixels, judge.titles),
        )
        rows.append((hr.name, cells))
    note = (
        f"Held-out pictures. {judge.titles} of the whole picture ({judge.convention}); "
        "the window is where the reference has most edges."
    )
    pictures.save_sheet(folder / "sheet.png", rows[:4], note)

    pictures.save_curves(folder / "curves.png", histories, mean_score(results.bicubic))


def save_metrics(
    path: Path,
    domains: Domains,
    results: Results,
    timings: Sequence[Timing],
    sr_network: History,
    seconds: Mapping[str, float],
    device: torch.device,
) -> None:
    """Writes every number of the run, its convention and the machine as JSON."""
    record = {
        "convention": results.judge.convention,
        "learned": results.learned(),
        "gain": results.gain(),
        "mean": {name: mean_score(scores) for name, scores in results.named().items()},
        "held_out": {
            hr.name: {name: scores[index] for name, scores in results.named().items()}
            for index, (_, hr) in enumerate(domains.held_out)
        },
        "held_out_curve": [{"update": done, **values} for done, values in sr_network.measured],
        "milliseconds": [{**dataclasses.asdict(timing), "ratio": timing.ratio} for timing in timings],
        "seconds": dict(seconds),
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "srkernels": srkernels.__version__,
        },
    }
    write_text(path, json.dumps(record, indent=2) + "\n")
