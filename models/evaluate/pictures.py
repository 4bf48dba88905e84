"""Pictures a run leaves behind, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from models.data import Picture
from models.data.files import readable, write_whole
from models.train.loop import History

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # a name with dollar signs is no formula


@dataclass(frozen=True)
class SheetCell:
    """A picture at HR size and the line under it."""

    title: str
    pixels: Picture
    caption: str


def enlarge_nearest(pixels: Picture, scale: int) -> Picture:
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


Window = tuple[slice, slice]


def busiest_window(pixels: Picture, side: int, step: int = 4) -> Window:
    """The square window of the reference with the most edges; its corner is a multiple of `step` pixels."""
    return _fullest_window([_edges(pixels)], side, step)


def telling_window(results: Sequence[Picture], reference: Picture, side: int, step: int = 4) -> Window:
    """The square window in which results differ, whichever is the best, and the reference shows something.

    It has the largest product of their spread and the reference's edges.
    """
    spread = np.stack(results).std(axis=0, dtype=np.float32).mean(axis=2)
    return _fullest_window([spread, _edges(reference)], side, step)


def _edges(pixels: Picture) -> NDArray[np.float32]:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


def _fullest_window(maps: Sequence[NDArray[np.float32]], side: int, step: int) -> Window:
    """The window in which the product of the maps' sums is largest."""
    side, product = min(side, *maps[0].shape), np.float64(1)
    for values in maps:
        sums = cv2.integral(values)
        product = product * (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side])
    window = product[::step, ::step]
    top, left = (step * int(index) for index in np.unravel_index(window.argmax(), window.shape))
    return slice(top, top + side), slice(left, left + side)


def save_sheet(
    path: Path,
    rows: Sequence[tuple[str, Sequence[SheetCell]]],
    note: str,
    windows: Sequence[Window] | None = None,
    inches: float = 2.9,
) -> None:
    """One row per picture, one column per way of enlarging it, each `inches` wide; a row shows the same window in each.

    `rows` holds (name, cells), the reference last; `windows` are the busiest ones of 160 pixels where not given.
    Captions stand under the pictures, `note` at the bottom.
    """
    columns, text = len(rows[0][1]), round(7 + inches)  # in points: small pictures have larger text
    if windows is None:
        windows = [busiest_window(cells[-1].pixels, 160) for _, cells in rows]
    figure = Figure(
        figsize=(inches * columns, (inches + 0.15) * len(rows) + 0.7), dpi=377 / inches, layout="constrained"
    )
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for index, ((name, cells), window) in enumerate(zip(rows, windows, strict=True)):
        for axis, cell in zip(axes[index], cells, strict=True):
            axis.imshow(cell.pixels[window], interpolation="nearest")
            _bare(axis)
            if index == 0:
                axis.set_title(cell.title, fontsize=text + 3, fontweight="bold")
            axis.set_xlabel(cell.caption, fontsize=text)
        axes[index][0].set_ylabel(readable(name), fontsize=text + 2)
    figure.supxlabel(note, fontsize=9)
    write_whole(path, figure.savefig)


def save_maps(path: Path, rows: Sequence[tuple[str, Picture, Picture, NDArray[np.float32]]]) -> None:
    """Per row: the bicubic LR picture, the generated one, and the domain-distance map laid over the latter.

    `rows` holds (name, bicubic LR, generated LR, map (h/2, w/2)); all maps share one colour scale.
    """
    values = np.concatenate([row[3].ravel() for row in rows])
    low, high = (float(value) for value in np.quantile(values, (0.01, 0.99)))
    aspects = [row[1].shape[0] / row[1].shape[1] for row in rows]
    figure = Figure(figsize=(12, 3.6 * sum(aspects) + 0.6), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False, height_ratios=aspects)
    titles = ("bicubic LR", "generated LR", "distance map over it")
    shown = None
    for index, (name, bicubic_lr, generated, distance) in enumerate(rows):
        height, width = generated.shape[:2]
        axes[index][0].imshow(bicubic_lr, interpolation="nearest")
        axes[index][1].imshow(generated, interpolation="nearest")
        axes[index][2].imshow(cv2.cvtColor(generated, cv2.COLOR_RGB2GRAY), cmap="gray", interpolation="nearest")
        resized = cv2.resize(distance, (width, height), interpolation=cv2.INTER_LINEAR)
        shown = axes[index][2].imshow(resized, cmap="viridis", vmin=low, vmax=high, alpha=0.6)
        axes[index][0].set_ylabel(readable(name), fontsize=12)
        for axis, title in zip(axes[index], titles, strict=True):
            _bare(axis)
            if index == 0:
                axis.set_title(title, fontsize=13, fontweight="bold")
    bar = figure.colorbar(shown, ax=axes[:, 2], shrink=0.8)
    bar.set_label("D's score: weight of the L1 loss\n(high = looks like real LR)", fontsize=10)
    write_whole(path, figure.savefig)


def save_curves(path: Path, stages: Mapping[str, History], baseline: Mapping[str, float]) -> None:
    """Losses of every stage, and what the last one measured on held-out pictures against `baseline` (dashed)."""
    title, last = list(stages.items())[-1]
    names = list(last.measured[-1][1]) if last.measured else []
    figure = Figure(figsize=(4.6 * (len(stages) + len(names)), 3.8), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(stages) + len(names), squeeze=False)[0]
    for axis, (name, history) in zip(axes, stages.items(), strict=False):
        for loss, (steps, values) in history.losses.items():
            axis.plot(steps, values, label=loss)
        axis.set(title=f"stage {name}", xlabel="update", ylabel="loss (before its weight)", yscale="log")
        for each in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            each(LogFormatter())  # the scale's own writes formulas, which are shown as they are
        axis.legend(fontsize=9, ncols=1 + len(history.losses) // 6)
    for axis, name in zip(axes[len(stages) :], names, strict=True):
        points = [(done, values[name]) for done, values in last.measured if name in values]
        axis.plot(*zip(*points, strict=True), "o-", label="ours")
        axis.axhline(baseline[name], color="gray", linestyle="--", label="bicubic")
        axis.ticklabel_format(useOffset=False)
        axis.set(title=f"held-out {name.upper()}, mean", xlabel=f"update of stage {title}", ylabel=name.upper())
        axis.legend(fontsize=9)
    for axis in axes:
        axis.grid(alpha=0.3)
    write_whole(path, figure.savefig)


def _bare(axis: matplotlib.axes.Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])


@dataclass(frozen=True)
class Panel:
    """One measure of several rows, ours (with a spread, 0 for none) and those of a paper."""

    title: str
    labels: Sequence[str]
    ours: Sequence[float]
    spread: Sequence[float]
    paper: Sequence[float]
    digits: int


def save_comparison(path: Path, panels: Sequence[Sequence[Panel]]) -> None:
    """Bars of how far each row lies from the mean of its panel's rows, ours beside the paper's, values written on them.

    `panels` is a grid; the panels of a line have the same rows. A shared zero lets numbers of two settings, which are
    far apart, be compared by their order and their differences.
    """
    heights = [len(line[0].labels) + 1.2 for line in panels]
    figure = Figure(figsize=(6.4 * len(panels[0]) + 1, 0.62 * sum(heights) + 0.8), dpi=130, layout="constrained")
    grid = figure.subplots(len(panels), len(panels[0]), squeeze=False, height_ratios=heights)
    for axes, line in zip(grid, panels, strict=True):
        for axis, panel in zip(axes, line, strict=True):
            _bars(axis, panel)
        for axis in axes[1:]:
            axis.set_yticklabels([])
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=10, frameon=False)
    write_whole(path, figure.savefig)


def _bars(axis: matplotlib.axes.Axes, panel: Panel) -> None:
    at = np.arange(len(panel.labels))
    spread = np.array(panel.spread)
    series = (
        ("ours, in miniature", "#3572b0", -0.2, np.array(panel.ours), spread),
        ("paper", "#c3c7cc", 0.2, np.array(panel.paper), np.zeros_like(spread)),
    )
    reach = 0.0
    for label, colour, shift, values, error in series:
        far = values - values.mean()
        reach = max(reach, float((abs(far) + error).max()))
        axis.barh(at + shift, far, height=0.38, color=colour, label=label)
        if error.any():
            axis.errorbar(far, at + shift, xerr=error, fmt="none", ecolor="#1b2a3a", elinewidth=1.2, capsize=3)
        for place, offset, value, wide in zip(at + shift, far, values, error, strict=True):
            right = offset >= 0
            axis.annotate(
                f"{value:.{panel.digits}f}",
                (offset + (wide if right else -wide), place),
                xytext=(4 if right else -4, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=9,
            )
    reach = 1.4 * reach or 1.0
    axis.set_xlim(-reach, reach)
    axis.set_ylim(len(at) - 0.4, -0.6)
    axis.set_yticks(at, panel.labels, fontsize=10)
    axis.set_title(panel.title, fontsize=12, fontweight="bold")
    axis.set_xlabel("difference from the mean of these rows", fontsize=9)
    axis.axvline(0, color="#1b2a3a", linewidth=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def save_histograms(path: Path, scores: Mapping[str, NDArray[np.float64]], notes: Mapping[str, str]) -> None:
    """A discriminator's scores from 0 to 1, a histogram for each group, one below the other; `notes` by group."""
    figure = Figure(figsize=(7.2, 1.3 * len(scores) + 0.8), dpi=130, layout="constrained")
    axes = figure.subplots(len(scores), 1, squeeze=False, sharex=True)[:, 0]
    for index, (axis, (name, values)) in enumerate(zip(axes, scores.items(), strict=True)):
        weights = np.full(len(values), 100 / len(values))
        axis.hist(values, np.linspace(0, 1, 41), weights=weights, color="#3572b0" if index else "#c46a1b")
        axis.axvline(np.median(values), color="#1b2a3a", linewidth=1.2)
        axis.set_ylabel("% of crops", fontsize=8)
        axis.set_title(readable(name), loc="left", fontsize=11, fontweight="bold")
        axis.set_title(notes.get(name, ""), loc="right", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    axes[-1].set(xlim=(0, 1), xlabel="D's score of a held-out crop: 0 generated, 1 real LR (line: median)")
    write_whole(path, figure.savefig)
