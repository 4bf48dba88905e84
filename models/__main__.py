"""The commands of this package: `python -m models COMMAND`, each with its own `--help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from models.data import InputError
from models.data.files import FULL, readable
from models.train.distributed import LostRank
from models.train.run import Interrupted, RunError

# Name, module (its `main(arguments)` gives the exit code), and what the list says. Modules are imported when named.
COMMANDS = {
    "demo": ("models.commands.demo.command", "trains a method in miniature on bundled photographs"),
    "dasr": ("models.commands.dasr", "trains DASR on folders of pictures"),
    "usrda": ("models.commands.usrda", "trains USR-DA on folders of pictures"),
    "subimages": ("models.commands.subimages", "cuts photographs into squares that load fast"),
    "upscale": ("models.commands.upscale", "enlarges pictures with a trained network"),
    "evaluate": ("models.commands.evaluate", "PSNR, SSIM and LPIPS of a folder of results"),
    "domain-gap": ("models.commands.domain_gap.command", "how far generated LR pictures are from real ones"),
    "sheet": ("models.commands.sheet", "results of several methods side by side, in one picture"),
    "study": ("models.commands.study.command", "a page on which people score results, and its scores"),
    "ablate": ("models.commands.ablate.command", "trains the rows of a paper's ablation tables in miniature"),
    "weights": ("models.commands.weights", "makes weights files from what other packages ship"),
    "profile": ("models.commands.profile.command", "where the time of a training step goes"),
}


def main(arguments: Sequence[str]) -> int:
    """Runs a command. Returns 0 on success, 1 if it failed, 2 for unusable input, 143 if it was asked to stop."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
        print("usage: python -m models COMMAND [OPTIONS]\n\n" + "\n".join(lines))
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(f"error: no command {arguments[0]!r}, there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold bytes that are no UTF-8
    try:
        return int(import_module(COMMANDS[arguments[0]][0]).main(arguments[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RunError, LostRank) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk or a path that cannot be, wherever it is met
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: {readable(said)}", file=sys.stderr)
        return 1 if error.errno in FULL else 2
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 143


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
