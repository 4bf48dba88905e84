"""`python -m models upscale` with small networks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.__main__ import main as models
from models.commands.upscale import UpscaleOptions, main, run_upscale
from models.data import InputError, imresize, read_image, read_profiled, to_pixels, to_tensor, write_picture
from models.evaluate.tiling import enlarge_tiled, shrink_tiled
from models.networks import DSN, DeResNet, RRDBNet, save_weights


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are computed faster without company, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def network(scale: int) -> RRDBNet:
    """One whose output, unlike that of fresh weights, fills [0, 1]."""
    torch.manual_seed(scale)
    made = RRDBNet(4, 1, 4, scale=scale).eval()
    with torch.no_grad():
        out = made(torch.rand(1, 3, 16, 16))
        mean = out.mean((0, 2, 3))
        contrast = 0.2 / (out - mean[:, None, None]).std()
        made.conv_last.bias.copy_(0.5 - contrast * (mean - made.conv_last.bias))
        made.conv_last.weight *= contrast
    return made


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(network(4), tmp_path / "x4.safetensors")
    return tmp_path / "x4.safetensors"


@torch.inference_mode()
def at_once(made: RRDBNet, pixels: np.ndarray) -> np.ndarray:
    return to_pixels(made(to_tensor(pixels)[None])[0], pixels.dtype.type)


def reach_3(image: Tensor) -> Tensor:
    """x2, of a reach of 3 pixels, exact in fp32: it sums, in multiples of 1/8, and wraps."""
    levels = (image * 255).round()
    return (
        (F.avg_pool2d(F.pad(levels, (3,) * 4), 7, 1, divisor_override=1) % 256 / 255)
        .repeat_interleave(2, -1)
        .repeat_interleave(2, -2)
    )


def test_tiles_with_overlap_give_what_the_whole_gives():
    pixels = noise(37, 54, 3)
    whole = enlarge_tiled(reach_3, 2, pixels, tile=64, overlap=0)
    assert whole.shape == (74, 108, 3)
    for tile in (5, 8, 36):
        for overlap in (3, 100):
            np.testing.assert_array_equal(enlarge_tiled(reach_3, 2, pixels, tile, overlap), whole)
    assert (enlarge_tiled(reach_3, 2, pixels, 8, 1) != whole).any()


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_a_network_in_tiles(scale):
    # 17 convolutions reach 17 places of the trunk, which are 4 / scale pixels each, and those behind it 2 more.
    reach = 19 * 4 // scale
    made, pixels = network(scale), noise(2 * reach + 16, 2 * reach + 28, 3, dtype=np.uint16)
    whole = at_once(made, pixels)
    assert whole.std() > 5000
    np.testing.assert_array_equal(enlarge_tiled(made, scale, pixels, 2 * reach + 28, 0), whole)
    # oneDNN sums in another order for another size.
    assert np.abs(enlarge_tiled(made, scale, pixels, reach, reach).astype(int) - whole).max() <= 1
    assert np.abs(enlarge_tiled(made, scale, pixels, reach, 0).astype(int) - whole).max() > 100


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [4, 2, 1])
def test_any_size_and_kind_of_picture(scale, dtype):
    made = network(scale)
    for height, width in ((1, 1), (3, 2), (9, 14)):
        for channels in (1, 3, 4):
            pixels = noise(height, width, channels, dtype=dtype)
            larger = enlarge_tiled(made, scale, pixels, 8, 4)
            assert larger.shape == (scale * height, scale * width, channels) and larger.dtype == dtype
    np.testing.assert_array_equal(enlarge_tiled(made, scale, noise(12, 16, 3), 16, 0), at_once(made, noise(12, 16, 3)))
    # Rows and columns that are added to fill up a fold do not move what is there.
    np.testing.assert_array_equal(
        enlarge_tiled(lambda x: F.interpolate(x, scale_factor=scale), scale, noise(9, 14, 3), 5, 0),
        noise(9, 14, 3).repeat(scale, 0).repeat(scale, 1),
    )


def test_alpha_is_enlarged_bicubically_across_tiles():
    pixels = noise(20, 22, 4)
    larger = enlarge_tiled(lambda x: F.interpolate(x, scale_factor=4), 4, pixels, 8, 4)
    expected = imresize(pixels[..., 3] / 255, 4).clip(0, 1) * 255
    assert np.abs(larger[..., 3] - expected).max() <= 0.5 + 1e-4


def test_a_grey_picture_and_its_colour_copy_agree():
    made, pixels = network(4), noise(8, 8, 1)
    colour = enlarge_tiled(made, 4, pixels.repeat(3, 2), 8, 0)
    assert np.abs(enlarge_tiled(made, 4, pixels, 8, 0)[..., 0] - colour.mean(2)).max() <= 1


def test_files_and_folders_on_the_command_line(tmp_path, weights, capsys):
    write_picture(tmp_path / "in" / "a.png", noise(9, 10, 3))
    write_picture(tmp_path / "in" / "b.webp", noise(5, 6, 4))
    write_picture(tmp_path / "in" / "c.png", noise(7, 8, 1, dtype=np.uint16))
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(weights), "--tile", "6"]) == 0
    shapes = {path.name: (read_image(path).shape, read_image(path).dtype) for path in (tmp_path / "out").iterdir()}
    assert shapes == {
        "a.png": ((36, 40, 3), np.uint8),
        "b.png": ((20, 24, 4), np.uint8),
        "c.png": ((28, 32, 1), np.uint16),
    }
    run_upscale(UpscaleOptions(tmp_path / "in" / "a.png", tmp_path / "one.tif", weights, device="cpu"))
    # In channels_last the convolutions sum in another order.
    np.testing.assert_allclose(read_image(tmp_path / "one.tif"), at_once(network(4), noise(9, 10, 3)), rtol=0, atol=1)
    run_upscale(UpscaleOptions(tmp_path / "in" / "a.png", tmp_path / "out", weights, device="cpu", bf16=True))
    assert (
        0 < np.abs(read_image(tmp_path / "out" / "a.png") - read_image(tmp_path / "one.tif").astype(float)).max() < 12
    )
    assert "pictures" in capsys.readouterr().out


def test_what_cannot_be_enlarged_is_refused(tmp_path, weights):
    save_weights(DeResNet(4, 1), tmp_path / "dsn.safetensors")
    one = tmp_path / "in" / "one.png"
    write_picture(one, noise(4, 4, 4))
    write_picture(tmp_path / "twice" / "a.png", noise(4, 4, 3))
    write_picture(tmp_path / "twice" / "a.webp", noise(4, 4, 3))
    out, gone = tmp_path / "out.png", tmp_path / "gone"
    for options, message in (
        (UpscaleOptions(one, out, tmp_path / "dsn.safetensors"), "holds a DeResNet, wanted RRDBNet"),
        (UpscaleOptions(one, out, tmp_path / "gone.pth"), r"--weights: .*gone\.pth"),
        (UpscaleOptions(one, out, one), r"--weights: .*one\.png"),
        (UpscaleOptions(one, out, weights, tile=0), "--tile must be from 1 to 1000000, got 0"),
        (UpscaleOptions(one, out, weights, overlap=-1), "--overlap must be from 0 to 1024, got -1"),
        (UpscaleOptions(gone / "a.png", out, weights), r"gone/a\.png: No such file"),
        (UpscaleOptions(one, tmp_path / "out.jpg", weights), r"\.jpg keeps no 4 channels"),
        (UpscaleOptions(one, tmp_path / "new", weights), "the name must end in one of"),
        (UpscaleOptions(one.parent, weights, weights), "is a file; for the folder"),
        (UpscaleOptions(one, one.parent, weights), "would be written over"),
        (UpscaleOptions(tmp_path / "twice", tmp_path / "new", weights), "two pictures in .*twice are named a"),
    ):
        with pytest.raises(InputError, match=message):
            run_upscale(options)
    assert not out.exists()


@pytest.mark.parametrize("network", [DSN(4, 2, bicubic_skip=True), DeResNet(4, 2, scale=4)])
def test_a_shrunk_picture_has_no_seams(network):
    """Both reach less than 8 LR pixels, and their tiles start on the same phase."""
    image = torch.rand(1, 3, 88, 120)
    with torch.inference_mode():
        whole = network(image)
    torch.testing.assert_close(shrink_tiled(network, 4, image, 9, 8), whole, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(shrink_tiled(network, 4, image, 9, 0), whole, rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    made = network(4)
    made.body[0].rdb1.conv1.bias.data[1] = torch.nan
    save_weights(made, tmp_path / "nan.safetensors")
    write_picture(tmp_path / "a.png", noise(16, 16, 3))
    with pytest.raises(InputError, match=r"--weights: .*nan\.safetensors holds values in body.* not finite"):
        run_upscale(UpscaleOptions(tmp_path / "a.png", tmp_path / "up.png", weights=tmp_path / "nan.safetensors"))


def test_a_picture_that_is_not_finite_is_an_error_and_never_black(tmp_path):
    made = network(4)
    for parameter in made.parameters():
        parameter.data *= 1e30
    save_weights(made, tmp_path / "large.safetensors")
    write_picture(tmp_path / "a.png", noise(16, 16, 3))
    with pytest.raises(InputError, match=r"a\.png: the enlarged picture is not finite"):
        run_upscale(UpscaleOptions(tmp_path / "a.png", tmp_path / "up.png", weights=tmp_path / "large.safetensors"))
    assert not (tmp_path / "up.png").exists()


def test_a_bad_picture_of_a_folder_is_named_and_the_rest_enlarged(tmp_path, weights, capsys):
    for name in ("a", "c"):
        write_picture(tmp_path / "in" / f"{name}.png", noise(16, 16, 3))
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="1 of 3 pictures could not be enlarged"):
        run_upscale(UpscaleOptions(tmp_path / "in", tmp_path / "out", weights=weights))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    assert "b.png: not an image, or damaged" in capsys.readouterr().out.replace("\n", "")


def test_a_colour_profile_goes_from_a_picture_to_its_enlargement(tmp_path, weights, capsys):
    profile = b"\0\0\0\x84testmntr\0\0\0\0RGB XYZ ".ljust(36, b"\0") + b"acsp".ljust(96, b"\0") + bytes(range(200))
    for name in ("a.jpg", "b.webp"):
        write_picture(tmp_path / "in" / name, noise(6, 8, 3), profile)
        run_upscale(UpscaleOptions(tmp_path / "in" / name, tmp_path / name, weights))
        enlarged, kept = read_profiled(tmp_path / name)
        assert enlarged.shape == (24, 32, 3) and kept == profile
    run_upscale(UpscaleOptions(tmp_path / "in" / "a.jpg", tmp_path / "a[x4].tif", weights))
    assert "a[x4].tif is without the colour profile of a.jpg" in capsys.readouterr().out


def test_an_encoders_limit_is_told_before_anything_is_enlarged(tmp_path, weights, monkeypatch):
    write_picture(tmp_path / "wide.png", noise(1, 4096, 3))
    monkeypatch.setattr("models.commands.upscale.enlarge_tiled", lambda *_: pytest.fail("it was enlarged"))
    with pytest.raises(InputError, match=r"out\.webp: 16384 x 4 pixels, \.webp has at most 16383 a side"):
        run_upscale(UpscaleOptions(tmp_path / "wide.png", tmp_path / "out.webp", weights))


def test_what_does_not_fit_into_memory_is_one_line(monkeypatch):
    empty = np.empty

    def small(shape: tuple[int, ...], *options: object, **more: object) -> np.ndarray:
        if shape == (32, 40, 3):
            raise MemoryError
        return empty(shape, *options, **more)

    monkeypatch.setattr(np, "empty", small)
    with pytest.raises(InputError, match="4 times 10 x 8 pixels are too large for the memory"):
        enlarge_tiled(network(4), 4, np.zeros((8, 10, 3), np.uint8), 8, 0)


def test_names_are_shown_as_they_are(tmp_path, weights, capsys):
    names = ("a[x4]", "b[red]", "c :car:", "d\ne", os.fsdecode(b"f\xff"))
    for name in names:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.png").write_bytes(b"no picture")
    write_picture(tmp_path / "in" / "g[green].png", noise(6, 8, 3))
    assert models(["upscale", "--weights", str(weights), str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().out
    for name in ("a[x4]", "b[red]", "c :car:", "d\\ne", "f\\udcff"):
        assert f"error: cannot read the image {tmp_path}/in/{name}.png: not an image" in shown
    assert (tmp_path / "out" / "g[green].png").exists()
