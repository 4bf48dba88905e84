"""USR-DA's losses by hand, and its step against one that computes everything anew for every term."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.losses import FeatureLoss
from models.usrda import losses
from models.usrda.steps import USRDAStep, Weights

ALL = Weights(align=0.3, rec=1.0, res=0.9, sty=0.4, idt=0.5, cyc=0.8)


def test_losses_by_hand():
    """Scores 0 and 2 in the target domain, 1 in the source domain."""
    t, s = torch.tensor([0.0, 2.0]), torch.tensor([1.0])
    assert losses.alignment_loss(t, s).item() == pytest.approx((0.25 + 2.25) / 2 + 0.25)
    assert losses.alignment_discriminator_loss(t, s).item() == pytest.approx((0 + 4) / 2 + 0)
    assert losses.style_loss(t).item() == pytest.approx((1 + 1) / 2)
    assert losses.style_discriminator_loss(t, s).item() == pytest.approx(1 + 1)
    assert losses.style_discriminator_loss(s, t, s).item() == pytest.approx(0 + 2 + 1)
    assert losses.l1_loss(t, torch.tensor([1.0, 5.0])).item() == pytest.approx(2)


class Generator(nn.Module):
    """The three parts in miniature."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1))
        self.decoder_t = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 3, 3, padding=1))
        self.decoder_sr = nn.Sequential(
            nn.Conv2d(6, 12, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(3, 3, 3, padding=1)
        )


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2).requires_grad_(False)
        self.seen: list[int] = []

    def forward(self, x):
        self.seen.append(len(x))
        return {"only": self.conv(x)}


def make(weights: Weights = ALL, **changes) -> USRDAStep:
    torch.manual_seed(0)
    generator, critics = (
        Generator(),
        {"f": nn.Conv2d(6, 1, 3), "t": nn.Conv2d(3, 1, 3), "y": nn.Conv2d(3, 1, 3, stride=2)},
    )
    discriminators, features = nn.ModuleDict(critics), Features()
    for network in (generator, discriminators, features):
        network.double()
    return replace(
        USRDAStep(
            generator,
            discriminators,
            torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.9, 0.99)),
            torch.optim.Adam(discriminators.parameters(), 1e-3, betas=(0.9, 0.99)),
            weights,
            perceptual=0.2,
            adversarial=0.3,
            features=FeatureLoss(features),
        ),
        **changes,
    )


def make_batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    sizes = {"source_lr": 8, "hr": 16, "real_lr": 8}
    return {name: torch.rand(2, 3, side, side, dtype=torch.float64) for name, side in sizes.items()}


def naive(step: USRDAStep, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Eqs. 1 to 9 one after the other, every network called anew for every term."""
    e, gt, gsr = step.generator.encoder, step.generator.decoder_t, step.generator.decoder_sr
    df, dt, dy = (step.discriminators[name] for name in "fty")
    phi, w = step.features.features, step.weights
    xs, xt, ys = batch["source_lr"], batch["real_lr"], batch["hr"]

    def mse(score: torch.Tensor, target: float) -> torch.Tensor:
        return F.mse_loss(score, torch.full_like(score, target))

    def reconstruction(image: torch.Tensor) -> torch.Tensor:
        perceptual = (phi(image)["only"] - phi(ys)["only"]).abs().mean()
        return (image - ys).abs().mean() + step.perceptual * perceptual + step.adversarial * mse(dy(image), 1.0)

    align = mse(df(e(xt)), 0.5) + mse(df(e(xs)), 0.5)
    source = e(xs).detach() if step.detach_source else e(xs)
    idt = (source - e(gt(e(xs)))).abs().mean()
    loss_g = (
        w.align * align
        + w.rec * reconstruction(gsr(e(xs)))
        + w.res * (xt - gt(e(xt))).abs().mean()
        + w.sty * mse(dt(gt(e(xs))), 1.0)
        + w.idt * idt
        + w.cyc * reconstruction(gsr(e(gt(e(xs)))))
    )
    loss_d = mse(dy(ys), 1.0) + mse(dy(gsr(e(xs)).detach()), 0.0)
    if w.align:
        loss_d = loss_d + mse(df(e(xt).detach()), 0.0) + mse(df(e(xs).detach()), 1.0)
    if w.sty:
        loss_d = loss_d + mse(dy(gsr(e(gt(e(xs)))).detach()), 0.0)
        loss_d = loss_d + mse(dt(gt(e(xs)).detach()), 0.0) + mse(dt(xt), 1.0)
    return loss_g, loss_d


TABLE_3 = {
    "base": Weights(0, 1, 0, 0, 0, 0),
    "align": Weights(0.3, 1, 0, 0, 0, 0),
    "no-align": replace(ALL, align=0),
    "full": ALL,
}


@pytest.mark.parametrize("detach_source", [False, True])
@pytest.mark.parametrize("row", TABLE_3)
def test_a_step_is_the_written_out_one(row, detach_source):
    step, batch = make(TABLE_3[row], detach_source=detach_source), make_batch()
    before = copy.deepcopy((step.generator.state_dict(), step.discriminators.state_dict()))
    terms = step(batch)
    found = [[p.grad for p in network.parameters()] for network in (step.generator, step.discriminators)]
    step.generator.load_state_dict(before[0])
    step.discriminators.load_state_dict(before[1])
    for network, loss, gradients in zip((step.generator, step.discriminators), naive(step, batch), found, strict=True):
        wanted = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        for got, want in zip(gradients, wanted, strict=True):
            assert (got is None) == (want is None or not want.any())
            if got is not None:
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert (
        set(terms)
        == {
            "base": {"rec", "d_y"},
            "align": {"rec", "d_y", "align", "d_f"},
            "no-align": {"rec", "cyc", "res", "sty", "idt", "d_y", "d_t"},
            "full": {"rec", "cyc", "res", "sty", "idt", "align", "d_y", "d_t", "d_f"},
        }[row]
    )


def test_every_tensor_is_computed_once():
    """Three sample-batches of E, two of each decoder, the features of the target once."""
    step, seen = make(), {"encoder": 0, "decoder_t": 0, "decoder_sr": 0}

    def count(name: str):
        return lambda module, given: seen.__setitem__(name, seen[name] + len(given[0]) // 2)

    for name in seen:
        getattr(step.generator, name).register_forward_pre_hook(count(name))
    step(make_batch())
    assert seen == {"encoder": 3, "decoder_t": 2, "decoder_sr": 2}
    assert sorted(step.features.features.seen) == [2, 4]
