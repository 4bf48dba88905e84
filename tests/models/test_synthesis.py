"""Source LR pictures: exact, seeded, and what their numbers say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.data.resize import bicubic
from models.usrda.synthesis import SourceLR, SynthesisConfig, _blurred

PLAIN = SynthesisConfig("matlab", (0, 0), (0, 0), eight_bit=False)


def test_without_blur_and_noise_it_is_bicubic():
    hr = torch.rand(3, 32, 48)
    torch.testing.assert_close(SourceLR(PLAIN, 4, 0)(hr, 7), bicubic(hr[None], 0.25)[0])


def test_eight_bits_are_levels_from_0_to_1():
    hr = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0)).round()
    plain, eight = (SourceLR(replace(PLAIN, resize="torch", eight_bit=bits), 4, 0)(hr, 0) for bits in (False, True))
    assert plain.min() < 0 and plain.max() > 1  # as in the unofficial code
    torch.testing.assert_close(eight * 255, (plain.clamp(0, 1) * 255).round())


def test_the_unofficial_resize_is_a_plain_interpolation():
    """Without antialiasing a quarter-size picture reads four of every sixteen columns."""
    hr = torch.zeros(3, 16, 16)
    hr[..., 0::4] = 1  # columns that Keys's kernel at a quarter does not touch
    seen = SourceLR(replace(PLAIN, resize="torch"), 4, 0)(hr, 0)
    wanted = nn.Upsample(scale_factor=0.25, mode="bicubic")(hr[None])[0]
    torch.testing.assert_close(seen, wanted)
    assert not torch.allclose(seen, SourceLR(PLAIN, 4, 0)(hr, 0), atol=0.05)


def test_a_picture_depends_on_seed_and_number_alone():
    hr = torch.rand(3, 64, 64)
    make = SourceLR(SynthesisConfig(), 4, 3)
    whole = make(hr, 100)
    make(hr, 7)
    assert torch.equal(whole, make(hr, 100))
    assert not torch.equal(whole, make(hr, 101))
    assert not torch.equal(whole, SourceLR(SynthesisConfig(), 4, 4)(hr, 100))
    state = torch.get_rng_state()
    make(hr, 0)
    assert torch.equal(state, torch.get_rng_state())


def test_noise_has_the_stated_range():
    hr = torch.full((3, 128, 128), 0.5)
    make = SourceLR(replace(PLAIN, noise=(5.0, 15.0)), 4, 0)
    noisy = torch.stack([make(hr, number) for number in range(64)])
    levels = 255 * (noisy - 0.5).std((1, 2, 3))
    assert 4.5 < float(levels.min()) < 6.5 and 13.5 < float(levels.max()) < 15.5
    assert float((noisy - 0.5).mean()) == pytest.approx(0, abs=1e-3)


def test_noise_comes_behind_the_blur():
    """Which would take most of it away."""
    make = SourceLR(replace(PLAIN, blur=(2.0, 2.0), noise=(10.0, 10.0)), 4, 0)
    assert 255 * float(make(torch.full((3, 256, 256), 0.5), 0).std()) == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_blur_is_the_gaussian_it_says(sigma):
    """A point spreads to a picture of deviation sigma; the sum is kept, at the border too."""
    point = torch.zeros(1, 1, 31, 31)
    point[..., 15, 15] = 1
    spread = _blurred(point, sigma)[0, 0]
    places = torch.arange(31) - 15.0
    assert float(spread.sum()) == pytest.approx(1, rel=1e-5)
    assert float((spread.sum(0) * places**2).sum()) ** 0.5 == pytest.approx(sigma, rel=0.05)
    flat = torch.full((1, 3, 5, 6), 0.3)
    torch.testing.assert_close(_blurred(flat, sigma), flat)
    assert torch.equal(_blurred(flat, 0.0), flat)
    assert F.l1_loss(spread, spread.T) < 1e-7
