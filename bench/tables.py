"""Tables of benchmark records: the same rows as aligned text for a terminal and as Markdown for a page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .record import BY_TRITON, OURS
from .scaling.slopes import flags, pixels, slope

Table = tuple[list[str], list[list[str]]]
Record = Mapping[str, Any]
_FAULTS = "page faults, eager / compile / ours"


def text(table: Table) -> str:
    """Aligned columns, words left and numbers right."""
    headers, rows = table
    widths = [max(len(r[i]) for r in (headers, *rows)) for i in range(len(headers))]
    align = [str.ljust if words else str.rjust for words in _words(table)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(put(c, w) for c, w, put in zip(cells, widths, align, strict=True)).rstrip()

    return "\n".join([line(headers), line(["-" * w for w in widths]), *(line(r) for r in rows)])


def markdown(table: Table) -> str:
    headers, rows = table
    cells = [[c.replace("|", "\\|").replace("\n", " ") for c in r] for r in (headers, *rows)]
    ruler = ["---" if words else "---:" for words in _words(table)]
    return "\n".join("| " + " | ".join(r) + " |" for r in (cells[0], ruler, *cells[1:]))


def _words(table: Table) -> list[bool]:
    """Per column: whether it holds words, not figures. The first column names the row."""
    headers, rows = table
    figure = re.compile(r"[-<>= ]*\d[\d.]*[x%]?$|-?$")
    return [i == 0 or not all(figure.match(r[i]) for r in rows) for i in range(len(headers))]


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits, never in exponent form; "-" for what was not measured."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def times(value: float | None) -> str:
    return "-" if value is None else f"{number(value)}x"


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def megabytes(value: float | None) -> str:
    return "-" if value is None else number(value / 1e6)


def faults(provider: Record) -> str:
    count = provider.get("page_faults")
    return "-" if count is None else f"{count:.0f}"


def verdict(met: bool | None) -> str:
    return "-" if met is None else "met" if met else "MISSED"


def label(record: Record) -> str:
    layout = " channels_last" if record["layout"] == "channels_last" else ""
    return f"{record['case']} {record['dtype']}{layout}"


def by_op(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["op"], []).append(record)
    return found


def summary(records: Sequence[Record]) -> Table:
    """One op: each case against eager and torch.compile, with targets."""
    headers = ["case", "passes", "published us", "eager us", "compile us", "ours us"]
    headers += ["vs eager", "target", "", "vs compile", "target", "", _FAULTS, "GB/s", "of copy", "target", ""]
    rows = []
    for record in records:
        providers = record["providers"]
        targets = {t["against"]: t for t in record["targets"]}
        row = [label(record), record["passes"]]
        row += [number(providers.get(name, {}).get("median_us")) for name in ("published", "eager", "compile", OURS)]
        for against in ("eager", "compile"):
            target = targets.get(against, {})
            row += [
                times(providers.get(against, {}).get("ratio")),
                times(target.get("target")),
                verdict(target.get("met")),
            ]
        target = targets.get("copy", {})
        counts = [faults(providers.get(name, {})) for name in ("eager", "compile", OURS)]
        row.append(" / ".join(counts) if any(count != "-" for count in counts) else "-")
        row += [number(providers[OURS]["gbps"]), share(providers[OURS]["share"])]
        row += [share(target.get("target")), verdict(target.get("met"))]
        rows.append(row)
    return without_empty_columns((headers, rows))


def detail(records: Sequence[Record]) -> Table:
    """One op: every provider of every case."""
    headers = ["case", "passes", "provider", "median us", "p20", "p80", "x ours", "page faults", "GB/s", "of copy"]
    headers += ["saved MB", "peak MB", "launches", "do_bench us"]
    rows = []
    for record in records:
        for name, p in record["providers"].items():
            plain = "" if p["method"] in ("host clock", "graph") else "*"
            row = [label(record), record["passes"], name + plain]
            row += [number(p["median_us"]), number(p["p20_us"]), number(p["p80_us"]), times(p["ratio"])]
            row += [
                faults(p),
                number(p["gbps"]),
                share(p["share"]),
                megabytes(p.get("saved_bytes")),
                megabytes(p.get("peak_bytes")),
            ]
            row += [str(p.get("launches", "-")), number(p.get("do_bench_us"))]
            rows.append(row)
    return without_empty_columns((headers, rows))


def host(rows: Sequence[Record]) -> Table:
    headers = ["op", "passes", "case", "bare us", "eager us", "ours us", "p20", "p80", "of eager", "target", ""]
    found = []
    for r in rows:
        ours = r["providers"][OURS]
        row = [r["op"], r["passes"], r["case"]]
        row += [number(r["providers"].get(name, {}).get("median_us")) for name in ("bare", "eager")]
        row += [number(ours["median_us"]), number(ours["p20_us"]), number(ours["p80_us"])]
        if r.get("of_eager") is not None:
            judged = [f"{r['of_eager']:.2f}x", f"<= {r['target']:g}x", verdict(r["met"])]
        else:  # a file from before eager's own time was the measure
            judged = ["-", "-" if r["target_us"] is None else f"< {r['target_us']:g} us", verdict(r["met"])]
        found.append([*row, *judged])
    return headers, found


def launches(rows: Sequence[Record]) -> Table:
    """Host time with launches prepared and by ``kernel[grid]``."""
    headers = ["op", "backend", "passes", "case", "launches", "eager us", "kernel[grid] us", "ours us", "p20", "p80"]
    headers += ["of kernel[grid]", "of eager"]
    found = []
    for r in rows:
        ours, others = r["providers"][OURS], [r["providers"][name] for name in ("eager", BY_TRITON)]
        row = [r["op"], r["backend"], r["passes"], r["case"], str(r["launches"])]
        row += [number(p["median_us"]) for p in (*others, ours)] + [number(ours["p20_us"]), number(ours["p80_us"])]
        found.append([*row, *(times(ours["median_us"] / p["median_us"]) for p in reversed(others))])
    return headers, found


def checks(rows: Sequence[Record]) -> Table:
    headers = ["check", "measured", "target", "", "note"]
    found = []
    for r in rows:
        rates = ", ".join(f"{name} {number(rate)} GB/s" for name, rate in r.get("gbps", {}).items())
        found.append(
            [r["check"], number(r["measured"]), f">= {r['target']:g}", verdict(r["met"]), r.get("reason") or rates]
        )
    return headers, found


def steps(rows: Sequence[Record]) -> Table:
    """Training steps: every form, and ours against targets. Memory is compared with a record's first form."""
    headers = ["step", "crops a domain", "form", "ms", "p20", "p80", "x ours", "target", ""]
    headers += ["kept by autograd MB", "x recompute", "target", "", "peak MB", "of the first form", "target", ""]
    found = []
    for record in rows:
        targets = {t["against"]: t for t in record["targets"]}
        providers = record["providers"]
        first, least = next(iter(providers)), providers.get("recompute", {}).get("kept_bytes")
        crops = str(record["batch"]) + (f" of {record['batch_wanted']}" if "batch_wanted" in record else "")
        for form, p in providers.items():
            milliseconds = [number(p[key] / 1e3) for key in ("median_us", "p20_us", "p80_us")]
            row = [record["step"], crops, form, *milliseconds, times(p["ratio"])]
            row += [times(targets.get(form, {}).get("target")), verdict(targets.get(form, {}).get("met"))]
            kept = targets.get("memory", {}) if form == first else {}
            row += [megabytes(p["kept_bytes"]), times(p["kept_bytes"] / least if least else None)]
            row += [times(kept.get("target")), verdict(kept.get("met"))]
            peak, most = p.get("peak_bytes"), targets.get(f"peak {form}", {})
            row += [megabytes(peak), share(None if peak is None else peak / providers[first]["peak_bytes"])]
            found.append([*row, f"<= {share(most['target'])}" if most else "-", verdict(most.get("met"))])
    return without_empty_columns((headers, found))


def scaling(curves: Sequence[Record]) -> Table:
    """A curve a row: time per pixel at its largest size, slopes, and what grows too fast."""
    headers = ["", "over", "threads", "ranks", "sizes", "eager ns", "ours ns", "eager slope", "ours slope", "flagged"]
    rows = []
    for curve in curves:
        points = curve["points"]
        if not points:
            continue
        first, last = points[0], points[-1]
        row = [curve["subject"], curve["axis"], str(curve["threads"]), str(curve["ranks"])]
        row.append(" to ".join(f"{p['batch']}x{p['side']}x{p['side']}" for p in (first, last)))
        row += [number(1e3 * last["times"][name]["median_us"] / pixels(last)) for name in ("eager", OURS)]
        row += ["-" if (found := slope(points, name)) is None else f"{found:.2f}" for name in ("eager", OURS)]
        rows.append([*row, ", ".join(flags(curve)) or "-"])
    return headers, rows


def sizes_left_out(curves: Sequence[Record]) -> list[str]:
    """ "curve: sizes: reason", for each curve and reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for curve in curves:
        for size, reason in curve["left_out"].items():
            found.setdefault((f"{curve['subject']} over {curve['axis']}", reason), []).append(size)
    return [f"{curve} without {', '.join(dict.fromkeys(sizes))}: {why}" for (curve, why), sizes in found.items()]


def skipped(records: Sequence[Record]) -> list[str]:
    """ "provider: reason (cases)", each pair once."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for name, reason in record["skipped"].items():
            found.setdefault((name, reason), []).append(label(record))
    return [
        f"{name}: {reason}" + (f" ({', '.join(dict.fromkeys(labels))})" if len(labels) < len(records) else "")
        for (name, reason), labels in found.items()
    ]


def without_empty_columns(table: Table) -> Table:
    headers, rows = table
    kept = [i for i in range(len(headers)) if i == 0 or any(r[i] not in ("-", "") for r in rows)]
    return [headers[i] for i in kept], [[r[i] for i in kept] for r in rows]
