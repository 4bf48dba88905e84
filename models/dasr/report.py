"""What the demo says at its end: scores, tables, pictures, `metrics.json`."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn

import srkernels
from models import metrics, pictures
from models.dasr.photographs import Domains
from models.dasr.timing import Timing
from models.data import Photo, to_pixels, to_tensor
from models.loop import History
from models.resize import bicubic

Pairs = Sequence[tuple[Photo, Photo]]


@dataclass(frozen=True)
class Score:
    """PSNR in dB and SSIM, in the convention of `models.metrics`."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Results:
    """Scores of every held-out picture, in the order of `Domains.held_out`."""

    bicubic: list[Score]
    untrained: list[Score]
    trained: list[Score]

    def named(self) -> dict[str, list[Score]]:
        return {"bicubic": self.bicubic, "ours, step 0": self.untrained, "ours, trained": self.trained}

    def gain(self) -> Score:
        """Mean of trained minus mean of untrained."""
        before, after = mean(self.untrained), mean(self.trained)
        return Score(after.psnr - before.psnr, after.ssim - before.ssim)

    def learned(self) -> bool:
        """Whether both means rose by at least the last digit that is shown, 0.01 dB and 0.0001."""
        return self.gain().psnr >= 0.01 and self.gain().ssim >= 0.0001


@dataclass(frozen=True)
class Generated:
    """What stage 2 makes of one HR picture; tensors without a batch dimension."""

    name: str
    hr: Tensor
    lr: Tensor
    distance_map: Tensor

    def save(self, folder: Path) -> None:
        """Writes `lr/<name>.png` and `maps/<name>.npy`, float32 (1, H/8, W/8)."""
        pictures.save_picture(folder / "lr" / f"{self.name}.png", to_pixels(self.lr))
        pictures.save_array(folder / "maps" / f"{self.name}.npy", self.distance_map.cpu().numpy())


@torch.no_grad()
def enlarge(network: nn.Module, pairs: Pairs, device: torch.device) -> list[pictures.Pixels]:
    """The network's x4 pictures of the LR sides of `pairs`, rounded to 8 bits."""
    return [to_pixels(network(to_tensor(lr.pixels, device)[None])[0]) for lr, _ in pairs]


def enlarge_bicubic(pairs: Pairs) -> list[pictures.Pixels]:
    return [to_pixels(bicubic(to_tensor(lr.pixels)[None], 4)[0]) for lr, _ in pairs]


def score(predictions: Sequence[pictures.Pixels], pairs: Pairs) -> list[Score]:
    """PSNR and SSIM of each prediction against the HR side of its pair."""
    return [
        Score(metrics.psnr(prediction, hr.pixels), metrics.ssim(prediction, hr.pixels))
        for prediction, (_, hr) in zip(predictions, pairs, strict=True)
    ]


def mean(scores: Sequence[Score]) -> Score:
    return Score(sum(s.psnr for s in scores) / len(scores), sum(s.ssim for s in scores) / len(scores))


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
    """PSNR and SSIM of bicubic and of the network before and after training."""
    table = Table(title=f"Held-out pictures, PSNR (dB)/SSIM on {metrics.CONVENTION}", title_justify="left")
    table.add_column("picture")
    for name in (*results.named(), "gain"):
        table.add_column(name, justify="right")
    names = [hr.name for _, hr in domains.held_out]
    for name, *scores in (
        *zip(names, *results.named().values(), strict=True),
        ("mean", *(mean(scores) for scores in results.named().values())),
    ):
        _, before, after = scores
        cells = [f"{value.psnr:.2f}/{value.ssim:.4f}" for value in scores]
        gain = f"{after.psnr - before.psnr:+.2f}/{after.ssim - before.ssim:+.4f}"
        table.add_row(name, *cells, gain, style="bold" if name == "mean" else None)
    return table


def timing_table(timings: Sequence[Timing], pairs: int, device: torch.device) -> Table:
    """Medians of interleaved runs on the reference ops and on the automatic choice."""
    chosen = [
        srkernels.explain(op, torch.empty(1, 3, 8, 8, device=device)).splitlines()[0]
        for op in ("haar_highpass", "weighted_l1_loss")
    ]
    features = torch.empty(1, 32, 8, 8, device=device).contiguous(memory_format=torch.channels_last)
    filters = torch.empty(32, 32, 3, 3, device=device)
    chosen += [srkernels.explain(op, features, filters).splitlines()[0] for op in ("residual_block", "dense_block")]
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
    generated: Sequence[Generated],
    enlarged: Sequence[tuple[pictures.Pixels, pictures.Pixels]],
    results: Results,
    histories: tuple[History, History],
) -> None:
    """Writes `sheet.png`, `distance_maps.png`, `curves.png` and the enlarged pictures `<name>_x4.png`.

    `enlarged` holds (bicubic, ours) for each held-out picture; the sheet shows the first four, the maps the first
    three HR pictures.
    """

    def caption(value: Score) -> str:
        return f"{value.psnr:.2f} dB / {value.ssim:.4f}"

    rows = []
    for (lr, hr), (by_bicubic, ours), before, after in zip(
        domains.held_out, enlarged, results.bicubic, results.trained, strict=True
    ):
        pictures.save_picture(folder / f"{hr.name}_x4.png", ours)
        cells = (
            pictures.SheetCell("LR", pictures.enlarge_nearest(lr.pixels, 4), "nearest x4"),
            pictures.SheetCell("bicubic", by_bicubic, caption(before)),
            pictures.SheetCell("ours", ours, caption(after)),
            pictures.SheetCell("reference", hr.pixels, "PSNR / SSIM"),
        )
        rows.append((hr.name, cells))
    note = (
        f"Held-out pictures. PSNR / SSIM of the whole picture ({metrics.CONVENTION}); "
        "the window is where the reference has most edges."
    )
    pictures.save_sheet(folder / "sheet.png", rows[:4], note)

    maps = [
        (
            item.name,
            to_pixels(bicubic(item.hr[None], 0.25)[0]),
            to_pixels(item.lr),
            item.distance_map[0].cpu().numpy(),
        )
        for item in generated[:3]
    ]
    pictures.save_maps(folder / "distance_maps.png", maps)

    baseline = mean(results.bicubic)
    pictures.save_curves(
        folder / "curves.png",
        (("stage 1: down-sampling network", histories[0]), ("stage 3: SR network", histories[1])),
        {"PSNR (dB)": baseline.psnr, "SSIM": baseline.ssim},
    )


def save_metrics(
    path: Path,
    domains: Domains,
    results: Results,
    timings: Sequence[Timing],
    held_out_curve: Sequence[tuple[int, Mapping[str, float]]],
    seconds: Mapping[str, float],
    device: torch.device,
) -> None:
    """Writes every number of the run, its convention and the machine as JSON."""
    record = {
        "convention": metrics.CONVENTION,
        "learned": results.learned(),
        "gain": dataclasses.asdict(results.gain()),
        "mean": {name: dataclasses.asdict(mean(scores)) for name, scores in results.named().items()},
        "held_out": {
            hr.name: {name: dataclasses.asdict(scores[index]) for name, scores in results.named().items()}
            for index, (_, hr) in enumerate(domains.held_out)
        },
        "held_out_curve": [{"update": done, **values} for done, values in held_out_curve],
        "milliseconds": [{**dataclasses.asdict(timing), "ratio": timing.ratio} for timing in timings],
        "seconds": dict(seconds),
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "srkernels": srkernels.__version__,
        },
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
