"""Frequency filters: values by hand, the written-out definition, borders, dtypes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from models.networks import PatchDiscriminator
from models.networks.frequency import RGB, AveragePool, Gaussian, Haar, HaarSum, frequency_filter

# One cell per colour: top left, top right, bottom left, bottom right.
CELLS = torch.tensor([[1.0, 0.6, 0.4, 0.0], [0.2, 0.2, 0.2, 0.2], [0.0, 1.0, 0.0, 1.0]]).view(1, 3, 2, 2)


def test_haar_by_hand():
    bands = Haar()(CELLS)
    # Top minus bottom of each colour, left minus right, diagonal; a quarter, plus one half.
    expected = [0.5 + 1.2 / 4, 0.5, 0.5, 0.5 + 0.8 / 4, 0.5, 0.5 - 2 / 4, 0.5 + 0.0 / 4, 0.5, 0.5]
    torch.testing.assert_close(bands.flatten(), torch.tensor(expected))
    torch.testing.assert_close(HaarSum()(CELLS).flatten(), 0.5 + torch.tensor([2.0, 0.0, -2.0]) / 12)
    for haar in (Haar(), HaarSum()):
        torch.testing.assert_close(haar.low(CELLS).flatten(), torch.tensor([0.5, 0.2, 0.5]))


def test_average_by_hand():
    """A bright pixel in the corner of a dark 3x3 image."""
    image = torch.zeros(1, 1, 3, 3)
    image[..., 0, 0] = 1.0
    inside = torch.tensor([[1 / 4, 1 / 6, 0.0], [1 / 6, 1 / 9, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(AveragePool(3)(image), 0.5 + 0.5 * (image - inside))
    counted = torch.tensor([[1 / 9, 1 / 9, 0.0], [1 / 9, 1 / 9, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(AveragePool(3, padded=True)(image), 0.5 + 0.5 * (image - counted))
    torch.testing.assert_close(AveragePool(3).low(image), torch.full((1, 1, 1, 1), 1 / 9))


def test_gaussian_by_hand():
    """A single bright pixel shows the taps; deviation 5/6 and 9/6 as in DASR's code."""
    for kernel, taps in ((5, (0.4794, 0.2334, 0.0269)), (9, (0.2666, 0.2135, 0.1096, 0.0361, 0.0076))):
        image = torch.zeros(1, 3, 31, 31)
        image[..., 15, 15] = 1.0
        low = (image - (Gaussian(kernel)(image) - 0.5) / 0.5)[0, 1]
        column = low[15, 15:] / low[15].sum()
        torch.testing.assert_close(column[: len(taps)], torch.tensor(taps), rtol=0.0, atol=6e-5)
        assert float(low.sum()) == pytest.approx(1.0, abs=1e-6)
        assert not low[15, 15 + len(taps) :].abs().gt(1e-7).any()


def by_definition(x: torch.Tensor, kernel: int, padding: int) -> torch.Tensor:
    """Gaussian low-pass, tap by tap."""
    taps = [math.exp(-((k - kernel // 2) ** 2) / (2 * (kernel / 6) ** 2)) for k in range(kernel)]
    x = F.pad(x, (padding,) * 4)
    height, width = (n - kernel + 1 for n in x.shape[2:])
    out = torch.zeros_like(x[..., :height, :width])
    for i, a in enumerate(taps):
        for j, b in enumerate(taps):
            out += a * b / sum(taps) ** 2 * x[..., i : i + height, j : j + width]
    return out


@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
def test_blurs_by_their_definition(kernel):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 17, 12)
    low = by_definition(x, kernel, 0)
    assert low.shape == (2, 3, 18 - kernel, 13 - kernel)
    torch.testing.assert_close(Gaussian(kernel).low(x), low)
    torch.testing.assert_close(
        AveragePool(kernel).low(x), F.unfold(x, kernel).view(2, 3, kernel**2, *low.shape[2:]).mean(2)
    )
    continued = by_definition(x, kernel, kernel // 2)
    torch.testing.assert_close(Gaussian(kernel, padded=True).low(x), continued)
    average = F.unfold(x, kernel, padding=kernel // 2).view(2, 3, kernel**2, *x.shape[2:]).mean(2)
    torch.testing.assert_close(AveragePool(kernel, padded=True).low(x), average)
    padded = x - continued
    torch.testing.assert_close(Gaussian(kernel)(x), 0.5 + 0.5 * padded)
    # What the SR network of DASR's code does: 0.5 + 0.5 * (0.5 + 0.5 * high)
    torch.testing.assert_close(Gaussian(kernel, gain=0.25)(x), 0.5 + 0.5 * (0.5 + 0.5 * padded))


def test_a_flat_image_has_no_high_frequencies():
    flat = torch.full((1, 3, 16, 16), 0.7)
    for name in ("haar", "haar_sum", "average"):
        high = frequency_filter(name)(flat)
        torch.testing.assert_close(high, torch.full_like(high, 0.5))
    high = frequency_filter("gbfs")(flat)
    torch.testing.assert_close(high[..., 2:-2, 2:-2], torch.full((1, 3, 12, 12), 0.5))
    assert float(high[..., 0].min()) > 0.55  # zeros around the image, as published


@pytest.mark.parametrize(
    ("name", "kind", "channels"),
    [("haar", Haar, 9), ("haar_sum", HaarSum, 3), ("gbfs", Gaussian, 3), ("average", AveragePool, 3), ("rgb", RGB, 3)],
)
def test_filters_by_name(name, kind, channels):
    torch.manual_seed(0)
    filtered = frequency_filter(name, 7, 0.25, True)
    assert type(filtered) is kind
    for option, value in (("kernel", 7), ("gain", 0.25), ("padded", True)):
        assert getattr(filtered, option, value) == value
    assert filtered.channels == channels
    assert not filtered.state_dict()
    x = torch.rand(2, 3, 12, 16, dtype=torch.float64, requires_grad=True)
    assert filtered(x).shape == (2, channels, 12 // filtered.stride, 16 // filtered.stride)
    assert filtered.low(x).shape[:2] == (2, 3)
    assert torch.autograd.gradcheck(filtered, x, fast_mode=True)
    assert torch.autograd.gradcheck(filtered.low, x, fast_mode=True)
    with torch.autocast("cpu", torch.bfloat16):
        image = x.detach().float()
        for got, want in ((filtered(image), filtered(x)), (filtered.low(image), filtered.low(x))):
            assert got.dtype is torch.float32
            torch.testing.assert_close(got, want.float(), rtol=0.0, atol=1e-6)


def test_what_is_no_filter():
    with pytest.raises(ValueError, match="must be one of haar, haar_sum, gbfs, average, rgb, got 'wavelet'"):
        frequency_filter("wavelet")
    for name, kernel in (("gbfs", 4), ("average", 0)):
        with pytest.raises(ValueError, match=f"kernel must be odd and positive, got {kernel}"):
            frequency_filter(name, kernel)


@pytest.mark.parametrize("name", ["haar", "haar_sum", "gbfs", "average", "rgb"])
def test_a_contrast_centres_and_multiplies_the_view(name):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 12, 16)
    plain, contrasted = frequency_filter(name, 7), frequency_filter(name, 7, contrast=10.0)
    torch.testing.assert_close(contrasted(x), 10 * (plain(x) - 0.5))
    torch.testing.assert_close(contrasted.low(x), plain.low(x))
    for attribute in ("channels", "stride", "reach"):
        assert getattr(contrasted, attribute) == getattr(plain, attribute)
    assert not contrasted.state_dict()


def test_instance_norm_hides_a_contrast_and_no_norm_shows_it():
    """What models/README.md says of distance maps: the norm's division takes out the amplitude of a picture's bands."""
    torch.manual_seed(0)
    noise = torch.rand(1, 3, 32, 32)
    strong, faint = noise - 0.5, (noise - 0.5) / 8
    view = frequency_filter("haar", contrast=10.0)
    scores = {}
    for norm in ("instance", "none"):
        judge = PatchDiscriminator(9, 8, kind="nlayer_s2", norm=norm, bias=False).eval()
        for parameter in judge.parameters():
            if parameter.ndim == 1:
                torch.nn.init.zeros_(parameter)
        scores[norm] = [judge(view(x)).detach() for x in (strong, faint)]
    torch.testing.assert_close(*scores["instance"], rtol=0.01, atol=0.01)
    torch.testing.assert_close(scores["none"][0], 8 * scores["none"][1])
