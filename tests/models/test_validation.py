"""Who judges held-out pictures: which measures there are, what they are called, and that judging changes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tyro
from matplotlib.figure import Figure

from models.data import InputError
from models.evaluate import metrics, pictures
from models.evaluate.examples import Example
from models.evaluate.validation import Judge, caption, load_judge, load_perceptual, mean_score, validate
from models.networks import LPIPS
from models.networks.weight_options import PerceptualFiles
from models.train.loop import History
from models.train.run import StepTable, read_table

CPU = torch.device("cpu")


def files(options: list[str]) -> PerceptualFiles:
    return tyro.cli(PerceptualFiles, args=[f"--{option}" for option in options])


def picture(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_judge_measures_what_it_can(hed_lpips, tmp_path):
    assert Judge(4).measures == ("psnr", "ssim") and list(Judge(4)(picture(0), picture(1))) == ["psnr", "ssim"]
    judge = Judge(0, load_perceptual(files(hed_lpips), CPU))
    assert judge.measures == ("psnr", "ssim", "hed-lpips")
    assert judge.titles == "PSNR / SSIM / HED-LPIPS"
    assert judge.convention == "RGB, crop 0, uint8; HED-LPIPS v0.1 VGG-16, crop 0"
    assert Judge(0, LPIPS()).measures[2:] == ("lpips",)
    sizes = ((40, 48), (15, 60), (16, 16))  # the second is too small for it
    examples = [
        Example(f"{n}", picture(n, *side), {"bicubic": picture(10 + n, *side)}, picture(20 + n, *side))
        for n, side in enumerate(sizes)
    ]
    found = validate(lambda given: given, examples, judge, tmp_path / "sheet.png")
    distances = [float(metrics.lpips(judge.lpips, each.given, each.reference)) for each in (examples[0], examples[2])]
    assert found["hed-lpips"] == pytest.approx(np.mean(distances)) and min(distances) > 0
    ratios = [metrics.psnr(each.given, each.reference, crop_border=0, y_channel=False) for each in examples]
    assert found["psnr"] == pytest.approx(np.mean(ratios))
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    by_hand = judge(examples[2].shown["bicubic"], examples[2].reference)
    assert judge.of_baseline(examples[2]) == by_hand != judge.of_baseline(examples[0])
    assert caption(judge(examples[1].given, examples[1].reference)).endswith(" / -")
    assert "hed-lpips" not in mean_score([judge(examples[1].given, examples[1].reference)])


def test_loading_a_judge_leaves_the_random_numbers_of_training_as_they_are(hed_lpips):
    before = torch.get_rng_state()
    assert load_perceptual(files(hed_lpips), CPU).name == "HED-LPIPS"
    assert torch.equal(torch.get_rng_state(), before)
    assert load_perceptual(PerceptualFiles(), CPU) is None
    with pytest.raises(InputError, match=r"^--weights.lpips-lin is needed: LPIPS's weights/v0.1/vgg.pth, or auto"):
        load_perceptual(files(hed_lpips[:1]), CPU)


def test_heads_of_another_trunk_are_refused(hed_lpips, tmp_path):
    state = LPIPS().state_dict()
    torch.save({key: value for key, value in state.items() if key.startswith("lin")}, tmp_path / "alex.pth")
    with pytest.raises(InputError, match=r"^[^\n]*Wanted are torchvision's vgg16-397923af.pth and [^\n]*vgg.pth$"):
        load_perceptual(files([hed_lpips[0], f"lpips-lin={tmp_path / 'alex.pth'}"]), CPU)


@pytest.mark.parametrize(
    ("network", "layers", "shared"),
    [
        ("vgg16", ("relu2_1", "conv3_2"), ""),
        ("vgg16", ("relu2_1", "relu2_2", "conv5_3"), "relu2_2, conv5_3"),
        ("vgg19", ("relu2_2",), ""),
        ("lpips", (), "the distance itself"),
        ("none", ("relu2_2",), ""),
    ],
)
def test_a_teacher_that_judges_is_named(network, layers, shared, hed_lpips):
    said: list[str] = []
    run = SimpleNamespace(say=lambda line, style: said.append(line))
    job = SimpleNamespace(weights=files(hed_lpips), device=CPU, run=run)
    assert load_judge(job, 4, network, layers).crop_border == 4
    wanted = [f"  the perceptual loss trains on {shared}, by which HED-LPIPS judges"] if shared else []
    assert said == wanted


def test_what_only_an_earlier_run_measured_stays_in_its_table(tmp_path):
    path = tmp_path / "validation.csv"
    StepTable(path, ("psnr", "lpips"), -1).add(0, {"psnr": 20.0, "lpips": 0.5})
    StepTable(path, ("psnr", "hed-lpips"), 0).add(5, {"psnr": 21.0, "hed-lpips": 0.25})
    assert read_table(path) == [{"step": 0, "psnr": 20.0, "lpips": 0.5}, {"step": 5, "psnr": 21.0, "hed-lpips": 0.25}]
    measured = [(int(row.pop("step")), row) for row in read_table(path)]
    history = History({"l1": ([1, 5], [1.0, 0.5])}, measured)
    pictures.save_curves(tmp_path / "curves.png", {"srn": history}, {"psnr": 19.0, "hed-lpips": 0.3})
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_ticks_of_a_curve_are_numbers(tmp_path, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(pictures, "write_whole", lambda path, save: drawn.append(save.__self__))
    for values in ([1.0, 1e-3], [0.5, 0.4]):  # decades, and less than one
        pictures.save_curves(tmp_path / "curves.png", {"srn": History({"l1": ([1, 5], values)})}, {})
        drawn[-1].canvas.draw()
        (axis,) = drawn[-1].axes
        labels = [tick.get_text() for minor in (False, True) for tick in axis.get_yticklabels(minor=minor)]
        assert any(labels) and all(float(label.replace("\N{MINUS SIGN}", "-")) for label in labels if label)
