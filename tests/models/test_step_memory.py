"""The count of a step's memory: by hand, against what the allocator was asked for, fake against real, and printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from helpers.marks import thorough
from torch import Tensor, nn

import srkernels
from bench.timing import peak_bytes
from models.commands import dry_run
from models.commands.dry_run import Option, count_rows, options
from models.commands.usrda import main, parse
from models.data import InputError
from models.networks import VGG19Features
from models.train.budget import Saving
from models.train.memory import MemoryCount, count_step, empty_batch, imagine, imagined, largest_batch
from models.usrda.build import WeightFiles, assemble, random_features
from models.usrda.config import DiscriminatorConfig, PerceptualConfig, USRDAConfig, load_preset
from srkernels.ops.conv.support import onednn_runs

N = 100_000
NOTHING = Saving()


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(N))


@pytest.mark.parametrize(("retain", "vectors"), [(False, 3), (True, 4)])
def test_count_by_hand(retain, vectors):
    """x and exp's result, which its backward pass reads, and the gradients of both operations, one after the other."""
    network = Scale()
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def step(batch):
        optimizer.zero_grad()
        x = batch["x"].view(2, -1).mul_(1).flatten()  # views and what is done in place are nothing new
        (x * network.weight.view(-1)).exp().sum().backward(retain_graph=retain)
        optimizer.step()

    for _ in range(2):  # an optimiser without states counts like one that has them
        count = count_step(step, {"x": torch.ones(N)}, [network], [optimizer])
        assert count.networks == 4 * N
        assert count.optimizer == 8 * N + 4  # and the number of the update
        assert count.gradients == 0  # that of the weight is being computed
        assert 0 <= count.activations - vectors * 4 * N <= 16
        assert count.peak == count.networks + count.optimizer + count.activations


def test_gradients_are_told_apart():
    """Those of the step before are there when this one needs most, if nobody drops them."""
    network = Scale()
    optimizer = torch.optim.SGD(network.parameters())

    def step(batch):
        (network.weight * batch["x"]).sum().backward()

    count = count_step(step, {"x": torch.ones(N)}, [network], [optimizer])
    assert (count.gradients, count.optimizer) == (4 * N, 0)
    assert 0 <= count.activations - 8 * N <= 16


def test_only_what_is_trained_has_a_state():
    """Without its regularisation USR-DA trains no G_t, and no D_t and D_f."""
    config = reconstruction_alone(config_of("fp32"))
    step, networks, optimizers = build(config, "cpu")
    batch = {name: torch.rand_like(value) for name, value in a_batch(config).items()}
    found = count_step(step, batch, networks, optimizers).optimizer
    trained = [*step.players.generator.encoder.parameters(), *step.players.generator.decoder_sr.parameters()]
    assert found == sum(2 * parameter.nbytes + 4 for parameter in trained)
    assert imagined_count(config).optimizer == found


def measured(step: Callable[[Mapping[str, Tensor]], object], batch, optimizers) -> int:
    """The most bytes that torch's allocator gave out in a step, by its own record."""

    def call() -> None:
        step(batch)
        for optimizer in optimizers:
            optimizer.zero_grad()

    return peak_bytes(call, torch.device("cpu"))


def of_the_step(count: MemoryCount, batch: Mapping[str, Tensor]) -> int:
    """Without what is there before the step."""
    return count.peak - count.networks - count.optimizer - sum(value.nbytes for value in batch.values())


@pytest.mark.parametrize("save", ["activations", "recompute"])
def test_what_an_op_makes_inside_is_counted(save):
    """A block that keeps its input alone has all of its features again, and their gradients, in the backward pass."""
    module = srkernels.nn.ResidualDenseBlock(16, 8, save=save).to(memory_format=torch.channels_last)
    batch = {"x": torch.rand(2, 16, 64, 64).contiguous(memory_format=torch.channels_last)}

    def step(batch):
        module.zero_grad()
        module(batch["x"]).sum().backward()

    with srkernels.use_backend("reference"):
        count = of_the_step(count_step(step, batch, [module], []), batch)
        assert count > 2 * 48 * 4 * 2 * 64 * 64
        assert count == pytest.approx(measured(step, batch, []), rel=0.1)


def config_of(precision: str, saving: Saving = NOTHING, kind: str = "nlayer_s2", norm: str = "spectral") -> USRDAConfig:
    """A small one, of numbers of channels for which no CPU has ops that are chosen before eager PyTorch."""
    config = load_preset("paper-unpaired")
    critic = DiscriminatorConfig(kind, norm, 8)
    return replace(
        config,
        scale=2,
        num_feat=16,
        num_grow_ch=8,
        num_block=1,
        num_block_t=1,
        discriminator_f=critic,
        discriminator_t=critic,
        discriminator_y=critic,
        perceptual=PerceptualConfig("none"),
        crop=64,
        batch=2,
        run=replace(config.run, precision=precision, **saving._asdict()),
    )


def reconstruction_alone(config: USRDAConfig) -> USRDAConfig:
    """E and G_SR with L1, and nothing else."""
    return replace(config.without("align", "res", "sty", "idt", "cyc"), adversarial_weight=0.0)


def build(config: USRDAConfig, device: str):
    """The step, its networks and its optimisers."""
    with torch.device(device):
        phi = random_features(config)
        step = assemble(config, phi, WeightFiles(), torch.device(device))
    networks = [step.players.generator, step.players.discriminator, *([] if phi is None else [phi])]
    return step, networks, [step.players.optimizer_g, step.players.optimizer_d]


def a_batch(config: USRDAConfig) -> Mapping[str, Tensor]:
    return empty_batch(config.batch_shapes(config.batch), config.run.layout)


def imagined_count(
    config: USRDAConfig, backend: str | None = None, precision: torch.dtype | None = None
) -> MemoryCount:
    step, networks, optimizers = build(config, "meta")
    with imagined(), srkernels.use_backend(backend):
        imagine(networks, optimizers)
        step = step.in_precision(precision or step.players.precision)
        return count_step(step, a_batch(config), networks, optimizers)


@pytest.mark.parametrize(
    ("kind", "norm", "perceptual", "backend", "precision", "saving"),
    [
        thorough("nlayer_s2", "spectral", "none", None, "fp32", Saving()),
        thorough("nlayer_s2", "spectral", "none", None, "fp32", Saving(True)),
        ("nlayer_s2", "spectral", "none", None, "bf16", Saving()),
        thorough("nlayer_s2", "spectral", "none", None, "bf16", Saving(True)),
        thorough("vgg", "batch", "none", None, "fp32", Saving(True)),
        ("vgg", "batch", "none", None, "bf16", Saving()),
        thorough("nlayer_s2", "instance", "vgg19", "reference", "fp32", Saving(True)),
        ("vgg", "spectral", "vgg19", "reference", "bf16", Saving()),
        ("nlayer_s2", "instance", "vgg19", "reference", "fp32", Saving(feature_signs=True)),
        thorough("nlayer_s2", "instance", "vgg16", "reference", "fp32", Saving(feature_signs=True)),
    ],
)
def test_count_is_what_is_allocated(kind, norm, perceptual, backend, precision, saving):
    if precision == "bf16" and not onednn_runs(torch.bfloat16):
        pytest.skip("without oneDNN's, PyTorch's convolutions of bf16 unfold their images on this processor")
    config = config_of(precision, saving, kind, norm)
    config = replace(config, perceptual=PerceptualConfig(perceptual, ("conv3_1",)))
    with srkernels.use_backend(backend):
        step, networks, optimizers = build(config, "cpu")
        batch = {name: torch.rand_like(value) for name, value in a_batch(config).items()}
        real = count_step(step, batch, networks, optimizers)
        assert of_the_step(real, batch) == pytest.approx(measured(step, batch, optimizers), rel=0.1)
    fake = imagined_count(config, backend)
    assert (fake.networks, fake.optimizer) == (real.networks, real.optimizer)
    assert fake.peak == pytest.approx(real.peak, rel=1e-3)


@pytest.mark.thorough
def test_fp16_counts_as_bf16():
    """In which the dry run counts, so that no CPU's own ops are in the way."""
    config = reconstruction_alone(config_of("bf16"))
    assert imagined_count(config).peak == imagined_count(config, precision=torch.float16).peak


@pytest.mark.parametrize("near", [1, 4, 40])
@pytest.mark.parametrize("each", [1, 3.7, 90, 200])
def test_largest_batch(near, each):
    def count(batch: int) -> MemoryCount:
        return MemoryCount(networks=100, activations=20 + int(each * batch))

    wanted = max([0, *(batch for batch in range(400) if count(batch).peak <= 300)])
    assert largest_batch(count, 300, near) == wanted


def test_largest_batch_fits_where_memory_grows_faster_than_a_line():
    assert largest_batch(lambda batch: MemoryCount(activations=batch * batch), 300, 2) <= 17


@pytest.mark.thorough
def test_options_that_save_memory_do():
    config, limit = reconstruction_alone(config_of("fp32")), 1e9
    first = Option("fp32", Saving(), None)
    recompute = Saving(recompute=True)
    others = [replace(first, precision="bf16"), replace(first, saving=recompute), replace(first, backend="triton")]
    found, *saving = count_rows(config, limit, [first, *others])
    for row in saving:
        assert row.count.activations < 0.9 * found.count.activations
        assert row.largest > found.largest
    constant = found.count.peak - found.count.activations
    assert found.largest == pytest.approx((limit - constant) / found.count.activations * config.batch, rel=0.1)
    assert set(others) < set(options(config))


@pytest.mark.parametrize(
    ("save", "backend", "channels"),
    [("activations", None, 768), ("activations", "triton", 192), ("recompute", None, 64), ("recompute", "triton", 64)],
)
def test_what_dense_blocks_keep(save, backend, channels):
    """By themselves, as on a GPU, every concatenation and what goes into the activations."""
    n, side = 2, 64

    def peak(blocks: int) -> int:
        with torch.device("meta"):
            network = nn.Sequential(*(srkernels.nn.ResidualDenseBlock(64, 32, save=save) for _ in range(blocks)))
        with imagined(), srkernels.use_backend(backend):
            imagine([network], [])
            batch = {"x": torch.empty(n, 64, side, side).contiguous(memory_format=torch.channels_last)}
            return count_step(lambda batch: network(batch["x"]).sum().backward(), batch, [network], []).activations

    assert (peak(6) - peak(3)) / (3 * 4 * n * side * side) == pytest.approx(channels, rel=0.01)


@pytest.mark.parametrize(("n", "side"), [(2, 32), (16, 512)], ids=["small", "paper"])
@pytest.mark.parametrize(
    ("save", "precision", "backend"),
    [
        ("activations", torch.float32, "native"),
        ("activations", torch.float16, None),
        ("signs", torch.float32, None),
        ("signs", torch.float16, None),
    ],
)
def test_what_vgg_keeps_by_hand(save, precision, backend, n, side):
    """To the byte: 3.8 GB at the paper's size in half precision, of which 1.0 are indices; 0.28 with signs."""
    pixels, size = n * side**2, precision.itemsize
    activations = (64 * 2 + 128 * 2 // 4 + 256 * 4 // 16 + 512 * 4 // 64) * pixels + 512 * 3 * pixels // 256
    windows = sum(c * pixels // 4**s for s, c in enumerate((64, 128, 256, 512), 1))
    with torch.device("meta"):
        network = VGG19Features()
    network.save = save
    filters = sum(conv.weight.numel() for conv in network.features.values())
    if save == "signs":
        wanted = activations // 8 + windows
    elif backend is None:  # eager PyTorch: every convolution's input, and filters and picture as autocast rounded them
        wanted = (activations + windows + 3 * pixels + filters) * size + 8 * windows
    else:
        wanted = activations * size + 8 * windows
    between = 10**13  # so large that the step needs the most when this is there

    def step(batch):
        with torch.autocast("cpu", precision, enabled=precision.itemsize == 2):
            found = network(batch["x"])
        torch.empty(between, dtype=torch.uint8)
        del found

    with imagined(), srkernels.use_backend(backend):
        imagine([network], [])
        layout = torch.channels_last
        batch = {"x": torch.empty(n, 3, side, side, requires_grad=True).contiguous(memory_format=layout)}
        found = count_step(step, batch, [network], []).activations
    features = 512 * pixels // 256 * size
    assert found == between + wanted + features + 12 * pixels
    if side == 512 and size == 2:
        assert f"{wanted / 1e9:.2f}" == ("0.28" if save == "signs" else "3.79")


@pytest.mark.thorough
def test_papers_batch_fits_24_gb():
    config = load_preset("paper-unpaired")
    config = replace(config, run=replace(config.run, precision="bf16", recompute=True))
    assert imagined_count(config, precision=torch.float16).peak < 24e9


def test_command_prints_and_needs_no_pictures(monkeypatch, capsys):
    monkeypatch.setattr(
        dry_run, "options", lambda config: [Option(precision, Saving(), None) for precision in ("fp32", "bf16")]
    )
    monkeypatch.delenv("SRKERNELS_BACKEND", raising=False)
    small = ["--preset", "tiny", "--num-feat", "8", "--num-block", "1", "--num-block-t", "1", "--run.precision", "bf16"]
    assert main(["--dry-run", "--base", *small, "--card-gb", "0.01", "--batch", "1"]) == 0
    printed = capsys.readouterr().out
    assert "0.01 GB" in printed
    assert [line.split("│")[2].strip() for line in printed.splitlines() if "│ > │" in line] == ["bf16"]
    assert "cuDNN" in printed


def test_backend_of_the_environment_is_the_one_asked_for_by_name(monkeypatch):
    monkeypatch.setenv("SRKERNELS_BACKEND", "reference")
    assert {option.backend for option in options(load_preset("tiny"))} == {None, "reference"}


@pytest.mark.parametrize("saving", [Saving(), Saving(True), Saving(True, True), Saving(feature_signs=True)])
def test_the_run_as_configured_is_among_the_options(saving, monkeypatch):
    monkeypatch.delenv("SRKERNELS_BACKEND", raising=False)
    config = load_preset("paper-unpaired")
    config = replace(config, run=replace(config.run, **saving._asdict()))
    assert options(config).count(Option("fp32", saving, None)) == 1


def test_flag_can_be_taken_back():
    assert parse(["--dry_run", "--preset", "tiny"]).dry_run
    with pytest.raises(SystemExit):
        parse(["--dry-run", "--no-dry-run", "--preset", "tiny"])


@pytest.mark.parametrize("card", ["0", "-1", "nan", "inf"])
def test_card_must_have_memory(card):
    with pytest.raises(InputError, match="--card-gb"):
        main(["--dry-run", "--preset", "tiny", "--card-gb", card])
