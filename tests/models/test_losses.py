"""Every loss against values derived by hand from the formulas, and against their written-out form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.dasr import losses
from models.train.losses import DistanceLoss, FeatureLoss, GANLoss, ScaleConfig, settle_scale, squared_distance

LN2, LN3 = math.log(2), math.log(3)


def logits(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


# sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4.
@pytest.mark.parametrize(
    ("form", "generator", "discriminator"),
    [
        # G: -(ln 1/2 + ln 3/4) / 2;  D: -ln 1/4 for one real, -(ln 1/2 + ln 1/4) / 2 for the fakes.
        ("nonsaturating", (LN2 + math.log(4 / 3)) / 2, math.log(4) + (LN2 + math.log(4)) / 2),
        # G: (ln(1 - 1/2) + ln(1 - 3/4)) / 2.
        ("saturating", -(LN2 + math.log(4)) / 2, math.log(4) + (LN2 + math.log(4)) / 2),
        ("least_squares", (1 + (LN3 - 1) ** 2) / 2, (-LN3 - 1) ** 2 + LN3**2 / 2),
    ],
)
def test_adversarial_losses_by_hand(form, generator, discriminator):
    fake, real = logits(0, LN3), logits(-LN3)
    assert GANLoss(form).generator(fake).item() == pytest.approx(generator, rel=1e-6)
    assert GANLoss(form).discriminator(real, fake).item() == pytest.approx(discriminator, rel=1e-6)
    assert GANLoss(form, halve=True).discriminator(real, fake).item() == pytest.approx(discriminator / 2, rel=1e-6)


def test_relativistic_losses_by_hand():
    """Real mean 0 and fake mean 0: every sample is judged by its own logit."""
    fake, real = logits(LN3, -LN3), logits(0, 0)
    of_fake = (math.log(4 / 3) + math.log(4)) / 2
    assert GANLoss("relativistic").generator(fake, real).item() == pytest.approx(of_fake + LN2, rel=1e-6)
    assert GANLoss("relativistic").discriminator(real, fake).item() == pytest.approx(LN2 + of_fake, rel=1e-6)
    with pytest.raises(ValueError, match="real samples"):
        GANLoss("relativistic").generator(fake)


def test_saturating_and_nonsaturating_pull_the_same_way():
    fake = logits(-2, 0.5).requires_grad_()
    pulls = [torch.autograd.grad(GANLoss(form).generator(fake), fake)[0] for form in ("saturating", "nonsaturating")]
    assert all(bool((pull < 0).all()) for pull in pulls)
    # d/dz of log(1 - p) is -p, of -log p it is p - 1.
    p = fake.detach().sigmoid()
    torch.testing.assert_close(pulls[0], -p / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(pulls[1], (p - 1) / 2, rtol=1e-6, atol=0)


def test_squared_distance_by_hand():
    assert squared_distance(logits(0, 2), 0.5).item() == pytest.approx((0.25 + 2.25) / 2)


class Doubled(nn.Module):
    """Features that are known: twice the picture, at half its size."""

    def forward(self, x):
        return {"half": 2 * x[..., ::2, ::2]}


def test_the_content_losses_by_hand():
    a = torch.zeros(1, 3, 8, 8)
    b = torch.full((1, 3, 8, 8), 0.5)
    b[..., 0, 0] = -1.5
    assert losses.content_loss(a, b).item() == pytest.approx((63 * 0.5 + 1.5) / 64)
    # A low-pass that takes the mean of 2 x 2: the corner's cell is (3 * 0.5 - 1.5) / 4 = 0.
    low = nn.AvgPool2d(2)
    assert losses.content_loss(a, b, low).item() == pytest.approx(15 * 0.5 / 16)
    assert losses.low_band_loss(a, b, low).item() == pytest.approx(15 * 0.5 / 16)
    # Eq. 5 with a map of one value per half: bilinear x2 of (0, 1) gives 0, 1/4, 3/4, 1 along a row of four.
    sr, hr = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    weight = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    assert losses.weighted_content_loss(sr, hr, weight).item() == pytest.approx(0.5)
    hr[..., 3] = 5
    assert losses.weighted_content_loss(sr, hr, weight).item() == pytest.approx((0 + 0.25 + 0.75 + 5) / 4)
    assert losses.weighted_content_loss(sr, hr, None).item() == pytest.approx(8 / 4)


@pytest.mark.parametrize(("resize", "expected"), [("bilinear", 2 * 0.5), ("area", 2 * 0.5)])
def test_the_weighted_perceptual_loss_by_hand(resize, expected):
    sr, hr = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    features = FeatureLoss(Doubled(), resize)
    assert losses.perceptual_loss(sr, hr, features).item() == pytest.approx(2)
    weight = torch.tensor([0.0, 0.5, 0.5, 1.0]).expand(1, 1, 4, 4)
    assert losses.weighted_perceptual_loss(sr, hr, weight, features).item() == pytest.approx(expected)


def test_area_and_bilinear_weights_differ_where_the_map_is_finer_than_the_features():
    """One lit place of 4 x 4 in a map that comes down to 1 x 1: bilinear looks at the middle 2 x 2 alone."""
    sr, hr = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    weight = torch.zeros(1, 1, 4, 4)
    weight[..., 0, 0] = 1
    assert FeatureLoss(Doubled(), "area")(sr, hr, weight).item() == pytest.approx(2 / 16)
    assert FeatureLoss(Doubled(), "bilinear")(sr, hr, weight).item() == 0


class Layers(nn.Module):
    """Two layers of known scale: minus four times the picture, and a tenth of it."""

    def forward(self, x):
        return {"loud": -4 * x, "quiet": 0.1 * x}


def test_layers_are_brought_to_one_scale():
    sr, hr = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    assert FeatureLoss(Layers())(sr, hr).item() == pytest.approx(4.1)
    given = FeatureLoss(Layers(), means={"loud": 2.0, "quiet": 0.4})
    weight = torch.full((1, 1, 4, 4), 0.5)
    assert given(sr, hr, weight).item() == pytest.approx(0.5 * (4 / 2 + 0.1 / 0.4))
    measured = FeatureLoss(Layers())
    images = torch.stack((torch.full((3, 4, 4), 0.25), torch.full((3, 4, 4), 0.75)))
    assert measured.measure(images) == pytest.approx({"loud": 4 * 0.5, "quiet": 0.1 * 0.5})
    assert measured(sr, hr).item() == pytest.approx(1 / 0.5 + 1 / 0.5)


def test_a_scale_is_measured_only_where_none_is_given():
    said = []
    images = torch.full((1, 3, 4, 4), 0.5)
    for options, means in (
        (ScaleConfig(), {}),
        (ScaleConfig(scaled=True, means=(3.0, 5.0)), {"loud": 3.0, "quiet": 5.0}),
        (ScaleConfig(scaled=True), {"loud": 2.0, "quiet": 0.05}),
    ):
        loss = FeatureLoss(Layers(), means=options.means_of(("loud", "quiet")))
        settle_scale(loss, options, lambda: images, said.append)
        assert loss.means == pytest.approx(means)
    assert said == ["  the perceptual loss is divided by the mean activation of loud 2, quiet 0.05"]


def test_a_distance_is_averaged_and_takes_no_map():
    loss = DistanceLoss(lambda a, b: (a - b).abs().mean((1, 2, 3)))
    assert loss(torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)).item() == 1
    with pytest.raises(ValueError, match="place by place"):
        loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2))


def test_no_gradient_reaches_the_target():
    sr, hr = (torch.rand(1, 3, 4, 4, requires_grad=True) for _ in range(2))
    FeatureLoss(Doubled())(sr, hr).backward()
    assert sr.grad is not None and hr.grad is None
