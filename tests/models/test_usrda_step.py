"""USR-DA's losses by hand, and its step against one that computes everything anew for every term."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.data.resize import bicubic
from models.networks import USRDAGenerator
from models.train.losses import FeatureLoss
from models.train.players import Players
from models.usrda import losses
from models.usrda.steps import LossWeights, USRDAStep

ALL = LossWeights(align=0.3, rec=1.0, res=0.9, sty=0.4, idt=0.5, cyc=0.8)


def test_losses_by_hand():
    """Scores 0 and 2 in the target domain, 1 in the source domain."""
    t, s = torch.tensor([0.0, 2.0]), torch.tensor([1.0])
    assert losses.alignment_loss(t, s).item() == pytest.approx((0.25 + 2.25) / 2 + 0.25)
    assert losses.alignment_discriminator_loss(t, s).item() == pytest.approx((0 + 4) / 2 + 0)
    assert losses.style_loss(t).item() == pytest.approx((1 + 1) / 2)
    assert losses.style_discriminator_loss([t], [s]).item() == pytest.approx(1 + 1)
    assert losses.style_discriminator_loss([s], [t, s]).item() == pytest.approx(0 + 2 + 1)
    assert losses.l1_loss(t, torch.tensor([1.0, 5.0])).item() == pytest.approx(2)


class ByHand(nn.Module):
    """Networks of one number each: E doubles, G_t halves and adds 0.1, G_SR halves."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def encoder(self, x):
        return self.factor * x

    def to_target(self, features, x):
        return features / 2 + 0.1

    def super_resolve(self, features, x):
        return F.interpolate(features / 2, scale_factor=2)


class Score(nn.Module):
    """A discriminator that gives its factor times the mean."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return self.factor * x.mean((1, 2, 3))


def test_every_term_of_the_objective_by_hand():
    """From x_s = 0.5, x_t = 0.3, y_s = 0.7: f_s 1, f_t 0.6, x_st 0.6, x_tt 0.4, f~_s 1.2, y_ss 0.5, y_sts 0.6."""
    critics = nn.ModuleDict({"f": Score(0.5), "t": Score(2.0), "y": Score(1.0)})
    made = make()
    step = replace(made, players=replace(made.players, generator=ByHand(), discriminator=critics), features=None)
    values = {"source_lr": (0.5, 2), "real_lr": (0.3, 2), "hr": (0.7, 4)}
    batch = {name: torch.full((1, 3, side, side), value) for name, (value, side) in values.items()}
    loss_g, loss_d, terms = step.forward(batch)
    wanted = {
        "align": (0.3 - 0.5) ** 2 + (0.5 - 0.5) ** 2,  # Eq. 1: D_f(f_t) = 0.3, D_f(f_s) = 0.5
        "d_f": 0.3**2 + (0.5 - 1) ** 2,  # Eq. 2
        "rec": 0.2 + 0.3 * (0.5 - 1) ** 2,  # Eq. 3, beta = 0.3
        "res": 0.1,  # Eq. 4
        "sty": (1.2 - 1) ** 2,  # Eq. 5: D_t(x_st) = 1.2
        "d_t": 1.2**2 + (0.6 - 1) ** 2,  # Eq. 6: D_t(x_t) = 0.6
        "idt": 0.2,  # Eq. 7
        "cyc": 0.1 + 0.3 * (0.6 - 1) ** 2,  # Eq. 8
        "d_y": (0.7 - 1) ** 2 + 0.5**2 + 0.6**2,
        "scale_t": 0.6,
        "scale_s": 1.0,
        "score_t": 0.3,
        "score_s": 0.5,
    }
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(wanted, rel=1e-5)
    weighted = 0.3 * 0.04 + 1.0 * 0.275 + 0.9 * 0.1 + 0.4 * 0.04 + 0.5 * 0.2 + 0.8 * 0.148  # Eq. 9
    assert loss_g.item() == pytest.approx(weighted, rel=1e-5)
    assert loss_d.item() == pytest.approx(0.34 + 1.6 + 0.7, rel=1e-5)


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2).requires_grad_(False)
        self.seen: list[int] = []

    def forward(self, x):
        self.seen.append(len(x))
        return {"only": self.conv(x)}


def make(weights: LossWeights = ALL, **changes) -> USRDAStep:
    torch.manual_seed(0)
    generator, critics = (
        USRDAGenerator(6, 2, 1, 1, 4, scale=2, bicubic_skip=True),
        {"f": nn.Conv2d(6, 1, 3), "t": nn.Conv2d(3, 1, 3), "y": nn.Conv2d(3, 1, 3, stride=2)},
    )
    discriminators, features = nn.ModuleDict(critics), Features()
    for decoder in (generator.decoder_sr, generator.decoder_t):
        decoder.conv_last.reset_parameters()  # zero at the start, which hides what lies before it
    for network in (generator, discriminators, features):
        network.double()
    return replace(
        USRDAStep(
            Players(
                generator,
                discriminators,
                torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.9, 0.99)),
                torch.optim.Adam(discriminators.parameters(), 1e-3, betas=(0.9, 0.99)),
            ),
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
    g = step.players.generator
    df, dt, dy = (step.players.discriminator[name] for name in "fty")
    phi, w = step.features.features, step.weights
    xs, xt, ys = batch["source_lr"], batch["real_lr"], batch["hr"]

    def gt(x: torch.Tensor) -> torch.Tensor:
        return g.decoder_t(g.encoder(x)) + x

    def gsr(x: torch.Tensor) -> torch.Tensor:
        return g.decoder_sr(g.encoder(x)) + bicubic(x, 2)

    def mse(score: torch.Tensor, target: float) -> torch.Tensor:
        return F.mse_loss(score, torch.full_like(score, target))

    def reconstruction(image: torch.Tensor) -> torch.Tensor:
        perceptual = (phi(image)["only"] - phi(ys)["only"]).abs().mean()
        return (image - ys).abs().mean() + step.perceptual * perceptual + step.adversarial * mse(dy(image), 1.0)

    align = mse(df(g.encoder(xt)), 0.5) + mse(df(g.encoder(xs)), 0.5)
    source = g.encoder(xs).detach() if step.detach_source else g.encoder(xs)
    idt = (source - g.encoder(gt(xs))).abs().mean()
    loss_g = (
        w.align * align
        + w.rec * reconstruction(gsr(xs))
        + w.res * (xt - gt(xt)).abs().mean()
        + w.sty * mse(dt(gt(xs)), 1.0)
        + w.idt * idt
        + w.cyc * reconstruction(gsr(gt(xs)))
    )
    loss_d = torch.zeros((), dtype=torch.float64, requires_grad=True)
    if step.adversarial:
        loss_d = loss_d + mse(dy(ys), 1.0) + mse(dy(gsr(xs).detach()), 0.0)
        if w.cyc:
            loss_d = loss_d + mse(dy(gsr(gt(xs)).detach()), 0.0)
            if step.real_twice:
                loss_d = loss_d + mse(dy(ys), 1.0)
    if w.align:
        loss_d = loss_d + mse(df(g.encoder(xt).detach()), 0.0) + mse(df(g.encoder(xs).detach()), 1.0)
    if w.sty:
        loss_d = loss_d + mse(dt(gt(xs).detach()), 0.0) + mse(dt(xt), 1.0)
    return loss_g, loss_d / 2 if step.halve else loss_d


TABLE_3 = {
    "base": LossWeights(0, 1, 0, 0, 0, 0),
    "align": LossWeights(0.3, 1, 0, 0, 0, 0),
    "no-align": replace(ALL, align=0),
    "full": ALL,
}
SINGLE = {
    "res": LossWeights(0, 1, 0.9, 0, 0, 0),
    "sty": LossWeights(0, 1, 0, 0.4, 0, 0),
    "idt": LossWeights(0, 1, 0, 0, 0.5, 0),
    "cyc": LossWeights(0, 1, 0, 0, 0, 0.8),
    "no-cyc": replace(ALL, cyc=0),
    "no-sty": replace(ALL, sty=0),
}


@pytest.mark.parametrize(
    "options", [{}, {"detach_source": True}, {"halve": True, "real_twice": True}, {"adversarial": 0.0}], ids=str
)
@pytest.mark.parametrize("row", {**TABLE_3, **SINGLE})
def test_a_step_is_the_written_out_one(row, options):
    step, batch = make({**TABLE_3, **SINGLE}[row], **options), make_batch()
    before = copy.deepcopy((step.players.generator.state_dict(), step.players.discriminator.state_dict()))
    terms = step(batch)
    found = [[p.grad for p in network.parameters()] for network in (step.players.generator, step.players.discriminator)]
    step.players.generator.load_state_dict(before[0])
    step.players.discriminator.load_state_dict(before[1])
    for network, loss, gradients in zip(
        (step.players.generator, step.players.discriminator), naive(step, batch), found, strict=True
    ):
        wanted = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        for got, want in zip(gradients, wanted, strict=True):
            assert (got is None) == (want is None or not want.any())
            if got is not None:
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert set(terms) <= {*step.names, *step.statistics}
    w = step.weights
    weighted = {name for name, weight in vars(w).items() if weight}
    players = {"d_f": w.align, "d_t": w.sty, "d_y": step.adversarial}
    told = {"scale_s": True, "scale_t": w.align or w.res, "score_s": w.align, "score_t": w.align}
    assert set(terms) == weighted | {name for name, given in {**players, **told}.items() if given}


@pytest.mark.parametrize("row", TABLE_3)
def test_discriminators_first(row):
    """They learn from what the generator was; what they have become judges the same pictures of it."""
    step, batch = make(TABLE_3[row], discriminator_first=True), make_batch()
    generator, discriminators = step.players.generator, step.players.discriminator
    before = copy.deepcopy((generator.state_dict(), discriminators.state_dict()))
    terms = step(batch)
    found = [[p.grad for p in network.parameters()] for network in (generator, discriminators)]
    after = copy.deepcopy(discriminators.state_dict())
    generator.load_state_dict(before[0])
    discriminators.load_state_dict(before[1])
    _, loss_d = naive(step, batch)
    wanted_d = torch.autograd.grad(loss_d, list(discriminators.parameters()), allow_unused=True)
    discriminators.load_state_dict(after)
    loss_g, _ = naive(step, batch)
    wanted_g = torch.autograd.grad(loss_g, list(generator.parameters()), allow_unused=True)
    for gradients, wanted in zip(found, (wanted_g, wanted_d), strict=True):
        for got, want in zip(gradients, wanted, strict=True):
            assert (got is None) == (want is None or not want.any())
            if got is not None:
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    total = sum(weight * terms[name] for name, weight in vars(step.weights).items() if weight)
    torch.testing.assert_close(total, loss_g.detach())


def test_what_only_terms_of_weight_0_need_is_not_computed():
    """Sample-batches of E, G_t and G_SR."""
    wanted = {
        "base": (1, 0, 1),
        "align": (2, 0, 1),
        "no-align": (3, 2, 2),
        "full": (3, 2, 2),
        "res": (2, 1, 1),
        "sty": (1, 1, 1),
        "idt": (2, 1, 1),
        "cyc": (2, 1, 2),
        "no-cyc": (3, 2, 1),
        "no-sty": (3, 2, 2),
    }
    assert {row: tuple(computed(make(weights)).values()) for row, weights in {**TABLE_3, **SINGLE}.items()} == wanted


def computed(step: USRDAStep) -> dict[str, int]:
    """How many batches of samples each network is given in a step."""
    seen = {"encoder": 0, "decoder_t": 0, "decoder_sr": 0}

    def count(name: str):
        return lambda module, given: seen.__setitem__(name, seen[name] + len(given[0]) // 2)

    for name in seen:
        getattr(step.players.generator, name).register_forward_pre_hook(count(name))
    step(make_batch())
    return seen


@pytest.mark.parametrize("first", [False, True])
def test_every_tensor_is_computed_once(first):
    """Three sample-batches of E, two of each decoder, the features of the target once."""
    step = make(discriminator_first=first)
    assert computed(step) == {"encoder": 3, "decoder_t": 2, "decoder_sr": 2}
    assert sorted(step.features.features.seen) == [2, 4]


def test_a_discriminator_is_one_function_in_a_step():
    """A spectral norm is estimated once, and not anew for every picture that is judged."""
    step, seen = make(), []
    spectral_norm(step.players.discriminator["y"])
    step.players.discriminator["y"].register_forward_hook(lambda module, given, score: seen.append(module.weight))
    step(make_batch())
    assert len(seen) == 3 and all(weight is seen[0] for weight in seen)
