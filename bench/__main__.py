"""`python -m bench report` renders results, `python -m bench gpu` is the GPU acceptance."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .machine import ROOT, forget_tuning


def _report(arguments: argparse.Namespace) -> int:
    from .report import PAGE, newest, render, write_page

    files = arguments.files or newest(ROOT / "bench" / "results")
    if not files:
        print("no results: run pytest bench --benchmark --benchmark-save-results first", file=sys.stderr)
        return 2
    try:
        if arguments.page:
            write_page(files)
            print(f"wrote {PAGE.relative_to(ROOT)} and its pictures")
            return 0
        text = render(files, arguments.out)
    except (OSError, ValueError, KeyError) as error:
        print(f"report: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(text if arguments.out is None else f"wrote {arguments.out / 'BENCH.md'} and its pictures")
    return 0


def _gpu(arguments: argparse.Namespace) -> int:
    from .gpu import report, run

    forget_tuning()
    if arguments.report:
        try:
            print(report.render(arguments.report))
            table = report.write_table(json.loads(arguments.report.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"gpu --report: {type(error).__name__}: {error}", file=sys.stderr)
            return 2
        if table is not None:
            print(f"wrote the table of choices {table}", file=sys.stderr)
        return 0
    if arguments.out is None:
        print("gpu needs --out DIR, or --report FILE of an earlier run", file=sys.stderr)
        return 2
    if arguments.section:
        return run.run_one(arguments.section, arguments.partial, arguments.out, arguments.quick, arguments.deadline)
    return run.run_all(arguments.out, quick=arguments.quick, only=arguments.only, minutes=arguments.minutes)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)

    report = commands.add_parser("report", help="Markdown tables on stdout; with --out also written, with pictures")
    report.add_argument("files", nargs="*", type=Path, help="results (default: the newest of each machine)")
    report.add_argument("--out", type=Path, help="folder for BENCH.md and the PNG files")
    report.add_argument("--page", action="store_true", help="write docs/benchmarks.md and its pictures instead")
    report.set_defaults(run=_report)

    gpu = commands.add_parser("gpu", help="build, GPU tests, ceilings, benches: at most 8 minutes, offline")
    gpu.add_argument("--out", type=Path, help="folder for results.json, REPORT.md and the logs")
    gpu.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="what a run's results.json says, and its table of choices into srkernels/tables",
    )
    gpu.add_argument("--quick", action="store_true", help="tiny sizes, one process, no build: exercises the script")
    gpu.add_argument("--only", nargs="+", metavar="SECTION", help="run these sections alone")
    gpu.add_argument("--minutes", type=float, default=8, help="time for everything (default 8)")
    # How run_all starts a section in a process of its own.
    gpu.add_argument("--section", help=argparse.SUPPRESS)
    gpu.add_argument("--partial", type=Path, help=argparse.SUPPRESS)
    gpu.add_argument("--deadline", type=float, default=float("inf"), help=argparse.SUPPRESS)
    gpu.set_defaults(run=_gpu)

    arguments = parser.parse_args()
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
