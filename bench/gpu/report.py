"""What a results file of the GPU acceptance says: the tables, which kernel wins where, what missed its target."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from srkernels.tuned import store

from .. import machine, tables
from ..record import OURS
from ..scaling.slopes import flags
from .convolutions import PYTORCH

Row = Mapping[str, Any]


def _passes(results: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], list[Row]]]:
    """((shape, dtype, pass), its timed candidates)."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in results["sections"].get("kernels", {}).get("data", {}).get("kernels", []):
        if "us" in row:
            found.setdefault((row["shape"], row["dtype"], row["pass"]), []).append(row)
    yield from found.items()


def choices(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fastest candidate of each pass; a difference within the spread of its two halves goes to PyTorch."""
    found = []
    for (shape, dtype, name), rows in _passes(results):
        theirs = next((row for row in rows if row["kernel"] == PYTORCH), None)
        best = min(rows, key=lambda row: row["us"])
        if theirs is not None and max(best["passes_us"]) >= min(theirs["passes_us"]):
            best = theirs
        times = {"us": best["us"], "pytorch_us": theirs and theirs["us"], "floor_us": best["floor_us"]}
        found.append({"shape": shape, "dtype": dtype, "pass": name, "kernel": best["kernel"], **times})
    return found


def convolutions(results: Mapping[str, Any]) -> tables.Table:
    headers = ["3x3 convolution", "type", "pass", "PyTorch us", "ours us", "PyTorch / ours", "floor us", "our kernel"]
    table: tables.Table = (headers, [])
    for (shape, dtype, name), rows in _passes(results):
        ours = [row for row in rows if row["kernel"] != PYTORCH]
        theirs = next((row["us"] for row in rows if row["kernel"] == PYTORCH), None)
        if not ours:
            continue
        best = min(ours, key=lambda row: row["us"])
        row = [shape, dtype, name, tables.number(theirs), tables.number(best["us"])]
        row += [tables.times(theirs and theirs / best["us"]), tables.number(best["floor_us"]), best["kernel"]]
        table[1].append(row)
    return table


def write_table(results: Mapping[str, Any], folder: Path = store.TABLES) -> Path | None:
    """The table of choices that ships for the card that a run measured; None where it measured none.

    Raises ValueError for a damaged file.
    """
    content = results["sections"].get("choices", {}).get("data", {}).get("choices")
    if content is None:
        return None
    # As the library will read it, for any device of this kind.
    records = store.read(json.dumps(content).encode(), torch.device("cuda"), lambda made: True)
    if not records:
        raise ValueError("its section choices holds no record that can be read")
    file = store.table(content["made_on"], folder)
    file.write_text(store.written(content["made_on"], records))
    return file


def missed(results: Mapping[str, Any]) -> list[str]:
    """A line for each section that failed, each wrong kernel and each missed target."""
    found = []
    for name, section in results["sections"].items():
        if section["status"] not in ("ok", "skipped"):
            found.append(f"section {name} {section['status']}: {section.get('reason', '')}")
        data = section.get("data", {})
        for row in data.get("kernels", []):
            if row.get("failed"):
                found.append(f"{row['shape']} {row['dtype']} {row['pass']}, {row['kernel']}: {row['failed']}")
        titled = [(f"{r['op']} {tables.label(r)} {r['passes']}", r) for r in data.get("cases", [])]
        titled += [(r["step"], r) for r in data.get("steps", [])]
        for title, record in titled:
            found += [f"{title}: {_measured(target)}" for target in record["targets"] if target["met"] is False]
        for curve in data.get("scaling", []):
            slopes = ", ".join(flags(curve))
            found += [f"slope of {curve['subject']} over the {curve['axis']}: {slopes}"] * bool(slopes)
        for row in data.get("checks", []):
            if row["met"] is False:
                found.append(f"{row['check']}: {tables.number(row['measured'])}, wanted {row['target']:g}")
        for row in data.get("host", []):
            if row["met"] is False:
                ours = row["providers"][OURS]["median_us"]
                found.append(f"host time of {row['op']} {row['passes']}: {tables.number(ours)} us")
    return found


def _measured(target: Row) -> str:
    return f"{tables.number(target['measured'])} against {target['against']}, wanted {target['target']:g}"


def render(path: Path) -> str:
    """All three, as Markdown."""
    results = json.loads(path.read_text())
    if "sections" not in results:
        raise ValueError(f"{path}: not a results file of the GPU acceptance")
    lines = [f"### {machine.title(dict(results))}", "", machine.footnote(dict(results)), ""]
    table = convolutions(results)
    lines += [tables.markdown(table) if table[1] else "No convolution kernel was timed.", ""]
    cases = [record for s in results["sections"].values() for record in s.get("data", {}).get("cases", [])]
    for op, records in tables.by_op(cases).items():
        lines += [f"**`{op}`**", "", tables.markdown(tables.summary(records)), ""]
    lines += ["### The fastest of each pass", "", "```json"]
    lines += [json.dumps(choice) for choice in choices(results)] + ["```", ""]
    lines += ["### Missed", "", *(f"- {line}" for line in missed(results) or ["nothing"]), ""]
    return "\n".join(lines)
