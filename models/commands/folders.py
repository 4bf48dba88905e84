"""What the commands that compare folders of pictures have in common: the folders' names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.data import InputError


def named_folders(arguments: Sequence[str]) -> dict[str, Path]:
    """Folders by name, in order: of `NAME=DIR` what it says, of `DIR` the folder's own name.

    Raises InputError for no name and for one name twice.
    """
    folders: dict[str, Path] = {}
    for argument in arguments:
        name, given, folder = argument.partition("=")
        if not given or Path(argument).is_dir():
            name, folder = Path(argument).resolve().name, argument
        if not name:
            raise InputError(f"{argument}: this folder needs a name: NAME={folder}")
        if name in folders:
            raise InputError(f"two folders are named {name}, {folders[name]} and {folder}: write NAME=DIR")
        folders[name] = Path(folder)
    return folders
