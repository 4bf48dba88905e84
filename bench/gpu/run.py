"""The GPU acceptance in one offline command: sections in order, each isolated, time-boxed and written down at once.

Every section runs in its own process (an illegal address poisons a CUDA context for good, and a hang must be
killable) and hands its tables over through a file that it rewrites as it goes, so that a killed section keeps what it
has. Time that a section does not use goes to the later ones. A machine without a GPU runs the same sections at tiny
sizes; what cannot run there says why.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import machine, tables
from ..record import write_json
from . import convolutions, library, limits, networks
from .context import Context, Skip


@dataclass(frozen=True)
class Section:
    """Answers ``what`` in ``seconds`` at most; ``interpreted``: without a GPU, in Triton's interpreter."""

    run: Callable[[Context], None]
    seconds: float
    what: str
    interpreted: bool = False


# In running order: what decides most comes first.
SECTIONS = {
    "environment": Section(library.environment, 10, "what this machine is"),
    "ceilings": Section(limits.ceilings, 20, "copy, L2 and matrix rates that everything else is held against"),
    "kernels": Section(convolutions.kernels, 105, "every configuration of the convolution kernels, beside cuDNN", True),
    "blocks": Section(networks.blocks, 50, "residual and dense block: eager, torch.compile, ours; channels_last"),
    "shapes": Section(library.shapes, 40, "the ops, blocks first, at shapes of the published training runs"),
    "choices": Section(library.choices, 45, "what tuning chooses, for the table that ships: as far as it gets"),
    "build": Section(library.build, 50, "the native core, built in place for this GPU alone"),
    "tests": Section(library.tests, 75, "the gates on the GPU"),
    "sanitizer": Section(library.sanitizer, 20, "memory errors and races, by compute-sanitizer"),
    "steps": Section(
        library.steps, 40, "the methods' training steps at published sizes, against published and plain PyTorch"
    ),
    "launches": Section(limits.launches, 10, "what one launch and one autograd node cost"),
    "benches": Section(library.benches, 15, "every bench case of every op, host cost, bandwidth checks"),
    # No time of its own: it runs if the others leave some.
    "scaling": Section(library.scaling, 0, "how the time of every op and step grows with side and batch"),
}


def run_one(name: str, partial: Path | None, out: Path, quick: bool, deadline: float) -> int:
    """Body of a section's process: run it and leave its outcome in ``partial``."""
    outcome = _run_section(name, out, quick, deadline, lambda o: write_json(partial, o) if partial else None)
    print(f"{name}: {outcome['status']}")
    return 0


def _run_section(
    name: str, out: Path, quick: bool, deadline: float, save: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    outcome: dict[str, Any] = {"status": "running", "data": {}}

    def saved(data: Mapping[str, Any]) -> None:
        save(outcome | {"data": data})

    device = machine.default_device()
    context = Context(device, out, quick, deadline, saved)
    try:
        SECTIONS[name].run(context)
        outcome["status"] = "ok"
    except Skip as reason:
        outcome |= {"status": "skipped", "reason": str(reason)}
    except BaseException as error:
        outcome |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}
        outcome["traceback"] = traceback.format_exc()[-6000:]
        if isinstance(error, KeyboardInterrupt):
            raise
    finally:
        outcome["data"] = context.data
        save(outcome)
    return outcome


def _run_process(name: str, out: Path, quick: bool, seconds: float, **environment: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        partial, log = Path(folder) / "section.json", Path(folder) / "log"
        command = [sys.executable, "-m", "bench", "gpu", "--out", str(out), "--section", name]
        command += ["--partial", str(partial), "--deadline", str(time.monotonic() + seconds - 3)] + ["--quick"] * quick
        with log.open("wb") as sink:
            # A session of its own: stopping a section also stops the compilers and tests it started.
            process = subprocess.Popen(
                command,
                cwd=machine.ROOT,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
        outcome: dict[str, Any] = json.loads(partial.read_text()) if partial.exists() else {"data": {}}
        said = log.read_text(errors="replace")
        if code is None:
            outcome |= {"status": "timed out", "reason": f"stopped after {seconds:.0f} s; what it had is kept"}
        elif outcome.get("status") in (None, "running"):
            outcome |= {"status": "failed", "reason": f"its process ended with code {code}", "traceback": said[-6000:]}
        return outcome


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_all(out: Path, *, quick: bool = False, only: list[str] | None = None, minutes: float = 8) -> int:
    """Run the sections, writing results.json and REPORT.md after each. Exit code 1 if one failed."""
    deadline = time.monotonic() + 60 * minutes
    unknown = set(only or ()) - set(SECTIONS)
    if unknown:
        raise SystemExit(f"unknown section {', '.join(sorted(unknown))}; there are: {', '.join(SECTIONS)}")
    chosen = [name for name in SECTIONS if not only or name in only]
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    device = machine.default_device()
    results = machine.describe(device, f"python -m bench gpu --out DIR{' --quick' if quick else ''}")
    results["sections"] = {}
    for i, name in enumerate(chosen):
        section = SECTIONS[name]
        later = sum(SECTIONS[n].seconds for n in chosen[i + 1 :])
        seconds = max(min(section.seconds, 0.9 * (deadline - time.monotonic())), deadline - time.monotonic() - later)
        begin = time.monotonic()
        if seconds < 5:
            outcome: dict[str, Any] = {"status": "skipped", "reason": "no time was left", "data": {}}
        elif section.interpreted and device.type == "cpu":
            outcome = _run_process(name, out, quick, seconds, TRITON_INTERPRET="1")
        elif quick:
            outcome = _run_section(name, out, quick, time.monotonic() + seconds, lambda _: None)
        else:
            outcome = _run_process(name, out, quick, seconds)
        outcome |= {"seconds": round(time.monotonic() - begin, 1), "what": section.what}
        results["sections"][name] = outcome
        write_json(out / "results.json", results)
        (out / "REPORT.md").write_text(to_markdown(results))
        print(f"{name:<14}{outcome['status']:<10}{outcome['seconds']:>6.1f} s  {outcome.get('reason', '')}", flush=True)
    return int(any(s["status"] == "failed" for s in results["sections"].values()))


def to_markdown(results: Mapping[str, Any]) -> str:
    """REPORT.md: what ran, then each section's tables."""
    sections: Mapping[str, Any] = results["sections"]
    overview: tables.Table = (["section", "status", "seconds", "what", "why"], [])
    for name, s in sections.items():
        overview[1].append([name, s["status"], f"{s['seconds']:.1f}", s["what"], s.get("reason", "")])
    lines = [f"# GPU acceptance: {machine.title(dict(results))}", "", machine.footnote(dict(results)), ""]
    lines += [f"`{results['command']}`", "", tables.markdown(overview), ""]
    for name, s in sections.items():
        data = s.get("data", {})
        lines += [f"## {name}: {s['what']}", ""]
        if s.get("reason"):
            lines += [f"{s['status']}: {s['reason']}", ""]
        for one in data.get("tables", []):
            lines += [f"**{one['title']}**", "", tables.markdown((one["headers"], one["rows"])), ""]
        lines += [f"- {note}" for note in data.get("notes", [])] + [""]
        for op, records in tables.by_op(data.get("cases", [])).items():
            lines += [f"**`{op}`**", "", tables.markdown(tables.summary(records)), ""]
            lines += [tables.markdown(tables.detail(records)), ""]
            lines += [f"- without {line}" for line in tables.skipped(records)] + [""]
        if data.get("steps"):
            lines += ["**training steps**", "", tables.markdown(tables.steps(data["steps"])), ""]
        if data.get("scaling"):
            lines += ["**how cost grows**", "", tables.markdown(tables.scaling(data["scaling"])), ""]
            lines += [f"- {line}" for line in tables.sizes_left_out(data["scaling"])] + [""]
        if data.get("host"):
            lines += ["**host time of a tiny call**", "", tables.markdown(tables.host(data["host"])), ""]
        if data.get("checks"):
            lines += ["**bandwidth**", "", tables.markdown(tables.checks(data["checks"])), ""]
        if s.get("traceback"):
            lines += ["```text", s["traceback"].rstrip(), "```", ""]
    return "\n".join(lines)
