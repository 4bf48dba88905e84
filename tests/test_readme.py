"""What README and the pages say about the code is generated from the code, or checked against it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.published import AT_ANY_SIZE, PUBLISHED, assert_same, images
from torch.nn import functional as F

import srkernels
from bench.report import PAGE, newest, page_block
from srkernels._spec import BenchCase, OpSpec
from srkernels.ops import specs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FOLDERS = list(dict.fromkeys(spec.package.rsplit(".", 1)[1] for spec in specs()))
OPS = {folder: ROOT / "srkernels" / "ops" / folder / "README.md" for folder in FOLDERS}
HAAR = OPS["haar"].read_text()
# The ablations' pages are written by a command.
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md")]
PAGES += [*OPS.values(), *sorted(p for p in (ROOT / "docs").glob("*.md") if not p.stem.endswith("_ablation"))]
PROSE = [page for page in PAGES if page.parent.name != "models"]
NUMBERS = {0.5: "/2", 0.25: "/4", 1 / 12: "/12", -0.5: "/2"}
COMMANDS = (
    '    pip install -c constraints.txt -e ".[train]" && python -m models demo',
    '    pip install -c constraints.txt -e ".[test]" && pytest',
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def between(marker: str, text: str) -> str:
    (found,) = re.findall(rf"<!-- {marker}:begin -->\n(.*?)\n*<!-- {marker}:end -->", text, re.DOTALL)
    return found


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


def counted_table(folder: str) -> str:
    """What the first benched case of each op and dtype must move, compute and save, by the formulas of its spec."""
    columns = ("op", "case", "passes", "bytes", "FLOPs", "FLOPs a byte", "saved, bytes")
    rows = [f"| {' | '.join(columns)} |", "|---|---|---|---:|---:|---:|---:|"]
    for spec in specs():
        if spec.package.endswith(f".{folder}"):
            first = {bench.dtype: bench for bench in reversed(spec.bench)}
            rows += [row for dtype in sorted(first, reverse=True) for row in _counted(spec, first[dtype])]
    return "\n".join(rows)


def _counted(spec: OpSpec, bench: BenchCase) -> list[str]:
    itemsize = getattr(torch, bench.dtype).itemsize
    rows = []
    for passes in ("forward", "forward+backward"):
        moved, flops = spec.bytes_moved(bench.case, itemsize, passes), spec.flops(bench.case, passes)
        saved = f"{spec.saved_bytes(bench.case, itemsize):,}" if passes == "forward" else ""
        case = f"{bench.case.id} {bench.dtype}"
        rows.append(f"| `{spec.name}` | {case} | {passes} | {moved:,} | {flops:,} | {flops / moved:.3g} | {saved} |")
    return rows


def test_conventions_table() -> None:
    expected = conventions_table()
    assert between("conventions", HAAR) == expected, f"Haar's page should say\n{expected}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_counted_table(folder: str) -> None:
    expected = counted_table(folder)
    assert between("counted", OPS[folder].read_text()) == expected, f"the page of {folder} should say\n{expected}"


def test_every_op_is_in_the_table() -> None:
    for spec in specs():
        assert f"| `{spec.name}(" in README, f"{spec.name} is missing from the README's table of ops"


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.name)
def test_every_op_is_on_its_page(spec: OpSpec) -> None:
    folder = spec.package.rsplit(".", 1)[1]
    assert f"`{spec.name}`" in OPS[folder].read_text()
    assert f"({name(OPS[folder])})" in README, "README links no such page"


def test_drop_in_lines_run() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    sr, hr, distance = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.rand(2, 1, 4, 4)
    names = {"sr": sr, "hr": hr, "distance": distance}
    exec(block, names)
    assert names["d_input"].shape == (2, 9, 8, 8)
    assert names["loss"].dim() == 0


def replacements(table: str = "drop-in") -> dict[str, str]:
    """One of Haar's tables of drop-in replacements: the package, and the code that replaces it."""
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", between(table, HAAR), re.MULTILINE)
    return {package: code for package, code in rows if "`" in code}


def replaced(code: str, **names: Any) -> Any:
    """The value of the last expression of such code."""
    names |= {"torch": torch, **{n: getattr(srkernels, n) for n in srkernels.__all__}}
    statements, _, expression = code.rpartition("; ")
    exec(statements, names)
    return eval(expression, names)


def test_every_package_has_a_replacement() -> None:
    assert list(replacements()) == list(PUBLISHED)
    assert list(replacements("any-size")) == list(AT_ANY_SIZE)


@pytest.mark.parametrize("package", PUBLISHED)
def test_replacements_give_what_the_package_gives(package: str) -> None:
    x = images(2, 3, 8, 10)
    whole, *alone = re.findall(r"`(.*?)`", replacements()[package])
    published = PUBLISHED[package].analysis(x)
    assert_same(replaced(whole, x=x), published)
    for high in alone:
        assert_same(replaced(high, x=x), published[1])


@pytest.mark.parametrize("package", AT_ANY_SIZE)
def test_replacements_at_any_size_give_what_the_package_gives(package: str) -> None:
    x = images(2, 3, 21, 13)
    low, high = srkernels.haar_dwt2d(x, levels=3)
    (code,) = re.findall(r"`(.*?)`", replacements("any-size")[package])
    assert_same(replaced(code, x=x, low=low, high=high), AT_ANY_SIZE[package](x))


def test_losses_give_what_they_replace() -> None:
    rows = re.findall(
        r"^\| `(.*?)`.*? \| `(.*?)` \|$", between("drop-in", OPS["weighted_loss"].read_text()), re.MULTILINE
    )
    assert len(rows) == 9
    x, y = images(2, 3, 8, 12), images(2, 3, 8, 12) ** 2
    full = images(2, 1, 8, 12).abs()
    names = {"F": F, "x": x, "y": y, "full": full, "w": full[..., ::4, ::4], "mask": (full > 0.3).expand(2, 3, 8, 12)}
    names |= {"nn": srkernels.nn, **{n: getattr(srkernels, n) for n in srkernels.__all__}}
    for theirs, ours in rows:
        torch.testing.assert_close(eval(ours, names), eval(theirs, names), rtol=1e-12, atol=0, msg=ours)


def test_benchmark_tables_are_those_of_the_results() -> None:
    found = re.search(r"(?<=<!-- bench:begin -->\n).*(?=<!-- bench:end -->)", PAGE.read_text(), re.DOTALL)
    expected = page_block(newest(ROOT / "bench" / "results"))
    assert found and found[0] == expected, f"{name(PAGE)} is not that of bench/results: python -m bench report --page"


def test_readme_is_short_and_has_the_two_commands() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    for command in COMMANDS:
        assert lines.count(command) == 1


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        if re.match(r"https?:", link):
            continue
        path, _, section = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link} leads nowhere"
        if section:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert section in anchors, f"{link}: no such section"


@pytest.mark.parametrize("page", PROSE, ids=name)
def test_prose_fits_a_screen(page: Path) -> None:
    text = re.sub(r"<!-- bench:begin -->.*<!-- bench:end -->", "", page.read_text(), flags=re.DOTALL)
    wide = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "!["))]
    assert not wide, "\n".join(wide)
