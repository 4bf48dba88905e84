"""``python -m srkernels [--check]``: what is installed, what runs where, and whether it is right."""

from __future__ import annotations

import argparse

from . import info


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m srkernels", description=__doc__)
    parser.add_argument("--check", action="store_true", help="also run a parity sample and a bandwidth probe")
    arguments = parser.parse_args()
    print(info.report())
    return info.check() if arguments.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
