"""Weights files of every key family: recognised, read strictly, written back."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.networks import (
    DSN,
    LPIPS,
    Decoder,
    DeResNet,
    Encoder,
    PatchDiscriminator,
    RRDBNet,
    USRDAGenerator,
    VGG16Features,
    VGG19Features,
    VGGDiscriminator,
    load_weights,
    save_weights,
)

State = dict[str, Tensor]


def randomised(network: nn.Module) -> nn.Module:
    """With weights large enough to be seen in the output, running statistics included."""
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.1, 0.3) if "running" in key else value.normal_(std=0.2)
    return network


def assert_same(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Of one class, with equal tensors and outputs."""
    assert type(one) is type(other)
    assert [*one.state_dict()] == [*other.state_dict()]
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    with torch.no_grad():
        assert torch.equal(one.eval()(x), other.eval()(x))


def kair(key: str) -> str:
    for ours, theirs in (
        ("conv_body", "trunk_conv"),
        ("conv_up", "upconv"),
        ("conv_hr", "HRconv"),
        ("body.", "RRDB_trunk."),
        (".rdb", ".RDB"),
    ):
        key = key.replace(ours, theirs)
    return key


def old_arch(key: str) -> str:
    """For two blocks."""
    key = re.sub(r"body\.(\d)\.rdb(\d)\.conv(\d)\.", r"model.1.sub.\1.RDB\2.conv\3.0.", key)
    for ours, theirs in (
        ("conv_first", "model.0"),
        ("conv_body", "model.1.sub.2"),
        ("conv_up1", "model.3"),
        ("conv_up2", "model.6"),
        ("conv_hr", "model.8"),
        ("conv_last", "model.10"),
    ):
        key = key.replace(ours, theirs)
    return key


def renamed(network: nn.Module, rename: Callable[[str], str]) -> State:
    return {rename(key): value for key, value in network.state_dict().items()}


@pytest.mark.parametrize(("family", "rename"), [("basicsr", str), ("kair", kair), ("old-arch", old_arch)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_rrdbnet_of_each_family(family, rename, scale, tmp_path):
    network = randomised(RRDBNet(6, 2, 3, scale=scale))
    theirs = renamed(network, rename)
    image = torch.rand(1, 3, 8, 12)
    loaded = load_weights(theirs)
    assert loaded.scale == scale
    assert_same(loaded, network, image)
    save_weights(network, tmp_path / "a.pth", family=family)
    written = torch.load(tmp_path / "a.pth", weights_only=True)["params"]
    assert {key: value.shape for key, value in written.items()} == {key: value.shape for key, value in theirs.items()}
    assert_same(load_weights(tmp_path / "a.pth"), network, image)


PATCHES = torch.rand(2, 9, 24, 24)
RGB_PATCHES = PATCHES[:, :3]
IMAGE = torch.rand(1, 3, 16, 24)
FEATURES = torch.rand(1, 6, 8, 12)
SQUARES = torch.rand(2, 3, 32, 32)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("network", "x"),
    [
        (partial(RRDBNet, 6, 1, 3), IMAGE),
        (partial(RRDBNet, 6, 1, 3, scale=2, bicubic_skip=True), IMAGE),
        (partial(DSN, 6, 2), IMAGE),
        (partial(DSN, 6, 1, scale=2, bicubic_skip=True), IMAGE),
        (partial(DSN, 6, 1, scale=1), IMAGE),
        (partial(DeResNet, 6, 2), IMAGE),
        (partial(DeResNet, 6, 1, scale=2), IMAGE),
        (partial(DeResNet, 6, 1, scale=1, bicubic_skip=True), IMAGE),
        (partial(PatchDiscriminator, 9, 4), PATCHES),
        (partial(PatchDiscriminator, 3, 6, norm="none"), RGB_PATCHES),
        (partial(PatchDiscriminator, 9, 4, kind="fsd", norm="batch"), PATCHES),
        (partial(PatchDiscriminator, 9, 4, kind="nlayer_s1", bias=False), PATCHES),
        (partial(PatchDiscriminator, 9, 4, kind="nlayer_s2"), PATCHES),
        (partial(PatchDiscriminator, 9, 4, norm="spectral"), PATCHES),
        (partial(VGGDiscriminator, 3, 32, 2), SQUARES),
        (partial(VGGDiscriminator, 3, 32, 4, norm="none"), SQUARES),
        (partial(VGGDiscriminator, 3, 32, 2, norm="spectral"), SQUARES),
        (partial(VGGDiscriminator, 6, 64, 2, norm="instance"), torch.rand(2, 6, 64, 64)),
        (partial(Encoder, 6, 3), IMAGE),
        (partial(Decoder, 6, 2, 3), FEATURES),
        (partial(Decoder, 6, 1, 3, scale=2), FEATURES),
        (partial(Decoder, 6, 1, 3, scale=1), FEATURES),
        (partial(USRDAGenerator, 6, 3, 2, 1, 4, bicubic_skip=True), IMAGE),
        (partial(USRDAGenerator, 6, 2, 1, 2, 3, scale=2), IMAGE),
        (partial(Decoder, 3, 1, 3), IMAGE),  # the tensors of an RRDBNet
    ],
)
def test_our_files_say_all_that_a_network_needs(network, x, suffix, tmp_path):
    network = randomised(network())
    save_weights(network, tmp_path / f"a{suffix}")
    loaded = load_weights(str(tmp_path / f"a{suffix}"))
    assert_same(loaded, network, x)
    assert loaded.extra_repr() == network.extra_repr()
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_frozen_networks_survive_a_round_trip(tmp_path):
    save_weights(VGG19Features(("relu1_1", "conv2_2"), input_norm=False), tmp_path / "vgg.safetensors")
    vgg = load_weights(tmp_path / "vgg.safetensors")
    assert vgg.layers == ("relu1_1", "conv2_2")
    assert not vgg.input_norm
    for trunk in ("alex", "vgg16"):
        lpips = LPIPS(trunk)
        save_weights(lpips, tmp_path / "lpips.safetensors")
        a, b = torch.rand(2, 1, 3, 32, 32)
        assert torch.equal(load_weights(tmp_path / "lpips.safetensors")(a, b), lpips(a, b))


@pytest.mark.parametrize(("kind", "last"), [(VGG16Features, 28), (VGG19Features, 34)])
def test_vgg_of_torchvision(kind, last):
    theirs = kind().state_dict()
    loaded = load_weights({**theirs, "classifier.0.weight": torch.zeros(2, 2)})
    assert type(loaded) is kind and loaded.origin == "ImageNet"
    assert torch.equal(loaded.features[str(last)].weight, theirs[f"features.{last}.weight"])


def test_files_are_contiguous_and_say_what_they_hold(tmp_path):
    network = RRDBNet(6, 1, 3, bicubic_skip=True).to(memory_format=torch.channels_last)
    save_weights(network, tmp_path / "a" / "b.safetensors")  # the folder is made
    with safe_open(tmp_path / "a" / "b.safetensors", framework="pt") as file:
        assert file.metadata() == {"srkernels": '{"network": "RRDBNet", "bicubic_skip": true}'}
    for key, value in load_file(tmp_path / "a" / "b.safetensors").items():
        assert value.is_contiguous()
        assert torch.equal(value, network.state_dict()[key])


def test_without_a_record_a_network_is_the_published_one(tmp_path):
    for network in (RRDBNet(6, 1, 3, bicubic_skip=True), DSN(6, 1, scale=2, bicubic_skip=True)):
        loaded = load_weights(network.state_dict())
        assert (loaded.scale, loaded.bicubic_skip) == (4, False)
        # Other programs write metadata, too.
        save_file(network.state_dict(), tmp_path / "a.safetensors", metadata={"network": "other", "config": "x"})
        assert not load_weights(tmp_path / "a.safetensors").bicubic_skip
    loaded = load_weights(PatchDiscriminator(9, 4, kind="nlayer_s1", norm="none").state_dict())
    assert (loaded.kind, loaded.norm, loaded.frequency) == ("nlayer_s2", "instance", None)


def dsn_discriminator(network: PatchDiscriminator, **others: Tensor) -> State:
    """Under the keys of DASR's DSN."""
    prefix = "net.net." if network.kind == "fsd" else "net.model."
    return {**renamed(network, lambda key: key.replace("model.", prefix)), **others}


GAUSSIAN = "filter.filter_low.filter.gaussian_filter.weight"


@pytest.mark.parametrize(
    ("in_channels", "norm", "others", "frequency", "kernel"),
    [
        (3, "batch", {GAUSSIAN: torch.zeros(3, 1, 9, 9)}, "gbfs", 9),
        (3, "instance", {GAUSSIAN: torch.zeros(3, 1, 5, 5)}, "gbfs", 5),
        (9, "instance", {"DWT2.h0_col": torch.zeros(1, 1, 2, 1), GAUSSIAN: torch.zeros(3, 1, 5, 5)}, "haar", 5),
        (3, "batch", {"DWT2.h0_col": torch.zeros(1, 1, 2, 1)}, "haar_sum", 5),
        (3, "instance", {}, "average", 5),
    ],
)
def test_discriminators_of_the_dsn(in_channels, norm, others, frequency, kernel):
    network = randomised(PatchDiscriminator(in_channels, 4, kind="fsd", norm=norm))
    loaded = load_weights(dsn_discriminator(network, **others))
    assert (loaded.kind, loaded.norm) == ("fsd", norm)
    assert (loaded.frequency, loaded.frequency_kernel) == (frequency, kernel)
    assert_same(loaded, network, PATCHES[:, :in_channels])


def test_the_frequency_filter_is_written_with_a_discriminator(tmp_path):
    network = PatchDiscriminator(3, 4)
    network.frequency, network.frequency_kernel, network.frequency_contrast = "gbfs", 9, 10.0
    save_weights(network, tmp_path / "a.safetensors")
    loaded = load_weights(tmp_path / "a.safetensors")
    assert (loaded.frequency, loaded.frequency_kernel, loaded.frequency_contrast) == ("gbfs", 9, 10.0)


def test_discriminator_of_the_sr_network():
    network = randomised(PatchDiscriminator(9, 4, kind="nlayer_s2", bias=False))
    assert_same(load_weights(network.state_dict()), network, PATCHES)


def test_checkpoint_of_the_dsn(tmp_path):
    """A dict of everything, as `torch.save` of 2019 wrote it."""
    generator = randomised(DeResNet(6, 1))
    discriminator = randomised(PatchDiscriminator(3, 4, kind="nlayer_s1"))
    optimizer = torch.optim.Adam(generator.parameters())
    generator(IMAGE).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "fs_type": "avg_pool",
        "fs_kernel_size": 7,
        "D_type": "nld_s1",
        "model_g_state_dict": generator.state_dict(),
        "models_d_state_dict": dsn_discriminator(discriminator),
        "optimizer_g_state_dict": optimizer.state_dict(),
    }
    path = tmp_path / "last_iteration.tar"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    assert_same(load_weights(path), generator, IMAGE)
    assert_same(load_weights(path, part="generator"), generator, IMAGE)
    loaded = load_weights(path, part="discriminator")
    assert (loaded.frequency, loaded.frequency_kernel) == ("average", 7)
    assert_same(loaded, discriminator, RGB_PATCHES)
    with pytest.raises(ValueError, match=r"part must be one of generator, .*discriminator_y or None, got 'other'"):
        load_weights(path, part="other")
    with pytest.raises(ValueError, match=r"has no part 'encoder', only generator, discriminator$"):
        load_weights(path, part="encoder")


def test_checkpoint_of_the_unofficial_usrda(tmp_path):
    """A dict of everything under the names of its networks; a fork's encoder and decoders are wrapped for two GPUs."""
    networks = {
        "encoder": ("model_Enc", Encoder(6), IMAGE),
        "decoder_t": ("model_Dec_Id", Decoder(6, 1, 3, scale=1), FEATURES),
        "decoder_sr": ("model_Dec_SR", Decoder(6, 2, 3), FEATURES),
        "discriminator_f": ("model_Disc_feat", VGGDiscriminator(6, 32, 2), torch.rand(2, 6, 32, 32)),
        "discriminator_t": ("model_Disc_img_LR", VGGDiscriminator(3, 32, 2), SQUARES),
        "discriminator_y": ("model_Disc_img_HR", VGGDiscriminator(3, 64, 2), torch.rand(2, 3, 64, 64)),
    }
    optimizer = torch.optim.Adam(networks["encoder"][1].parameters(), amsgrad=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2.5e5, 3.5e5])
    others = {"epoch": 3, "optimizer_G": optimizer.state_dict(), "scheduler_G": scheduler.state_dict()}
    for prefix in ("", "module."):
        checkpoint = {
            key: renamed(randomised(network), (prefix if "Disc" not in key else "").__add__)
            for key, network, _ in networks.values()
        }
        torch.save({**others, **checkpoint}, tmp_path / "a.pth")
        for part, (_, network, x) in networks.items():
            assert_same(load_weights(tmp_path / "a.pth", part=part), network, x)
        generator = load_weights(tmp_path / "a.pth")
        assert isinstance(generator, USRDAGenerator)
        for part in ("encoder", "decoder_t", "decoder_sr"):
            _, network, x = networks[part]
            assert_same(getattr(generator, part), network, x)
        assert_same(load_weights(tmp_path / "a.pth", part="generator"), generator, IMAGE)
    torch.save({key: checkpoint[key] for key in ("model_Enc", "model_Disc_feat")}, tmp_path / "b.pth")
    assert isinstance(load_weights(tmp_path / "b.pth"), Encoder)
    with pytest.raises(ValueError, match=r"has no part 'generator', only encoder, discriminator_f$"):
        load_weights(tmp_path / "b.pth", part="generator")
    with pytest.raises(ValueError, match="model_Enc holds a list, not a state dict"):
        load_weights({"model_Enc": []})


def test_decoder_and_generator_are_told_by_what_they_take():
    for scale in (1, 2, 4):
        decoder = randomised(Decoder(6, 2, 3, scale=scale))
        assert_same(load_weights(decoder.state_dict()), decoder, FEATURES)
    # Real-ESRGAN's x1 takes 48 channels: without a record these are its.
    assert isinstance(load_weights(Decoder(48, 1, 3).state_dict()), RRDBNet)
    with pytest.raises(ValueError, match=r"RRDBNet takes 3 .*, conv_first takes 7"):
        load_weights({**Decoder(6, 1, 3).state_dict(), "conv_first.weight": torch.zeros(6, 7, 3, 3)})


def test_classifiers_and_other_discriminators_are_refused():
    """ESRGAN's has 4x4 kernels under the same keys; torchvision's classifiers are numbered otherwise."""
    state = VGGDiscriminator(3, 32, 2).state_dict()
    with pytest.raises(ValueError, match=r"VGGDiscriminator: keys .* of another shape: features\.2\.weight$"):
        load_weights({**state, "features.2.weight": torch.zeros(2, 2, 4, 4)})
    with pytest.raises(ValueError, match=r"classifier\.0\.weight$"):  # no square of positions
        load_weights({**state, "classifier.0.weight": torch.zeros(100, 16 * 5)})
    vgg13, alex = (0, 2, 5, 7, 10, 12, 15, 17, 20, 22), (0, 3, 6, 8, 10)
    for convs, linears in ((vgg13, (0, 3, 6)), (alex, (1, 4, 6))):
        names = [*(f"features.{n}" for n in convs), *(f"classifier.{n}" for n in linears)]
        with pytest.raises(ValueError, match="keys of no network known"):
            load_weights({f"{name}.{kind}": torch.zeros(1) for name in names for kind in ("weight", "bias")})


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_wrappers_are_taken_off(suffix, tmp_path):
    network = randomised(DSN(6, 1))
    other = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    parallel = renamed(network, lambda key: f"module.{key}")
    for content in (
        {"params": other, "params_ema": parallel},
        {"params": parallel, "iter": 3},
        {"state_dict": {"model": network.state_dict()}, "epoch": 3},
        {"model": parallel},
        parallel,
    ):
        torch.save(content, tmp_path / f"a{suffix}")
        assert_same(load_weights(tmp_path / f"a{suffix}"), network, IMAGE)


def test_half_precision_files_become_fp32():
    network = randomised(DSN(6, 1)).half()
    loaded = load_weights(network.state_dict())
    assert all(value.dtype is torch.float32 for value in loaded.state_dict().values())
    assert_same(loaded, network.float(), IMAGE)


@pytest.mark.parametrize(
    "network",
    [
        RRDBNet(6, 2, 3),
        DSN(6, 1),
        DeResNet(6, 1),
        PatchDiscriminator(9, 4),
        Encoder(6),
        Decoder(6, 1, 3),
        USRDAGenerator(6, 2, 1, 1, 3),
        VGGDiscriminator(3, 32, 2, norm="none"),
    ],
)
def test_every_key_and_shape_must_fit(network):
    state = network.state_dict()
    first, *_, last = state
    for broken in (
        {key: value for key, value in state.items() if key != last},
        {**state, last: torch.zeros(7)},
        {**state, "extra.weight": torch.zeros(1)},
        {**state, first: torch.zeros(7)},
    ):
        with pytest.raises(ValueError, match=r"^state dict: [^\n]*(" + "|".join((last, first, "extra.weight")) + ")"):
            load_weights(broken)
    if isinstance(network, RRDBNet):
        with pytest.raises(ValueError, match=r"RRDBNet takes 3 \(x4\), 12 \(x2\) or 48 \(x1\) channels, conv_first"):
            load_weights({**state, "conv_first.weight": torch.zeros(6, 5, 3, 3)})


def test_unknown_keys_are_named_and_so_are_the_known_families():
    with pytest.raises(ValueError, match=r"RRDBNet \(old-arch\), DSN, .*: a0, a1, a2, a3, a4 and 2 more$"):
        load_weights({f"a{n}": torch.zeros(1) for n in range(7)})
    with pytest.raises(ValueError, match="none at all"):
        load_weights({})
    with pytest.raises(ValueError, match="entry 'epoch' is not a tensor but a int"):
        load_weights({**DSN(6, 1).state_dict(), "epoch": 3})


class Code:
    """A pickle that would run something when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickled_code_does_not_run(tmp_path):
    for name, write in {
        "zip.pth": torch.save,
        "legacy.tar": partial(torch.save, _use_new_zipfile_serialization=False),
        "pickle.pt": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    }.items():
        write({"params": DSN(4, 1).state_dict(), "other": Code(tmp_path / "ran")}, tmp_path / name)
        with pytest.raises(ValueError, match=rf"^[^\n]*{name}: no weights can be read[^\n]*$"):
            load_weights(tmp_path / name)
        assert not (tmp_path / "ran").exists()


def test_files_that_cannot_be_read(tmp_path):
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"a{suffix}"
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            load_weights(path)
        save_weights(DSN(4, 1), path)
        whole = path.read_bytes()
        for content in (b"", b"not weights", whole[: len(whole) // 2]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: no weights can be read[^\n]*$"):
                load_weights(path)
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    with pytest.raises(OSError, match=re.escape(str(folder))):
        load_weights(folder)


def test_files_that_hold_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"a\.bin: weights files end in \.safetensors, \.pth, \.pt, \.tar"):
        load_weights(tmp_path / "a.bin")
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: holds a list, not a state dict"):
        load_weights(tmp_path / "a.pth")
    for config in ("[1]", "no JSON", '{"scale": 3}'):
        save_file(DSN(4, 1).state_dict(), tmp_path / "a.safetensors", metadata={"srkernels": config})
        with pytest.raises(ValueError, match=r"a\.safetensors: "):
            load_weights(tmp_path / "a.safetensors")


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.pth, got .*a\.pt$"):
        save_weights(DSN(4, 1), tmp_path / "a.pt")
    for network, family in ((RRDBNet(4, 1, 4), "esrgan"), (DSN(4, 1), "kair")):
        with pytest.raises(ValueError, match=f"family must be one of basicsr, kair, old-arch, .*{family}"):
            save_weights(network, tmp_path / "a.pth", family=family)
    assert not [*tmp_path.iterdir()]


def old_arch_of(doublings: int) -> Callable[[str], str]:
    """For two blocks; the names that a tail of `doublings` gives the last convolutions."""
    renumbered = {"model.8.": f"model.{2 + 3 * doublings}.", "model.10.": f"model.{4 + 3 * doublings}."}

    def rename(key: str) -> str:
        key = old_arch(key)
        return next((key.replace(old, new) for old, new in renumbered.items() if key.startswith(old)), key)

    return rename


@pytest.mark.parametrize(("scale", "doublings"), [(1, 0), (2, 1)])
@pytest.mark.parametrize("family", ["basicsr", "kair", "old-arch"])
def test_rrdbnet_that_enlarges_less_than_four_times(scale, doublings, family, tmp_path):
    """KAIR's x2 has no upconv2, ESRGAN's old x2 and x1 have one upsampling or none."""
    network = randomised(RRDBNet(6, 2, 3, scale=scale, unshuffle=False))
    rename = {"basicsr": str, "kair": kair, "old-arch": old_arch_of(doublings)}[family]
    theirs = renamed(network, rename)
    assert sum(".3." in key or "upconv" in key or "conv_up" in key for key in theirs) >= 2 * doublings
    assert_same(load_weights(theirs), network, IMAGE)
    save_weights(network, tmp_path / "a.pth", family=family)
    assert torch.load(tmp_path / "a.pth", weights_only=True)["params"].keys() == theirs.keys()
    assert network(IMAGE).shape[-1] == scale * IMAGE.shape[-1]


def test_prefixes_of_wrapped_networks_are_taken_off_wherever_they_stand():
    network = randomised(USRDAGenerator(6, 2, 1, 1, 3))
    for rename in (
        "module._orig_mod.module._orig_mod.".__add__,
        "_orig_mod.module.".__add__,
        lambda key: re.sub(r"^(\w+)\.", r"\1._orig_mod.module.", key),
        lambda key: key if "decoder_t" in key else f"_orig_mod.{key}",
    ):
        assert_same(load_weights(renamed(network, rename)), network, IMAGE)
    with pytest.raises(ValueError, match=r"two entries are named encoder\.conv_featmap\.0\.weight"):
        load_weights({**renamed(network, "module.".__add__), **network.state_dict()})


@pytest.mark.parametrize("features", [16, 12, 3])
def test_decoders_of_another_width_than_their_encoder(features, tmp_path):
    """The unofficial code with --n_hidden_feats: its decoders stay as wide as they are."""
    encoder = randomised(Encoder(features, 3))
    decoders = [randomised(Decoder(8, 1, 3, scale=scale, in_channels=features)) for scale in (4, 1)]
    names = ("model_Enc", "model_Dec_SR", "model_Dec_Id")
    parts = {name: part.state_dict() for name, part in zip(names, (encoder, *decoders), strict=True)}
    torch.save({"epoch": 1, **parts}, tmp_path / "a.pth")
    assert_same(load_weights(tmp_path / "a.pth", part="decoder_sr"), decoders[0], torch.rand(1, features, 8, 8))
    generator = load_weights(tmp_path / "a.pth")
    with torch.no_grad():
        assert torch.equal(generator(IMAGE), decoders[0](encoder(IMAGE)))
    assert generator.sizes["decoder_feat"] == 8
    save_weights(generator, tmp_path / "b.safetensors")
    assert_same(load_weights(tmp_path / "b.safetensors"), generator, IMAGE)
    if features == 16:  # alone, 3 and 12 channels are those of pictures
        assert_same(load_weights(decoders[1].state_dict()), decoders[1], torch.rand(1, features, 8, 8))


def with_entry(value: object, *, key: str = "model.0.weight") -> dict[str, object]:
    return {**DSN(4, 1).state_dict(), key: value}


def test_what_stands_beside_tensors_is_named(tmp_path):
    torch.save({"params": DSN(4, 1).state_dict(), "psnr": np.float64(30)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: no weights can be read: it pickles a numpy[\w.]+scalar beside its"):
        load_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1).expand(4, 10**6, 10**5, 3), r"claims to be \(4, 1000000, 100000, 3\), but only 4 bytes"),
        (torch.sparse_coo_tensor(size=(10**6, 10**6), check_invariants=True), "no plain tensor .* torch.sparse_coo"),
        (torch.zeros(4, 3, 5, 5, device="meta"), "is a meta tensor, without data"),
        (torch.zeros(4, 3, 5, 5, dtype=torch.complex64), "no plain tensor of real numbers: .*torch.complex64"),
    ],
    ids=["expanded", "sparse", "meta", "complex"],
)
def test_tensors_that_no_network_can_take_are_refused_by_name(value, message, tmp_path):
    torch.save(with_entry(value), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 2**16
    with pytest.raises(ValueError, match=rf"a\.pth: entry 'model\.0\.weight' .*{message}"):
        load_weights(tmp_path / "a.pth")


def test_shapes_alone_allocate_nothing():
    """Tensors of no elements claim a network of terabytes, and hold all of it."""
    with pytest.raises(ValueError, match="missing, unknown or of another shape"):
        load_weights(with_entry(torch.zeros(10**6, 3, 5, 0)))


def test_wrappers_without_end_and_records_that_are_nonsense(tmp_path):
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="entry 'model' is not a tensor but a dict"):
        load_weights(tmp_path / "a.pth")
    record = json.dumps({"network": "DSN", "scale": "4"})
    for config in ("[" * 100_000, record, '{"scale": []}', '{"scale": 1e308}'):
        save_file(DSN(4, 1).state_dict(), tmp_path / "a.safetensors", metadata={"srkernels": config})
        with pytest.raises(ValueError, match=r"^[^\n]*a\.safetensors: [^\n]*$"):
            load_weights(tmp_path / "a.safetensors")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    (tmp_path / "b.pth").symlink_to("b.pth")
    for name, message in (("a.pth", "not a regular file"), ("b.pth", "Too many levels of symbolic links")):
        with pytest.raises(OSError, match=message):
            load_weights(tmp_path / name)
