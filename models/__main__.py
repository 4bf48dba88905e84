"""Training of super-resolution methods on the ops of srkernels."""

from __future__ import annotations

import sys

import tyro

from models.dasr.config import DemoOptions
from models.dasr.demo import run_demo
from models.data import InputError


def main() -> int:
    """Runs the command that `sys.argv` names; 0 on success, 1 if the demo did not learn, 2 for unusable input."""
    options = tyro.extras.subcommand_cli_from_dict({"demo": DemoOptions}, prog="python -m models", description=__doc__)
    try:
        return run_demo(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
