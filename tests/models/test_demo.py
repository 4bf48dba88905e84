"""The demo end to end in a few updates, on bundled and on own pictures, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.dasr.config import DemoOptions, DSNOptions, SRNOptions
from models.dasr.demo import run_demo
from models.dasr.photographs import CLEAN_HR, HELD_OUT, REAL_LR, collect
from models.data import InputError, PatchSampler, read_photo

ROOT = Path(__file__).parents[2]
TINY = DemoOptions(
    name="tiny",
    timing_pairs=1,
    dsn=DSNOptions(steps=2, batch=1, patch=16, num_feat=4, num_block=1, num_feat_discriminator=4),
    srn=SRNOptions(steps=3, batch=1, patch=16, num_feat=4, num_block=1, num_grow_ch=4, num_feat_discriminator=4),
)


def write(path: Path, height: int, width: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.fixture
def own(tmp_path: Path) -> DemoOptions:
    """Options that name small folders of the user's own."""
    for index in range(2):
        write(tmp_path / "hr" / f"{index}.png", 90, 101, index)
        write(tmp_path / "lr" / f"{index}.jpg", 33, 40, 10 + index)
        write(tmp_path / "test_hr" / f"{index}.png", 64, 80, 20 + index)
        write(tmp_path / "test_lr" / f"{index}.png", 16, 20, 30 + index)
    return replace(
        TINY,
        root=tmp_path / "runs",
        hr_dir=tmp_path / "hr",
        lr_dir=tmp_path / "lr",
        test_hr_dir=tmp_path / "test_hr",
        test_lr_dir=tmp_path / "test_lr",
    )


def test_the_bundled_photographs_play_one_role_each():
    roles = [*CLEAN_HR, *REAL_LR, *HELD_OUT]
    assert len(set(roles)) == len(roles)
    domains = collect(TINY)
    for lr, hr in domains.held_out:
        assert tuple(4 * side for side in lr.pixels.shape[:2]) == hr.pixels.shape[:2]


def test_a_run_on_the_bundled_photographs_leaves_everything(tmp_path):
    code = run_demo(replace(TINY, root=tmp_path))
    folder = tmp_path / "tiny"
    record = json.loads((folder / "metrics.json").read_text())
    assert code == (0 if record["learned"] else 1)
    assert record["mean"]["bicubic"]["psnr"] == pytest.approx(record["mean"]["ours, step 0"]["psnr"], abs=0.01)
    assert len(record["milliseconds"]) == 6
    for picture in ("sheet", "distance_maps", "curves"):
        assert min(read_photo(folder / "visualization" / f"{picture}.png").pixels.shape[:2]) > 300
    for name in ("dsn", "dsn_discriminator", "srn", "srn_discriminator"):
        assert load_file(folder / "models" / f"{name}.safetensors")
    assert torch.load(folder / "training_states" / "srn.state")["step"] == TINY.srn.steps
    assert "num_grow_ch: 4" in (folder / "config.yml").read_text()
    assert "Held-out" in next(folder.glob("train_tiny_*.log")).read_text()
    assert len(list((folder / "generated" / "maps").glob("*.npy"))) == len(CLEAN_HR)


def test_own_folders_a_second_run_is_the_same_bit_for_bit_and_the_first_is_kept(own):
    for _ in range(2):
        run_demo(replace(own, timing_pairs=0))
    runs = sorted(own.root.iterdir())
    assert len(runs) == 2
    for name in ("dsn", "dsn_discriminator", "srn", "srn_discriminator"):
        first, second = ((run / "models" / f"{name}.safetensors").read_bytes() for run in runs)
        assert first == second, name


def test_a_damaged_picture_is_refused_by_name_on_the_command_line(own):
    broken = own.hr_dir / "broken.png"
    broken.write_bytes(b"not a picture")
    command = [sys.executable, "-m", "models", "demo", "--root", str(own.root), "--hr-dir", str(own.hr_dir)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines() == [
        f"error: cannot read the image {broken}: not an image, or damaged (13 bytes)"
    ]
    assert not own.root.exists()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_cut_short_is_refused(tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    write(path, 200, 200, 0)
    encoded = path.read_bytes()
    path.write_bytes(encoded[: len(encoded) // 2])
    with pytest.raises(InputError, match=f"half{suffix}: the file is cut short"):
        read_photo(path)


def test_every_other_refusal_names_what_is_wrong(own, tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "small" / "tiny_one.png", 20, 20, 0)
    write(tmp_path / "odd" / "0.png", 16, 20, 0)
    write(tmp_path / "odd" / "1.png", 15, 20, 0)
    for changes, message in (
        ({"hr_dir": tmp_path / "nowhere"}, "no such folder: .*nowhere"),
        ({"hr_dir": tmp_path / "empty"}, "no image .* in the folder .*empty"),
        ({"hr_dir": tmp_path / "small"}, "tiny_one is too small: 16 x 16"),
        ({"test_lr_dir": tmp_path / "small"}, "no picture named 0"),
        ({"test_lr_dir": tmp_path / "odd"}, "1 in --test-lr-dir must be 20 x 16 pixels"),
        ({"test_lr_dir": None}, "--lr-dir needs --test-hr-dir and --test-lr-dir"),
        ({"srn": SRNOptions(patch=9)}, "--srn.patch must be even"),
        ({"dsn": DSNOptions(steps=0)}, "--dsn.steps must be at least 1, got 0"),
        ({"root": own.hr_dir / "0.png"}, "cannot make the run's folder .*0.png/tiny: Not a directory"),
        ({"name": "a/b"}, "--name must be a plain folder name"),
    ):
        with pytest.raises(InputError, match=message):
            run_demo(replace(own, **changes))
    with pytest.raises(InputError, match=r"cannot read the image .*gone\.png: No such file"):
        read_photo(tmp_path / "gone.png")
    assert not own.root.exists()


def test_patches_of_a_pair_stay_aligned():
    small = torch.arange(6 * 9, dtype=torch.float32).reshape(1, 6, 9)
    large = small.repeat_interleave(4, -2).repeat_interleave(4, -1)
    sampler = PatchSampler([(small, large), (small + 100, large + 100)], (1, 4), 5, np.random.default_rng(0))
    a, b = sampler.draw(32)
    assert a.shape == (32, 1, 5, 5)
    assert torch.equal(a, b[..., ::4, ::4])
    assert len({tuple(patch.flatten().tolist()) for patch in a}) > 16
