"""``python -m srkernels [--check]``: what is installed, what runs where, and whether it is right.

``python -m srkernels tune``: measures which backend runs the benched calls fastest, and keeps it for later processes.
"""

from __future__ import annotations

import argparse

from . import info
from .tuned import report


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m srkernels", description=__doc__, formatter_class=raw)
    parser.add_argument("command", nargs="?", choices=["tune"], help="without: the report")
    parser.add_argument("--check", action="store_true", help="also run a parity sample and a bandwidth probe")
    arguments = parser.parse_args()
    if arguments.command == "tune":
        print(report.tune_benches())
        return 0
    print(info.report())
    return info.check() if arguments.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
