"""Results on their way to a file: our name in them, targets judged, the file written completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OURS = "srkernels"
BY_TRITON = "kernel[grid]"  # our Triton backends, their launches made by Triton itself


def verdicts(
    targets: Mapping[str, float], providers: Mapping[str, Mapping[str, Any]], of: str = OURS
) -> list[dict[str, Any]]:
    """Each target against the figure of ``of``; a provider that did not run leaves its target open (met: None)."""
    found = []
    own = providers.get(of)
    for against, target in targets.items():
        ratio = providers.get(against, {}).get("ratio")
        if own is None or (against != "copy" and ratio is None):
            measured = None
        else:
            measured = own["share"] if against == "copy" else ratio / own["ratio"]
        met = None if measured is None else measured >= target
        found.append({"against": against, "target": target, "measured": measured, "met": met})
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Completely or not at all: a killed run leaves the last complete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
