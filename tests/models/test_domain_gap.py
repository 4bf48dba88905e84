"""`python -m models domain-gap` at toy size, and the formulas of its numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import stats

from models.__main__ import main
from models.commands.domain_gap import judge
from models.commands.domain_gap.judge import Scored, _hold_out, gap
from models.commands.domain_gap.maps import correlate
from models.data import ArraySource, InputError, write_picture
from models.evaluate.statistics import partial_spearman, spearman

SIDE = 48
ALIKE = "x_$s$_{[b]"  # neither a formula nor markup
TOY = ["--updates=30", "--num-feat=8", "--crop=16", "--batch=4", "--held-out=0.4"]


def scene(number: int) -> np.ndarray:
    blobs = np.random.default_rng(number).integers(60, 190, (8, 8, 3)).astype(np.float32)
    return cv2.resize(blobs, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Real LR with noise, a group with the same noise of another draw, and one without, of the same five scenes."""
    rng = np.random.default_rng(7)
    for folder, noise in (("real", 12), ("alike", 12), ("far", 0)):
        for number in range(5):
            pixels = scene(number) + noise * rng.standard_normal((SIDE, SIDE, 3))
            write_picture(tmp_path / folder / f"{number}.png", np.clip(pixels, 0, 255).astype(np.uint8))
    return tmp_path


def test_what_is_alike_and_what_is_far(root, capsys):
    folders = [f"{ALIKE}={root / 'alike'}", str(root / "far"), f"--real={root / 'real'}"]
    found = []
    for seeds in (["0", "3"], ["3"]):
        assert main(["domain-gap", *folders, f"--out={root / 'o'}", "--seeds", *seeds, *TOY]) == 0
        found.append(json.loads((root / "o" / "domain_gap.json").read_text()))
    for name in (ALIKE, "far"):
        assert found[1]["groups"][name]["each"] == found[0]["groups"][name]["each"][1:]  # the same seed, the same bits
    found = found[0]
    alike, far = found["groups"][ALIKE], found["groups"]["far"]
    assert far["area"] > 0.95 and 0.2 < alike["area"] < 0.8
    for group in (alike, far):
        assert group["area"] == pytest.approx(np.mean(group["each"])) and len(group["each"]) == 2
        assert group["interval"][0] <= group["area"] <= group["interval"][1]
        assert (group["pictures"], group["crops"]) == (5, 2 * 2 * 9)  # two seeds, two held out, 3 x 3 crops
    assert found["settings"]["seeds"] == [0, 3] and found["settings"]["updates"] == 30
    drawn = cv2.imread(str(root / "o" / "domain_gap.png"))
    assert drawn.shape[0] > 300 and drawn.std() > 10
    said = capsys.readouterr().out
    assert f"{far['area']:.3f}" in said and "note:" not in said


def test_the_area_counts_pairs():
    def scored(*values: float) -> Scored:
        return Scored(np.array(values), np.arange(len(values)) // 2, [str(n) for n in range((len(values) + 1) // 2)])

    one = gap([scored(0.9, 0.5, 0.5, 0.4)], [scored(0.5, 0.3)])
    assert one.area == pytest.approx((1 + 0.5 + 0.5 + 0 + 4) / 8) and one.each == [one.area]
    both = gap([scored(0.9, 0.5), scored(0.1, 0.2)], [scored(0.5, 0.3), scored(0.3, 0.3)])
    assert both.each == [pytest.approx(3.5 / 4), 0] and both.area == pytest.approx(3.5 / 8)
    assert both.interval == (0, pytest.approx(3.5 / 4))  # of two seeds, either may be all
    assert gap([scored(0.9, 0.5)], [scored(0.5, 0.3)]).interval is None


def test_the_interval_resamples_pictures():
    """Of 30 pictures with shifts of their own, the interval is as wide as over fresh pictures, not over crops."""
    rng = np.random.default_rng(0)

    def drawn() -> Scored:
        shifts = rng.standard_normal(30).repeat(20)
        return Scored(shifts + 0.3 * rng.standard_normal(600), np.arange(600) // 20, [str(n) for n in rng.random(30)])

    areas, widths = [], []
    for _ in range(60):
        found = gap([drawn()], [drawn()])
        areas.append(found.area)
        widths.append(found.interval[1] - found.interval[0])
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(areas), rel=0.25)


def test_held_out_scenes_are_held_out_everywhere():
    def source(*names: str) -> ArraySource:
        return ArraySource(names, [np.zeros((4, 4, 3), np.uint8)] * len(names))

    sources = [source(*"abcdef"), source(*"abcdef"), source(*"cdxyz")]
    draws = [_hold_out(sources, 0.34, seed) for seed in range(20)]
    for held_out in draws:
        for each, wanted in zip(sources, (2, 2, 2), strict=True):
            assert wanted <= len(held_out & {*each.names}) < len(each)
    assert len({frozenset(held_out) for held_out in draws}) > 5
    assert _hold_out(sources, 0.34, 3) == draws[3]


def of_arrays(arrays: dict[str, np.ndarray]) -> ArraySource:
    return ArraySource(list(arrays), list(arrays.values()))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_map_that_finds_the_error_is_told_from_one_that_does_not(stride):
    """Regions of 8 pixels whose error is known; a map that falls with it gives -1, one that rises 1."""
    rng = np.random.default_rng(0)
    errors = rng.permutation(30).reshape(5, 6)
    truth = rng.integers(0, 200, (43, 50, 3)).astype(np.uint8)  # rows and columns left over
    lr = truth.copy()
    lr[:40, :48] += errors.repeat(8, 0).repeat(8, 1)[..., None].astype(np.uint8)
    places = np.zeros((43 // stride, 50 // stride, 1), np.float32)
    places[: 40 // stride, : 48 // stride] = errors.repeat(8 // stride, 0).repeat(8 // stride, 1)[..., None] / 30
    pictures = of_arrays({"a": lr, "b": lr}), of_arrays({"b": truth, "a": truth})
    for found in correlate(*pictures, of_arrays({"a": 1 - places, "b": places}), 8):
        assert found.pictures["a"] < -0.98 and found.pictures["b"] > 0.98
        assert found.mean == pytest.approx(0, abs=0.02) and found.interval[0] < -0.98 and found.interval[1] > 0.98
    unrelated = of_arrays({name: rng.random(places.shape).astype(np.float32) for name in "ab"})
    assert abs(correlate(*pictures, unrelated, 8)[0].mean) < 0.4


def test_a_map_of_contrast_alone_finds_nothing_beyond():
    """Errors that grow with contrast, and a map that knows the contrast: related, but not with contrast held fixed."""
    rng = np.random.default_rng(1)
    contrast = rng.integers(1, 40, (12, 12))
    grown = contrast.repeat(8, 0).repeat(8, 1)[..., None]
    lr = (120 + grown * rng.choice((-1, 1), (96, 96, 1))).repeat(3, 2)
    error = np.clip(grown * 0.5 + 4 * rng.standard_normal((12, 12)).repeat(8, 0).repeat(8, 1)[..., None], 0, None)
    maps = 1 - grown / 40 + 0.1 * rng.standard_normal((12, 12)).repeat(8, 0).repeat(8, 1)[..., None]
    pictures = ({"a": lr.astype(np.uint8)}, {"a": (lr - error).astype(np.uint8)}, {"a": maps.astype(np.float32)})
    plain, partial = correlate(*map(of_arrays, pictures), 8)
    assert plain.mean < -0.7 and abs(partial.mean) < 0.2


def test_maps_that_do_not_fit_are_named():
    lr, level = np.zeros((16, 16, 3), np.uint8), np.zeros((8, 8, 1), np.float32)
    generated, truth, maps = of_arrays({"a": lr}), of_arrays({"a": lr}), of_arrays({"a": level})
    for sources, message in (
        ((generated, of_arrays({"b": lr}), maps), "no true LR picture is named a, to go with a"),
        ((generated, truth, of_arrays({"b": level})), "no map is named a, to go with a"),
        ((generated, of_arrays({"a": lr[:8]}), maps), "a is 16 x 16, its true LR picture 16 x 8"),
        ((generated, truth, of_arrays({"a": level[:4]})), "a is 8 x 4, which is no map of 16 x 16, nor of half that"),
        ((generated, truth, of_arrays({"a": level * np.nan})), "a holds values that are not finite"),
        ((generated, truth, maps), "--region 4: no picture beside a has three regions that differ"),
    ):
        with pytest.raises(InputError, match=message):
            correlate(*sources, 4)


def test_rank_correlations():
    rng = np.random.default_rng(0)
    for levels in (3, 10, 10**6):
        a, b = rng.integers(0, levels, (2, 7, 9))
        assert spearman(a, a + b) == pytest.approx(stats.spearmanr(a.ravel(), (a + b).ravel()).statistic, abs=1e-12)
    a, b, c = rng.standard_normal((3, 200)) + rng.standard_normal(200)
    ranks = [np.column_stack([np.ones(200), stats.rankdata(c)]), stats.rankdata(a), stats.rankdata(b)]
    left = [each - ranks[0] @ np.linalg.lstsq(ranks[0], each, rcond=None)[0] for each in ranks[1:]]
    assert partial_spearman(a, b, c) == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-12)
    assert partial_spearman(a, b, a) == 0 and partial_spearman(a, b, np.ones(200)) == spearman(a, b)
    assert np.isnan(spearman(np.zeros(5), np.arange(5))) and np.isnan(spearman(np.arange(2), np.arange(2)))


def test_the_command_compares_maps_too(root, capsys):
    for number in range(5):
        np.save(root / "far" / f"{number}.npy", np.random.default_rng(number).random((24, 24), dtype=np.float32))
    far, real = root / "far", root / "real"
    options = [
        f"--real={real}",
        f"--out={root / 'o'}",
        f"--maps=far={far}",
        f"--truth={real}",
        "--region=16",
        "--seeds=0",
        *TOY,
    ]
    assert main(["domain-gap", str(far), *options]) == 0
    found = json.loads((root / "o" / "domain_gap.json").read_text())["maps"]["far"]
    said = capsys.readouterr().out
    for each in found.values():
        assert list(each["pictures"]) == list("01234")
        assert each["mean"] == pytest.approx(np.mean(list(each["pictures"].values())))
        assert f"{each['mean']:+.3f}" in said


def test_what_cannot_be_used_is_told_in_one_line(root, capsys):
    far, real, out = str(root / "far"), f"--real={root / 'real'}", f"--out={root / 'o'}"
    write_picture(root / "one" / "0.png", scene(0).astype(np.uint8))
    for number in range(5):
        write_picture(root / "small" / f"{number}.png", scene(number).astype(np.uint8)[:12])
    (root / "broken").mkdir()
    for number in range(5):
        (root / "broken" / f"{number}.png").write_bytes((root / "far" / f"{number}.png").read_bytes()[:90])
    for arguments, message in (
        ([real, out], "no group is given"),
        ([far, far, real, out], "two folders are named far"),
        ([far, f"real={far}", real, out], "no group can be named real"),
        ([str(root / "gone"), real, out], "no such folder|.*gone"),
        ([far, f"--real={root / 'one'}", out], r"no picture beside .*one/0\.png is left to train on"),
        ([str(root / "small"), real, out], r"the image .*small/\d\.png is too small"),
        ([str(root / "broken"), real, out], r"cannot read the image .*broken/\d\.png"),
        ([far, real, out, "--seeds", "1", "1"], "--seeds must be different numbers"),
        ([far, real, out, "--held-out=1"], "--held-out must be above 0 and up to below 1, got 1"),
        ([far, real, out, "--held-out=0.99"], "no picture beside .* is left to train on"),
        ([far, real, out, f"--maps=far={far}"], "--maps and --truth go together"),
        ([far, real, out, f"--truth={far}"], "--maps and --truth go together"),
        ([far, real, out, f"--maps=near={far}", f"--truth={far}"], "--maps: no group is named near, there are far"),
        ([far, real, out, f"--maps=far={far}", f"--truth={far}"], r"no map \(\.npy\) in the folder"),
        ([far, real, f"--out={root / 'far' / '0.png'}"], r"far/0\.png: File exists"),
    ):
        assert main(["domain-gap", *TOY, *arguments]) == 2, arguments
        said = capsys.readouterr().err
        assert re.match(f"error: .*{message}", said) and said.count("\n") == 1, said


def test_a_training_that_diverges_is_told(root, monkeypatch, capsys):
    monkeypatch.setattr(judge, "Adam", lambda parameters, rate, betas: torch.optim.SGD(parameters, 1e30))
    options = [f"--real={root / 'real'}", f"--out={root / 'o'}", "--seeds=0", *TOY]
    assert main(["domain-gap", str(root / "far"), *options]) == 2
    assert "error: --learning-rate 0.002 is too large" in capsys.readouterr().err
