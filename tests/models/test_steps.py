"""DASR's steps against written-out ones: every network called anew for every loss, in plain PyTorch and fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.dasr.build import WeightFiles, build_dsn_step, build_srn_step
from models.dasr.config import DASRConfig, DiscriminatorConfig, DSNConfig, MapsConfig, PerceptualConfig, SRNConfig
from models.dasr.maps import DistanceMap
from models.data.resize import bicubic
from models.networks import PatchDiscriminator
from models.networks.frequency import frequency_filter
from models.train.losses import FeatureLoss

CPU = torch.device("cpu")
NO_FEATURES = PerceptualConfig("none")
SMALL = DASRConfig(
    dsn=DSNConfig(num_feat=8, num_block=1, discriminator=DiscriminatorConfig(num_feat=8), perceptual=NO_FEATURES),
    srn=SRNConfig(
        num_feat=8, num_block=1, num_grow_ch=8, discriminator=DiscriminatorConfig(num_feat=8), perceptual=NO_FEATURES
    ),
)


class Features(nn.Module):
    """Stands in for VGG: a fixed strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, dtype=torch.float64).requires_grad_(False)

    def forward(self, x):
        return {"only": self.conv(x)}


def haar(x):
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return torch.cat((a + b - c - d, a - b + c - d, a - b - c + d), 1) / 4 + 0.5


def cells(x):
    return F.avg_pool2d(x, 2)


def average(x):
    return 0.5 + 0.5 * (x - F.avg_pool2d(x, 5, 1, 2, count_include_pad=False))


def bce(logits, label):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def dsn_batch():
    return {"hr": torch.rand(2, 3, 64, 64), "real_lr": torch.rand(2, 3, 16, 16)}


def srn_batch():
    sizes = {"fake_lr": 16, "hr": 64, "real_lr": 16, "other_hr": 64}
    return {**{name: torch.rand(2, 3, side, side) for name, side in sizes.items()}, "weight": torch.rand(2, 1, 8, 8)}


def enlarged(weight, like):
    return F.interpolate(weight, size=like.shape[-2:], mode="bilinear", align_corners=False)


def naive_dsn(step, batch, view, low):
    g, d = step.players.generator, step.players.discriminator
    hr, real = batch["hr"], batch["real_lr"]
    lr = bicubic(hr, 0.25).clamp(0, 1)
    given = lr if step.bicubic_input else hr
    loss = step.content * (low(g(given)) - low(lr)).abs().mean() + step.adversarial * bce(d(view(g(given))), 1.0)
    if step.features is not None:
        phi = step.features.features
        loss = loss + step.perceptual * (phi(g(given))["only"] - phi(lr)["only"]).abs().mean()
    return loss, bce(d(view(real)), 1.0) + bce(d(view(g(given).detach())), 0.0)


def naive_srn(step, batch, view, low):
    g, d = step.players.generator, step.players.discriminator
    lr, hr = batch["fake_lr"], batch["hr"]
    weight = batch["weight"] if step.distance is None else step.distance(lr)
    weight = weight if weight is not None else torch.ones(1, 1, 1, 1, dtype=hr.dtype)
    loss = step.content * (enlarged(weight, hr) * (g(lr) - hr).abs()).mean()
    judged, real = (batch["real_lr"], batch["other_hr"]) if step.domain_gap else (lr, hr)
    loss = loss + step.adversarial * bce(d(view(g(judged))), 1.0)
    if step.features is not None:
        phi = step.features.features
        difference = (phi(g(lr))["only"] - phi(hr)["only"]).abs()
        on_features = enlarged(weight, difference) if step.weigh_features else 1
        loss = loss + step.perceptual * (on_features * difference).mean()
    if step.low is not None:
        loss = loss + step.low_band * (low(g(lr)) - low(hr)).abs().mean()
    return loss, bce(d(view(real)), 1.0) + bce(d(view(g(judged).detach())), 0.0)


def players_of(step):
    return {"generator": step.players.generator, "discriminator": step.players.discriminator}


CASES = {
    "dsn-paper": (build_dsn_step, SMALL, dsn_batch, naive_dsn, haar, lambda x: x),
    "dsn-low": (
        build_dsn_step,
        replace(SMALL, dsn=replace(SMALL.dsn, network="de_resnet", content_of="low")),
        dsn_batch,
        naive_dsn,
        haar,
        cells,
    ),
    "dsn-bicubic-average": (
        build_dsn_step,
        replace(
            SMALL,
            dsn=replace(
                SMALL.dsn,
                input="bicubic",
                content_of="low",
                discriminator=DiscriminatorConfig("fsd", num_feat=8, frequency="average"),
            ),
        ),
        dsn_batch,
        naive_dsn,
        average,
        lambda x: F.avg_pool2d(x, 5, 1),
    ),
    "srn-paper": (build_srn_step, SMALL, srn_batch, naive_srn, haar, cells),
    "srn-low-band": (
        build_srn_step,
        replace(SMALL, srn=replace(SMALL.srn, low_band_weight=0.7, weigh_features=False)),
        srn_batch,
        naive_srn,
        haar,
        cells,
    ),
    "srn-source-gan": (build_srn_step, replace(SMALL, domain_gap=False), srn_batch, naive_srn, haar, cells),
}


@pytest.mark.parametrize("with_features", [False, True], ids=["plain", "features"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_written_out_one(case, with_features):
    """Shared forward, pruned backward, fused losses: the values and every weight's gradient are the textbook's."""
    build, config, make_batch, naive, view, low = CASES[case]
    torch.manual_seed(0)
    step = build(config, WeightFiles(), CPU)
    if with_features:
        step = replace(step, features=FeatureLoss(Features()))
    batch = {name: value.double() for name, value in make_batch().items()}
    for network in players_of(step).values():
        network.double()
        for parameter in network.parameters():
            # Kaiming x 0.1 would leave nothing to compare: outputs of 1e-3 and smaller.
            torch.nn.init.normal_(parameter, std=0.15)
    before = {name: {k: v.clone() for k, v in n.state_dict().items()} for name, n in players_of(step).items()}

    terms = step(batch)
    shared = {name: [p.grad.clone() for p in network.parameters()] for name, network in players_of(step).items()}
    for name, network in players_of(step).items():
        assert any(not torch.equal(before[name][key], value) for key, value in network.state_dict().items()), name
        network.load_state_dict(before[name])

    loss_g, loss_d = naive(step, batch, view, low)
    for name, loss in (("generator", loss_g), ("discriminator", loss_d)):
        expected = torch.autograd.grad(loss, list(players_of(step)[name].parameters()))
        for got, want in zip(shared[name], expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-11)
        assert max(float(want.abs().max()) for want in expected) > 1e-6
    total = sum(getattr(step, name) * value for name, value in terms.items() if name != "discriminator")
    torch.testing.assert_close(total, loss_g.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["discriminator"], loss_d.detach(), rtol=1e-6, atol=0)


def test_the_step_computes_nothing_that_it_would_throw_away(monkeypatch):
    """One forward pass of G; D's weights get the gradient of D's loss alone, although G's loss runs through D too."""
    torch.manual_seed(0)
    step = build_srn_step(SMALL, WeightFiles(), CPU)
    calls = []
    step.players.generator.register_forward_hook(lambda *_: calls.append("G"))
    step.players.discriminator.register_forward_hook(lambda *_: calls.append("D"))
    weight_gradients = []
    for parameter in step.players.discriminator.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: weight_gradients.append(p))
    step(srn_batch())
    assert calls == ["G", "D", "D"]
    assert len(weight_gradients) == len(list(step.players.discriminator.parameters()))


def test_no_map_and_no_domain_gap_leave_the_source_domain_alone():
    torch.manual_seed(0)
    step = build_srn_step(replace(SMALL, domain_gap=False), WeightFiles(), CPU)
    batch = srn_batch()
    terms = step({"fake_lr": batch["fake_lr"], "hr": batch["hr"]})
    assert terms["content"] > 0
    with torch.no_grad():
        plain = (step.players.generator(batch["fake_lr"]) - batch["hr"]).abs().mean()
    assert terms["content"].item() == pytest.approx(plain.item(), rel=0.05)  # one update later


def test_pretraining_trains_the_content_alone():
    torch.manual_seed(0)
    for build, batch in ((build_dsn_step, dsn_batch()), (build_srn_step, srn_batch())):
        step = build(SMALL, WeightFiles(), CPU)
        before = {key: value.clone() for key, value in step.players.discriminator.state_dict().items()}
        assert set(step.pretrain(batch)) == {"content"}
        assert all(torch.equal(before[key], value) for key, value in step.players.discriminator.state_dict().items())


def test_maps_on_the_fly_are_those_of_the_discriminator():
    torch.manual_seed(0)
    judge = PatchDiscriminator(9, 8, kind="fsd")
    distance = DistanceMap(judge, frequency_filter("haar"), MapsConfig(box=17))
    step = build_srn_step(SMALL, WeightFiles(), CPU, distance)
    batch = srn_batch()
    found = step.weight(batch)
    scores = judge(haar(batch["fake_lr"])).sigmoid()
    expected = F.avg_pool2d(scores, 17, 1, 8, count_include_pad=False)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("on_the_fly", [False, True])
def test_a_step_weighs_by_what_its_option_makes_of_the_map(on_the_fly):
    torch.manual_seed(0)
    batch = srn_batch()
    config = replace(SMALL, srn=replace(SMALL.srn, map_weights="capped", map_cap=1.25))
    step = build_srn_step(config, WeightFiles(), CPU, (lambda lr: lr[:, :1] / 3) if on_the_fly else None)
    maps = batch["fake_lr"][:, :1] / 3 if on_the_fly else batch["weight"]
    weight = (maps / maps.mean()).clamp(max=1.25)
    torch.testing.assert_close(step.weight(batch), weight)
    assert 0.01 < (weight == 1.25).float().mean() < 0.99
    with torch.no_grad():
        plain = (step.players.generator(batch["fake_lr"]) - batch["hr"]).abs()
    assert step(batch)["content"].item() == pytest.approx((enlarged(weight, plain) * plain).mean().item(), rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_runs_in_both_precisions_and_keeps_fp32_weights(precision):
    torch.manual_seed(0)
    config = replace(SMALL, run=replace(SMALL.run, precision=precision))
    for build, batch in ((build_dsn_step, dsn_batch()), (build_srn_step, srn_batch())):
        step = build(config, WeightFiles(), CPU)
        terms = step(batch)
        assert all(value.dtype == torch.float32 and bool(value.isfinite()) for value in terms.values())
        for network in players_of(step).values():
            assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_compiled_generator_makes_the_same_step():
    batch = srn_batch()
    found = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        step = build_srn_step(replace(SMALL, run=replace(SMALL.run, compile=compiled)), WeightFiles(), CPU)
        found[compiled] = [step(batch) for _ in range(2)][-1]
    for name, value in found[False].items():
        torch.testing.assert_close(found[True][name], value, rtol=1e-3, atol=1e-5)
