"""`python -m models study`: the page, what a browser makes of it, and what is read from its CSV files."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.__main__ import main
from models.commands.study import command
from models.commands.study.page import build_page
from models.commands.study.scores import HEADER, read_ratings
from models.data import InputError, read_image, write_picture
from models.evaluate.statistics import interval, resample

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def picture(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """References hr/one and hr/two, and results of two methods."""
    for place, (folder, ending) in enumerate((("hr", ""), ("ours", "_x4"), ("theirs", ""))):
        for number, name in enumerate(("one", "two")):
            write_picture(tmp_path / folder / f"{name}{ending}.png", picture(10 * place + number))
    return tmp_path


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def pixels_of(png: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), cv2.IMREAD_COLOR_RGB)


@pytest.mark.parametrize("crop", [0, 48])
def test_the_page_holds_every_pixel_and_no_address(root, crop):
    page = build_page({"ours": root / "ours", "theirs": root / "theirs"}, root / "hr", crop, seed=7)
    data = data_of(page.html)
    assert (data["study"], data["seed"], page.questions) == (page.study, 7, 4)
    assert json.loads(base64.b64decode(data["methods"])) == ["ours", "theirs"]
    for number, name in enumerate(("one", "two")):
        assert data["references"][number]["name"] == name
        np.testing.assert_array_equal(pixels_of(data["references"][number]["png"]), picture(number))
    for result in data["results"]:
        expected = picture(10 * (1 + result["method"]) + result["picture"])
        np.testing.assert_array_equal(pixels_of(result["png"]), expected)
    assert "theirs" not in page.html  # blind, also to a look at the source
    assert not re.findall(r"(?:src|href)=[\"']?\w+://|url\(", page.html)
    assert "default-src 'none'" in page.html


def test_a_crop_is_the_same_window_of_all(root):
    for folder in ("hr", "ours", "theirs"):
        flat = np.full((90, 100, 3), 128, np.uint8)
        flat[40:70, 20:50] = picture(5 if folder == "hr" else 6, 30, 30)
        for path in (root / folder).iterdir():
            write_picture(path, flat)
    data = data_of(build_page({"ours": root / "ours"}, root / "hr", crop=24, seed=0).html)
    shown = pixels_of(data["references"][0]["png"])
    reference = read_image(root / "hr" / "one.png")
    places = [(y, x) for y in range(67) for x in range(77) if (reference[y : y + 24, x : x + 24] == shown).all()]
    ((top, left),) = places
    assert 40 <= top <= 46 and 20 <= left <= 26
    window = read_image(root / "ours" / "one_x4.png")[top : top + 24, left : left + 24]
    np.testing.assert_array_equal(pixels_of(data["results"][0]["png"]), window)


def test_another_study_has_another_identifier(root):
    methods, hr = {"ours": root / "ours"}, root / "hr"
    first = build_page(methods, hr, 0, 0).study
    assert build_page(methods, hr, 0, 0).study == first
    others = [build_page(methods, hr, 0, 1), build_page({"a": root / "ours"}, hr, 0, 0), build_page(methods, hr, 16, 0)]
    write_picture(root / "ours" / "one_x4.png", picture(99))
    others.append(build_page(methods, hr, 0, 0))
    assert len({first, *(other.study for other in others)}) == 5


def test_names_are_data_and_never_markup(root):
    name = "</script><img src=x onerror=alert(1)>&\"',\n"
    for folder, ending in (("hr", ""), ("ours", "_x4")):
        (root / folder / f"one{ending}.png").rename(root / folder / f"<b>&,\"'{ending}.png")
    page = build_page({name: root / "ours"}, root / "hr", 0, 0)
    assert page.html.count("</script>") == 2 and "<img src=x" not in page.html and "<b>&" not in page.html
    data = data_of(page.html)
    assert data["references"][0]["name"] == "<b>&,\"'"
    assert json.loads(base64.b64decode(data["methods"])) == [name.replace("\n", "\\n")]


def test_what_makes_no_page_is_named(root, capsys):
    write_picture(root / "small" / "one.png", picture(0, 40, 47))
    write_picture(root / "small" / "two.png", picture(0))
    write_picture(root / "lacking" / "one.png", picture(0))
    (root / "twice" / "ours").mkdir(parents=True)
    ours, hr, out = str(root / "ours"), f"--hr={root / 'hr'}", f"--out={root / 'page.html'}"
    for arguments, message in (
        (
            [ours, str(root / "lacking"), hr, out],
            r"hr/two\.png must have one SR picture of its name in .*lacking, found none",
        ),
        ([str(root / "small"), hr, out], r"small/one\.png is 47 x 40 pixels, .*hr/one\.png is 48 x 40"),
        ([ours, str(root / "gone"), hr, out], "no such folder: .*gone"),
        ([ours, str(root / "twice" / "ours"), hr, out], "two folders are named ours, .*: write NAME=DIR"),
        ([f"={ours}", hr, out], "this folder needs a name: NAME=.*ours"),
        ([ours, hr], "a page needs folders of results, --hr and --out"),
        ([hr, out], "a page needs folders of results, --hr and --out"),
        ([ours, hr, out, "--crop=-1"], "--crop must be from 0 to 16384, got -1"),
        ([ours, hr, f"--out={root / 'hr' / 'one.png' / 'page.html'}"], "--out: cannot write .*page.html"),
        ([ours, "--score", str(root / "a.csv")], "--score reads CSV files and makes no page"),
    ):
        assert main(["study", *arguments]) == 2, arguments
        said = capsys.readouterr().err
        assert re.match(f"error: .*{message}", said) and said.count("\n") == 1, said
    assert not (root / "page.html").exists()
    assert main(["study", ours, f"a=b={ours}", hr, out]) == 2  # the folder "b=..." is none
    assert "no such folder: b=" in capsys.readouterr().err


def test_a_large_page_is_told(root, monkeypatch, capsys):
    (root / "ours").rename(root / "x=y")  # a folder, not one named x
    options = [str(root / "x=y"), f"--hr={root / 'hr'}", f"--out={root / 'page.html'}"]
    for least, noted in ((100, False), (0, True)):
        monkeypatch.setattr(command, "_LARGE", least)
        assert main(["study", *options]) == 0
        said = capsys.readouterr().out
        assert f"2 pictures to score, {(root / 'page.html').stat().st_size / 1e6:.1f} MB" in said
        assert ("note: a page of this size" in said) == noted
    names = data_of((root / "page.html").read_text())["methods"]
    assert json.loads(base64.b64decode(names)) == ["x=y"]


def table_of(scores: dict[tuple[str, str], object], study: str = "s1", rater: str = "r1") -> str:
    """A CSV file as the page gives it, of scores by (method, picture)."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    for place, ((method, shown), score) in enumerate(scores.items(), 1):
        writer.writerow([study, rater, place, len(scores), shown, method, score])
    return file.getvalue()


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


FOUR = {("ours", "one"): 1, ("theirs", "two"): 3, ("theirs", "one"): 1, ("ours", "two"): 0}


def test_scores_and_preferences(tmp_path, capsys):
    one = write(tmp_path / "1.csv", table_of(FOUR))
    two = write(tmp_path / "2.csv", "\ufeff" + table_of({**FOUR, ("ours", "one"): 4, ("ours", "two"): ""}, rater="r2"))
    ratings = read_ratings([one, two])
    assert ratings.methods == ["ours", "theirs"]
    np.testing.assert_array_equal(ratings.scores, [[[1, 0], [4, np.nan]], [[1, 3], [1, 3]]])
    assert main(["study", "--score", str(one), str(two)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    by_hand = np.std([1, 0, 4], ddof=1), np.std([1, 3, 1, 3], ddof=1)
    assert [cells[0][i] for i in (0, 1, 2, 4)] == ["ours", "3 of 4", "1.67", f"{by_hand[0]:.2f}"]
    assert [cells[1][i] for i in (0, 1, 2, 4)] == ["theirs", "4 of 4", "2.00", f"{by_hand[1]:.2f}"]
    assert cells[1][3] == "1.00 to 3.00"  # a replicate may hold one picture alone
    assert cells[2][:7] == ["ours", "theirs", "3", "33 %", "33 %", "33 %", "+0.00"]  # +3, 0, -3


def test_the_interval_covers_what_it_says():
    """Of means of 40 standard normal samples: half its width is 1.96 / sqrt(40), within a bootstrap's noise."""
    rng = np.random.default_rng(3)
    widths = []
    for _ in range(40):
        samples = rng.standard_normal(40)
        low, high = interval(resample(40, rng) @ samples / 40)
        widths.append((high - low) / 2)
    assert np.mean(widths) == pytest.approx(1.96 / np.sqrt(40), rel=0.06)


DAMAGE = {
    "empty": ("", "is no CSV file of a study: its first line must be study,rater"),
    "header alone": (",".join(HEADER) + "\n", "lacks rows"),
    "another table": ("picture,PSNR\none,30\n", "is no CSV file of a study"),
    "cut": (table_of(FOUR).rsplit("\n", 2)[0], "has 3 rows of scores, its row 2 speaks of 4"),
    "cut in a row": (table_of(FOUR)[:-8], r"row 5: \d cells, expected 7"),
    "score 5": (table_of({**FOUR, ("ours", "one"): 5}), "row 2: the score must be 0 to 4, or empty, got '5'"),
    "score 1.5": (table_of({**FOUR, ("ours", "one"): 1.5}), "row 2: the score must be 0 to 4"),
    "score nan": (table_of({**FOUR, ("ours", "one"): "nan"}), "row 2: the score must be 0 to 4"),
    "repeated": (
        table_of(FOUR).replace("theirs", "ours"),
        "row 4: one by ours was scored in an earlier row",
    ),
    "lacking": (table_of({**dict(list(FOUR.items())[:3])}), "lacks rows: every picture must be there once"),
    "two studies": (table_of(FOUR).replace("s1,r1,3", "s2,r1,3"), "row 4: study s2, rater r1 in a file of s1 and r1"),
    "two raters": (table_of(FOUR).replace("s1,r1,3", "s1,r7,3"), "row 4: study s1, rater r7 in a file of s1 and r1"),
    "open quote": (table_of(FOUR).replace("ours", '"ours'), "cannot read the scores"),
    "zeros": (b"\0" * 50, "cannot read the scores"),
    "latin-1": (table_of(FOUR).replace("one", "é").encode("latin-1"), "cannot read the scores"),
    "nothing scored": (table_of(dict.fromkeys(FOUR, "")), "nothing is scored in"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_told_in_one_line(damage, tmp_path, capsys):
    text, message = DAMAGE[damage]
    assert main(["study", "--score", str(write(tmp_path / "a.csv", text))]) == 2
    said = capsys.readouterr().err
    assert re.match(f"error: .*{message}", said) and said.count("\n") == 1, said


def test_a_foreign_file_is_told(tmp_path):
    ours = write(tmp_path / "ours.csv", table_of(FOUR))
    others = {
        "study s2, .*ours.csv of study s1": table_of(FOUR, study="s2", rater="r2"),
        "has other pictures or methods than .*ours.csv": table_of({("a", "one"): 1}, rater="r2"),
        "are both of rater r1": table_of(FOUR),
    }
    for message, text in others.items():
        with pytest.raises(InputError, match=message):
            read_ratings([ours, write(tmp_path / "other.csv", text)])
    with pytest.raises(InputError, match=r"cannot read .*gone\.csv: No such file"):
        read_ratings([tmp_path / "gone.csv"])


def browse(page: Path, profile: Path, keys: Sequence[str]) -> str:
    """The page's document after these keys, in a browser that remembers what an earlier one of its profile did."""
    pressed = "".join(f"dispatchEvent(new KeyboardEvent('keydown', {{key: {key!r}}}));" for key in keys)
    driven = page.with_name("driven.html")
    driven.write_text(page.read_text().replace("</body>", f"<script>{pressed}</script></body>"))
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-quic "
        "--disable-component-update --disable-sync --dump-dom"
    )
    done = subprocess.run(
        [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", driven.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def element(identifier: str, document: str) -> str:
    (found,) = re.findall(rf'<[^>]*id="{identifier}"[^>]*>(.*?)</', document, re.DOTALL)
    return html.unescape(found)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian's package chromium)")
@pytest.mark.thorough
def test_a_browser_scores_a_whole_study_and_a_reload_keeps_its_place(root):
    hostile = '</script><i>",é'
    assert (
        main(
            [
                "study",
                f"{hostile}={root / 'ours'}",
                str(root / "theirs"),
                f"--hr={root / 'hr'}",
                f"--out={root / 'p.html'}",
            ]
        )
        == 0
    )
    page, profile = root / "p.html", root / "profile"
    first = browse(page, profile, ["2", "x", "9", "0"])
    assert element("count", first) == "3 of 4" and element("csv", first) == ""
    widths = dict(re.findall(r'<img id="(\w+)"[^>]*style="width: ([\d.]+)px', first))  # set once a picture is there
    assert set(widths) == {"reference", "result"} and widths["reference"] == widths["result"]
    again = browse(page, profile, [])
    assert element("count", again) == "3 of 4"
    last = browse(page, profile, ["ArrowLeft", "4", "1", "ArrowRight", "3"])
    assert element("count", last) == "4 of 4"
    ratings = read_ratings([write(root / "a.csv", element("csv", last))])
    assert ratings.methods == sorted((hostile, "theirs"))
    rows = list(csv.DictReader(io.StringIO(element("csv", last))))
    assert [row["score"] for row in rows] == ["2", "4", "1", "3"]
    assert [row["question"] for row in rows] == ["1", "2", "3", "4"]
    assert sorted((row["picture"], row["method"]) for row in rows) == sorted(
        (name, method) for name in ("one", "two") for method in ratings.methods
    )
    orders = {tuple((row["picture"], row["method"]) for row in rows)}
    for person in range(3):
        text = element("csv", browse(page, root / f"profile{person}", ["0", "0", "0", "0"]))
        orders.add(tuple((row["picture"], row["method"]) for row in csv.DictReader(io.StringIO(text))))
    assert len(orders) > 1
