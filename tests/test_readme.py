"""What the README says of the code is generated from the code, or checked against it."""

from __future__ import annotations

import re
from pathlib import Path

import srkernels
from srkernels.ops import specs

README = (Path(__file__).parents[1] / "README.md").read_text()
NUMBERS = {0.5: "/2", 0.25: "/4", 1 / 12: "/12", -0.5: "/2"}


def conventions_table() -> str:
    """The table of Haar conventions as Markdown."""
    rows = ["| convention | low | high, in order | added | layout | used by |", "|---|---|---|---|---|---|"]
    for name, c in srkernels.HAAR_CONVENTIONS.items():
        signed = [f"{'-' if factor < 0 else ''}{band}{NUMBERS[factor]}" for band, factor in c.high]
        high = " + ".join(signed) if c.layout == "sum" else ", ".join(signed)
        layout = c.layout.replace("_", "-")
        shift = f"{c.shift:g}" if c.shift else ""
        rows.append(f"| `{name}` | S{NUMBERS[c.low]} | {high} | {shift} | {layout} | {c.used_by} |")
    return "\n".join(rows)


def test_conventions_table() -> None:
    (found,) = re.findall(r"<!-- conventions:begin -->\n(.*?)\n<!-- conventions:end -->", README, re.S)
    expected = conventions_table()
    assert found == expected, f"the README should say\n{expected}"


def test_every_op_is_in_the_table() -> None:
    for spec in specs():
        assert f"| `{spec.name}(" in README, f"{spec.name} is missing from the README's table of ops"


def test_drop_in_lines_run() -> None:
    import torch

    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    sr, hr, distance = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.rand(2, 1, 4, 4)
    names = {"sr": sr, "hr": hr, "distance": distance}
    exec(block, names)
    assert names["d_input"].shape == (2, 9, 8, 8)
    assert names["loss"].dim() == 0
