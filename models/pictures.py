"""Pictures a run leaves behind, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from models.loop import History

matplotlib.use("Agg")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class SheetCell:
    """A picture at HR size and the line under it."""

    title: str
    pixels: Pixels
    caption: str


def enlarge_nearest(pixels: Pixels, scale: int) -> Pixels:
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def save_picture(path: Path, pixels: Pixels) -> None:
    """Writes uint8 RGB pixels, making the folder; raises OSError if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)):
        raise OSError(f"cannot write {path}")


def save_array(path: Path, values: NDArray[np.float32]) -> None:
    """Writes a `.npy` file, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def busiest_window(pixels: Pixels, side: int, step: int = 4) -> tuple[slice, slice]:
    """The square window with most edges, found on the reference alone; its corner is a multiple of `step` pixels."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    height, width = grey.shape
    side = min(side, height, width)
    edges = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    sums = cv2.integral(edges)
    window = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    window = window[::step, ::step]
    top, left = (step * int(index) for index in np.unravel_index(window.argmax(), window.shape))
    return slice(top, top + side), slice(left, left + side)


def save_sheet(path: Path, rows: Sequence[tuple[str, Sequence[SheetCell]]], note: str, side: int = 160) -> None:
    """One row per picture, one column per way of enlarging it; each shows the same window of `side` HR pixels.

    `rows` holds (name, cells), the reference last. Captions stand under the pictures, `note` at the bottom.
    """
    columns = len(rows[0][1])
    figure = Figure(figsize=(2.9 * columns, 3.05 * len(rows) + 0.7), dpi=130, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for index, (name, cells) in enumerate(rows):
        window = busiest_window(cells[-1].pixels, side)
        for axis, cell in zip(axes[index], cells, strict=True):
            axis.imshow(cell.pixels[window], interpolation="nearest")
            _bare(axis)
            if index == 0:
                axis.set_title(cell.title, fontsize=13, fontweight="bold")
            axis.set_xlabel(cell.caption, fontsize=10)
        axes[index][0].set_ylabel(name, fontsize=12)
    figure.supxlabel(note, fontsize=9)
    figure.savefig(path)


def save_maps(path: Path, rows: Sequence[tuple[str, Pixels, Pixels, NDArray[np.float32]]]) -> None:
    """Per row: the bicubic LR picture, the generated one, and the domain-distance map laid over the latter.

    `rows` holds (name, bicubic LR, generated LR, map (h/2, w/2)); all maps share one colour scale.
    """
    values = np.concatenate([row[3].ravel() for row in rows])
    low, high = (float(value) for value in np.quantile(values, (0.01, 0.99)))
    aspects = [row[1].shape[0] / row[1].shape[1] for row in rows]
    figure = Figure(figsize=(12, 3.6 * sum(aspects) + 0.6), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False, height_ratios=aspects)
    titles = ("bicubic LR", "generated LR (stage 1)", "distance map over it (stage 2)")
    shown = None
    for index, (name, bicubic_lr, generated, distance) in enumerate(rows):
        height, width = generated.shape[:2]
        axes[index][0].imshow(bicubic_lr, interpolation="nearest")
        axes[index][1].imshow(generated, interpolation="nearest")
        axes[index][2].imshow(cv2.cvtColor(generated, cv2.COLOR_RGB2GRAY), cmap="gray", interpolation="nearest")
        resized = cv2.resize(distance, (width, height), interpolation=cv2.INTER_LINEAR)
        shown = axes[index][2].imshow(resized, cmap="viridis", vmin=low, vmax=high, alpha=0.6)
        axes[index][0].set_ylabel(name, fontsize=12)
        for axis, title in zip(axes[index], titles, strict=True):
            _bare(axis)
            if index == 0:
                axis.set_title(title, fontsize=13, fontweight="bold")
    bar = figure.colorbar(shown, ax=axes[:, 2], shrink=0.8)
    bar.set_label("D's score: weight of the L1 loss\n(high = looks like real LR)", fontsize=10)
    figure.savefig(path)


def save_curves(path: Path, stages: Sequence[tuple[str, History]], baseline: dict[str, float]) -> None:
    """Losses of every stage, and what was measured on held-out pictures against `baseline` (dashed)."""
    measured = [history.measured for _, history in stages if history.measured]
    names = list(measured[0][0][1]) if measured else []
    figure = Figure(figsize=(4.6 * (len(stages) + len(names)), 3.8), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(stages) + len(names), squeeze=False)[0]
    for axis, (title, history) in zip(axes, stages, strict=False):
        for (name, values), colour in zip(history.losses.items(), matplotlib.color_sequences["tab10"], strict=False):
            steps = np.arange(1, len(values) + 1)
            # The first content loss is exactly zero (the network starts as bicubic) and has no place on a log scale.
            shown = values.numpy() > 0
            axis.plot(steps[shown], values.numpy()[shown], color=colour, alpha=0.25, linewidth=0.8)
            axis.plot(steps[shown], _smooth(values)[shown], color=colour, label=name)
        axis.set(title=title, xlabel="update", ylabel="loss (before its weight)", yscale="log")
        axis.legend(fontsize=9)
    for axis, name in zip(axes[len(stages) :], names, strict=True):
        points = measured[0]
        axis.plot([done for done, _ in points], [values[name] for _, values in points], "o-", label="ours")
        axis.axhline(baseline[name], color="gray", linestyle="--", label="bicubic")
        axis.ticklabel_format(useOffset=False)
        axis.set(title=f"held-out {name}, mean", xlabel="update of stage 3", ylabel=name)
        axis.legend(fontsize=9)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path)


def _smooth(values: Tensor) -> NDArray[np.float64]:
    width = max(1, len(values) // 20)
    padded = np.pad(values.numpy().astype(np.float64), (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _bare(axis: matplotlib.axes.Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
