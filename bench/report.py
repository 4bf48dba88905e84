"""Results as Markdown and pictures: `python -m bench report`; with `--page`, docs/benchmarks.md and README's chart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import machine, tables
from .record import OURS
from .scaling.slopes import STEEP, STEEPER, pixels

# Okabe-Ito: distinguishable to colour-blind readers too.
_COLOURS = {"published": "#7f7f7f", "eager": "#0072b2", "compile": "#e69f00"}
_OUR_COLOUR = "#d55e00"
# Kind of line and marker of each number of threads and ranks.
_LINES = (("-", "o"), ("--", "s"), (":", "^"))
_PEER_COLOURS = ("#cc79a7", "#009e73", "#56b4e9", "#d55e00")
_NAMES = {"published": "as published (eager)", "eager": "best eager", "compile": "torch.compile"}
# Gap between the groups of bars, in bars.
_GAP = 1.0
_OURS = (OURS, "reference", "native", "triton")
PAGE = machine.ROOT / "docs" / "benchmarks.md"
_BLOCK = re.compile(r"(?<=<!-- bench:begin -->\n).*(?=<!-- bench:end -->)", re.DOTALL)


def load(path: Path) -> dict[str, Any]:
    """A results file of `pytest bench --benchmark` or of `python -m bench gpu`, in the form of the former."""
    content = json.loads(path.read_text())
    if "sections" in content:
        merged: dict[str, Any] = {key: [] for key in ("cases", "host", "launches", "steps", "checks", "scaling")}
        for section in content["sections"].values():
            for key, rows in merged.items():
                rows.extend(section.get("data", {}).get(key, []))
        content |= merged
    if not (content.setdefault("cases", []) or content.get("scaling")):
        raise ValueError(f"{path}: no benchmark cases in it")
    return content


def newest(folder: Path) -> list[Path]:
    """The latest result of each machine."""
    latest: dict[str, Path] = {}
    for path in sorted(folder.glob("*.json"), key=lambda p: p.stem[-10:]):
        latest[path.stem[:-11]] = path
    return list(latest.values())


def to_markdown(results: Mapping[str, Any], picture: str | None = None, curves: str | None = None) -> str:
    """Tables of one results file, each with its conditions under it, and the pictures of these names."""
    lines = [f"### {machine.title(dict(results))}{'' if results['cases'] else ': how cost grows'}", ""]
    if picture and results["cases"]:
        lines += [f"![Time relative to srkernels, per case]({picture})", ""]
    for op, records in tables.by_op(results["cases"]).items():
        lines += [f"**`{op}`**", "", tables.markdown(tables.summary(records)), "", _conditions(results, records), ""]
        left_out = tables.skipped(records)
        lines += ["<details><summary>every provider</summary>", "", tables.markdown(tables.detail(records)), ""]
        lines += [f"- without {line}" for line in left_out] + [""] * bool(left_out)
        lines += ["</details>", ""]
    if results.get("host"):
        lines += ["**Host time of a tiny call**", "", tables.markdown(tables.host(results["host"])), ""]
        lines += [_conditions(results, results["host"]), ""]
    if results.get("launches"):
        lines += ["**Host time of a tiny call on Triton; without a GPU, but for compiler and driver**", ""]
        lines += [
            tables.markdown(tables.launches(results["launches"])),
            "",
            _conditions(results, results["launches"]),
            "",
        ]
    if results.get("steps"):
        lines += ["**Training steps**", "", tables.markdown(tables.steps(results["steps"])), ""]
        lines += [_conditions(results, []), ""]
    if results.get("checks"):
        lines += ["**Bandwidth**", "", tables.markdown(tables.checks(results["checks"])), ""]
        lines += [_conditions(results, []), ""]
    if results.get("scaling"):
        lines += _scaling(results, curves)
    return "\n".join(lines)


def _scaling(results: Mapping[str, Any], picture: str | None) -> list[str]:
    curves = results["scaling"]
    lines = ["**How cost grows**", ""] * bool(results["cases"])
    lines += [f"![Time of a pixel over the number of pixels]({picture})", ""] * bool(picture)
    lines += [
        "Value and gradients of every op, and whole training steps of small networks. On a CPU convolutions have a",
        "quarter of the features of their bench cases. ns: nanoseconds of a pixel at the largest size, of an op's",
        "picture or of a step's HR crops, which several ranks share. Slope: time as a power of the number of pixels,",
        "fitted to the larger half of the sizes; the work alone has slope 1. Flagged are slopes above",
        f"{STEEP:g}, and those of srkernels that are more than {STEEPER:g} above eager PyTorch's.",
        "",
        tables.markdown(tables.scaling(curves)),
        "",
    ]
    left_out = tables.sizes_left_out(curves)
    lines += [f"- {line}" for line in left_out] + [""] * bool(left_out)
    dtypes = ", ".join(dict.fromkeys(curve["dtype"] for curve in curves))
    return [*lines, _footnote(results, f"{dtypes}; allocation included; medians of interleaved rounds"), ""]


def _conditions(results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """What a reader needs to interpret the figures above, and to reproduce them."""
    parts = []
    if records:
        dtypes = dict.fromkeys(r.get("dtype", "float32") for r in records)
        parts.append(f"{', '.join(dtypes)}; shapes as in the table; allocation included; medians of interleaved rounds")
    gpu = results["machine"]["device"] == "cuda"
    parts.append("graph replay, rotation over 3x L2" if gpu else f"{results['machine']['threads']} threads")
    return _footnote(results, *parts)


def _footnote(results: Mapping[str, Any], *parts: str) -> str:
    return f"<sub>{'; '.join((machine.footnote(dict(results)), *parts))}. `{results['command']}`</sub>"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Bars of time over that of srkernels: a panel per op, a group per case, a bar per provider, ticks at targets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    by_op = tables.by_op(results["cases"])
    others = list(dict.fromkeys(n for r in results["cases"] for n in r["providers"] if n not in _OURS))
    peers = [n for n in others if n not in _COLOURS]
    colours = {**_COLOURS, **dict(zip(peers, _PEER_COLOURS * len(peers), strict=False))}
    rows = {op: [[n for n in others if n in r["providers"]] for r in records] for op, records in by_op.items()}
    heights = [sum(len(names) + _GAP for names in cases) for cases in rows.values()]
    columns = min(2, len(by_op))
    by_row = [max(heights[i : i + columns]) for i in range(0, len(heights), columns)]
    figure, grid = plt.subplots(
        len(by_row),
        columns,
        figsize=(7 * columns, 1.3 + 0.18 * sum(by_row) + 0.5 * len(by_row)),
        height_ratios=by_row,
        squeeze=False,
        layout="constrained",
    )
    axes = list(grid.flat)
    for spare in axes[len(by_op) :]:
        spare.remove()
    has_target = False
    for axis, (op, records) in zip(axes, by_op.items(), strict=False):
        y, ticks, labels = 0.0, [], []
        widest = max(p["ratio"] for r in records for n, p in r["providers"].items() if n not in _OURS)
        for record, names in zip(records, rows[op], strict=True):
            targets = {t["against"]: t["target"] for t in record["targets"]}
            ticks.append(y + (len(names) - 1) / 2)
            ours = tables.number(record["providers"][OURS]["median_us"])
            labels.append(f"{tables.label(record)}\n{record['passes']}, ours {ours} \u00b5s")
            for name in names:
                ratio = text_at = record["providers"][name]["ratio"]
                axis.barh(y, ratio, height=0.86, color=colours[name])
                if name in targets:
                    has_target = True
                    axis.plot([targets[name]] * 2, [y - 0.43, y + 0.43], color="black", linewidth=2)
                    # A target just past the bar's end would cross out the figure.
                    if ratio <= targets[name] < ratio + 0.12 * widest:
                        text_at = targets[name]
                axis.text(text_at, y, f"  {tables.times(ratio)}", va="center", ha="left", fontsize=8)
                y += 1
            y += _GAP
        axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set_yticks(ticks, labels, fontsize=8)
        axis.set_ylim(y - _GAP, -1)
        axis.set_xlim(0, 1.15 * max(widest, *(t["target"] for r in records for t in r["targets"]), 1))
        axis.set_title(op, loc="left", fontsize=11, fontweight="bold")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("median time over that of srkernels (dotted line: equal)", fontsize=9)
    handles: list[Any] = [Patch(color=colours[n], label=_NAMES.get(n, n)) for n in others]
    if has_target:
        handles.append(Line2D([], [], color="black", linewidth=2, label="target"))
    where = f"{machine.title(dict(results))}, torch {results['versions']['torch']}, {results['date']}"
    title = f"How many times longer the others take than srkernels\n{where}"
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, title=title, title_fontsize=12
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_scaling(results: Mapping[str, Any], path: Path) -> None:
    """Time per pixel over pixels, both logarithmic: a panel for each op or step and axis, level where cost is linear.

    Colour tells eager PyTorch from srkernels, the kind of line threads and ranks.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for curve in results["scaling"]:
        if curve["points"]:
            panels.setdefault((curve["subject"], curve["axis"]), []).append(curve)
    variants = list(dict.fromkeys((c["threads"], c["ranks"]) for curves in panels.values() for c in curves))
    lines = dict(zip(variants, _LINES, strict=False))
    rows = -(-len(panels) // 4)
    figure, grid = plt.subplots(rows, 4, figsize=(14, 1.4 + 2.5 * rows), squeeze=False, layout="constrained")
    axes = list(grid.flat)
    for spare in axes[len(panels) :]:
        spare.remove()
    for axis, ((subject, along), curves) in zip(axes, panels.items(), strict=False):
        for curve in curves:
            points = curve["points"]
            sizes = [pixels(point) for point in points]
            for name, colour in (("eager", _COLOURS["eager"]), (OURS, _OUR_COLOUR)):
                times = [1e3 * p["times"][name]["median_us"] / n for p, n in zip(points, sizes, strict=True)]
                style, marker = lines[curve["threads"], curve["ranks"]]
                axis.loglog(sizes, times, linestyle=style, marker=marker, markersize=4, color=colour)
        first = curves[0]["points"][0]
        fixed = f"batch {first['batch']}" if along == "side" else f"{first['side']}x{first['side']}"
        axis.set_title(f"{subject}\nover the {along}, {fixed}", loc="left", fontsize=9, fontweight="bold")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(which="major", linewidth=0.4, color="#dddddd")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(labelsize=8)
    figure.supxlabel("pixels", fontsize=9)
    figure.supylabel("nanoseconds per pixel", fontsize=9)
    handles = [
        Line2D([], [], color=colour, linewidth=3, label=label)
        for label, colour in (("eager PyTorch", _COLOURS["eager"]), (OURS, _OUR_COLOUR))
    ]
    handles += [
        Line2D([], [], linestyle=style, marker=marker, markersize=4, color="black", label=_variant(*variant))
        for variant, (style, marker) in lines.items()
    ]
    where = f"{machine.title(dict(results))}, torch {results['versions']['torch']}, {results['date']}"
    title = f"How cost grows: time per pixel, level where it is linear\n{where}"
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, title=title, title_fontsize=12
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _variant(threads: int, ranks: int) -> str:
    one = f"{threads} thread{'s' * (threads > 1)}"
    return one if ranks == 1 else f"{ranks} ranks of {one}"


def headline(results: Mapping[str, Any], path: Path) -> None:
    """A small chart of value and gradient: an op's first case of each dtype, and the training steps.

    Bars start at 1, where the other provider takes as long as srkernels, on a logarithmic axis.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for record in results["cases"]:
        if record["passes"] == "forward+backward":
            first.setdefault((record["op"], record["dtype"]), record)
    ops = [
        (f"{op}\n{tables.label(r)}", [(n, r["providers"][n]["ratio"]) for n in _NAMES if n in r["providers"]][-2:])
        for (op, _), r in first.items()
    ]
    steps = [
        (
            f"{record['step']}\n{record['batch']} crops a domain",
            [(name, p["ratio"]) for name, p in record["providers"].items() if name not in ("ours", "recompute")],
        )
        for record in results["steps"]
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(3, 2), layout="constrained")
    for axis, title, rows in ((left, "Ops, value and gradient", ops), (right, "Whole training steps", steps)):
        y, ticks = 0.0, []
        for _, bars in rows:
            ticks.append(y + (len(bars) - 1) / 2)
            for name, ratio in bars:
                axis.barh(y, ratio - 1, left=1, height=0.86, color=_COLOURS.get(name, _COLOURS["published"]))
                form = f" {name}" if rows is steps else ""
                axis.text(max(ratio, 1), y, f" {tables.times(ratio)}{form}", va="center", ha="left", fontsize=8)
                y += 1
            y += 0.7
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 2, 4, 8, 16], ["1x", "2x", "4x", "8x", "16x"])
        axis.set_xlim(0.8, (2.8 if rows is steps else 1.5) * max(ratio for _, bars in rows for _, ratio in bars))
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_yticks(ticks, [label for label, _ in rows], fontsize=8)
        axis.set_ylim(y - 0.7, -0.8)
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    where = f"{machine.title(dict(results))}, torch {results['versions']['torch']}, {results['date']}"
    figure.legend(
        handles=[Patch(color=_COLOURS[n], label=_NAMES[n]) for n in ("eager", "compile")],
        loc="outside upper center",
        ncols=2,
        frameon=False,
        title=f"How many times as long as srkernels the others take\n{where}",
        title_fontsize=11,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def page_block(files: Sequence[Path]) -> str:
    """What stands between the markers of docs/benchmarks.md."""
    return "\n".join(to_markdown(load(path), *_pictures(_page_stem(path))) for path in files)


def _page_stem(path: Path) -> str:
    """What the page's pictures of a machine are called, whatever the date."""
    return f"bench-{path.stem[:-11]}"


def _pictures(stem: str) -> tuple[str, str]:
    """Of the cases, and of how cost grows."""
    return f"{stem}.png", f"{stem}-curves.png"


def _plot(results: Mapping[str, Any], folder: Path, stem: str) -> None:
    """The pictures of what there is."""
    of_cases, of_scaling = _pictures(stem)
    if results["cases"]:
        plot(results, folder / of_cases)
    if results.get("scaling"):
        plot_scaling(results, folder / of_scaling)


def write_page(files: Sequence[Path], page: Path = PAGE) -> None:
    """The page's tables, pictures of each machine next to it, and README's chart, of whoever ran the training steps."""
    text = page.read_text()
    if not _BLOCK.search(text):
        raise ValueError(f"{page}: no bench:begin and bench:end markers in it")
    page.write_text(_BLOCK.sub(lambda _: page_block(files), text))
    for path in files:
        results = load(path)
        _plot(results, page.parent, _page_stem(path))
        if results.get("steps"):
            headline(results, page.parent / "bench.png")


def render(files: Sequence[Path], out: Path | None = None) -> str:
    """Markdown of all files; with ``out`` also written to out/BENCH.md, with each file's pictures next to it."""
    pieces = []
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    for path in files:
        results = load(path)
        if out is not None:
            _plot(results, out, path.stem)
        pieces.append(to_markdown(results, *(_pictures(path.stem) if out is not None else ())))
    text = "\n".join(pieces)
    if out is not None:
        (out / "BENCH.md").write_text(text)
    return text
