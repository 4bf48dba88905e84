"""Image files and sources, random patches, what becomes of bad images, and the loader."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models import data
from models.data import ArraySource, BadImage, Cached, FolderSource, InputError, MapSource, PatchDataset, Stream

ROOT = Path(__file__).parents[2]


def noise(*shape: int, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def smooth(height: int, width: int) -> np.ndarray:
    return cv2.resize(noise(height // 8, width // 8, 3), (width, height), interpolation=cv2.INTER_CUBIC)


def write(path: Path, pixels: np.ndarray) -> Path:
    data.write_picture(path, pixels)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_comes_back_as_it_was_written(tmp_path, dtype, channels):
    pixels = noise(20, 30, channels, dtype=dtype)
    pixels[pixels == 0] = 1  # WebP forgets the colour of what is fully transparent
    for suffix in (".png", ".tif", *([".webp"] if channels > 1 and dtype == np.uint8 else [])):
        back = data.read_image(write(tmp_path / "made" / f"a{suffix}", pixels))
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, pixels)
    rgb = data.read_photo(tmp_path / "made" / "a.png").pixels
    assert rgb.shape == (20, 30, 3) and rgb.dtype == np.uint8
    assert np.abs(rgb / 255 - data.as_rgb(pixels) / np.iinfo(dtype).max).max() <= 0.5 / 255 + 1e-9
    assert [path.name for path in (tmp_path / "made").iterdir() if path.name.startswith(".")] == []


def test_red_is_first_in_the_file_and_in_the_tensor(tmp_path):
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert cv2.imread(str(write(tmp_path / "red.png", red)))[0, 0].tolist() == [0, 0, 255]
    assert data.to_tensor(data.read_image(tmp_path / "red.png"))[:, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("suffix", "pixels", "message"),
    [
        (".jpg", noise(4, 4, 4), "keeps no 4 channels of uint8, .png does"),
        (".webp", noise(4, 4, 3, dtype=np.uint16), "keeps no 3 channels of uint16"),
        (".gif", noise(4, 4, 3), "must end in one of .png"),
    ],
)
def test_a_format_that_would_lose_something_is_refused(tmp_path, suffix, pixels, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / f"a{suffix}", pixels)


def test_a_jpeg_is_turned_upright(tmp_path):
    pixels = smooth(40, 64)
    plain = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
    # One EXIF entry, orientation 6: to be turned by 90 degrees clockwise.
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    turned = data.decode(plain[:2] + exif + plain[2:], "turned")
    np.testing.assert_array_equal(turned, np.rot90(data.decode(plain, "plain"), -1))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_a_file_cut_short_is_refused_by_name(tmp_path, suffix):
    path = write(tmp_path / f"half{suffix}", smooth(80, 96))
    encoded = path.read_bytes()
    for kept in (0, len(encoded) // 2, len(encoded) - 4):
        path.write_bytes(encoded[:kept])
        with pytest.raises(InputError, match=rf"cannot read the image .*half{suffix}: .*\({kept} bytes\)"):
            data.read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("extra", [1, 100, 70_000])
def test_bytes_behind_a_picture_are_no_damage(tmp_path, suffix, extra):
    """Phones write films and depth maps there."""
    path = write(tmp_path / f"moving{suffix}", smooth(80, 96))
    encoded, pixels = path.read_bytes(), data.read_image(path)
    behind = np.random.default_rng(extra).integers(0, 256, extra, dtype=np.uint8).tobytes()
    path.write_bytes(encoded + behind)
    np.testing.assert_array_equal(data.read_image(path), pixels)
    path.write_bytes(encoded[: len(encoded) // 2] + (b"" if suffix == ".webp" else bytes(extra)))
    with pytest.raises(InputError, match=f"moving{suffix}"):
        data.read_image(path)


def test_the_end_of_a_thumbnail_is_not_that_of_its_picture(tmp_path):
    pixels = cv2.imencode(".jpg", smooth(80, 96))[1].tobytes()
    thumbnail = cv2.imencode(".jpg", smooth(8, 8))[1].tobytes()
    segment = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = pixels[:2] + segment + pixels[2:]
    assert data.decode(whole, "whole").shape == (80, 96, 3)
    with pytest.raises(InputError, match="cut short"):
        data.decode(whole[: len(whole) // 2], "half")


@pytest.mark.parametrize(
    "options", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]], ids=str
)
def test_every_kind_of_scan_is_followed_to_its_end(options):
    encoded = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8), options)[
        1
    ].tobytes()
    assert data.decode(encoded + b"behind", "whole").shape == (64, 80, 3)
    for kept in (len(encoded) - 1, len(encoded) // 2, 100):
        with pytest.raises(InputError, match="cut short"):
            data.decode(encoded[:kept], "cut")


def test_other_files_are_refused_by_name(tmp_path):
    damaged = bytearray(write(tmp_path / "damaged.png", smooth(80, 96)).read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "damaged.png").write_bytes(damaged)
    cv2.imwrite(str(tmp_path / "float.tif"), np.zeros((4, 4), np.float32))
    for name, message in (
        ("damaged.png", "not an image, or damaged"),
        ("float.tif", "float32 values, expected 8 or 16 bits"),
        ("gone.png", "No such file"),
    ):
        with pytest.raises(InputError, match=f"{name}: {message}"):
            data.read_image(tmp_path / name)


def test_tensors_and_back():
    for dtype in (np.uint8, np.uint16):
        pixels = noise(5, 6, 3, dtype=dtype)
        tensor = data.to_tensor(pixels)
        assert tensor.dtype == torch.float32 and 0 <= tensor.min() <= tensor.max() <= 1
        np.testing.assert_array_equal(data.to_pixels(tensor, dtype), pixels)
    assert data.to_pixels(torch.tensor([[[-1.0, 0.5, 2.0]]])).ravel().tolist() == [0, 128, 255]
    values = np.random.default_rng(0).standard_normal((2, 3, 1)).astype(np.float32)
    tensor = data.to_tensor(values)
    np.testing.assert_array_equal(tensor[0], values[..., 0])
    tensor.zero_()
    assert values.all(), "the tensor must be a copy: sources hand out what they keep"


def test_a_folder_is_read_in_order_without_what_is_hidden_or_no_image(tmp_path):
    for name in ("b.png", "a.webp", ".c.png"):
        write(tmp_path / name, noise(4, 5, 3))
    (tmp_path / "notes.txt").write_text("")
    source = data.open_source(tmp_path)
    assert source.names == ["a", "b"] and len(source) == 2
    assert source.label(1) == str(tmp_path / "b.png")
    (tmp_path / "empty").mkdir()
    for folder, message in (("empty", "no image .* in the folder"), ("gone", "no such folder")):
        with pytest.raises(InputError, match=message):
            FolderSource(tmp_path / folder)


def test_maps_of_every_published_shape(tmp_path):
    values = np.random.default_rng(0).random((6, 8))
    for index, stored in enumerate((values, values[None].astype(np.float32), values[None, None])):
        np.save(tmp_path / f"{index}.npy", stored)
    source = MapSource(tmp_path)
    for index in range(3):
        read = source.read(index)
        assert read.shape == (6, 8, 1) and read.dtype == np.float32
        np.testing.assert_array_equal(read[..., 0], values.astype(np.float32))
    assert isinstance(source.read(1), np.memmap)
    np.save(tmp_path / "0.npy", np.zeros((2, 6, 8)))
    (tmp_path / "1.npy").write_bytes(b"no array")
    for index, message in ((0, r"0\.npy: float64 \(2, 6, 8\), expected"), (1, r"1\.npy: not a \.npy file")):
        with pytest.raises(InputError, match=message):
            source.read(index)


def test_arrays_must_be_pictures():
    with pytest.raises(ValueError, match="2 names for 1 arrays"):
        ArraySource(["a", "b"], [noise(4, 4, 3)])
    with pytest.raises(ValueError, match="a is \\(4, 4\\)"):
        ArraySource(["a"], [noise(4, 4)])


class Counted(ArraySource):
    """Counts its reads; `source.reads` is shared with nobody."""

    reads = 0

    def read(self, index: int) -> np.ndarray:
        self.reads += 1
        return super().read(index)


def test_a_cache_holds_what_was_read_last_within_its_limit():
    images = [noise(10, 10, 3, seed=index) for index in range(4)] + [noise(40, 40, 3)]
    counted = Counted("abcde", images)
    cached = Cached(counted, limit_bytes=2 * 300)
    for index, reads in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4), (4, 5), (4, 6), (1, 6)):
        np.testing.assert_array_equal(cached.read(index), images[index])
        assert counted.reads == reads, index
    assert len(cached) == 5 and cached.label(3) == "d"
    assert len(pickle.dumps(cached)) < len(pickle.dumps(counted)) + 300


def test_other_images_are_told_from_these_by_name_and_size_wherever_they_are(tmp_path):
    for index in range(3):
        write(tmp_path / "images" / f"{index}.png", noise(8, 8, 3, seed=index))
        np.save(tmp_path / "images" / f"{index}.npy", np.zeros((4, 4), np.float32))

    def marks() -> tuple[str, ...]:
        (folder,) = tmp_path.iterdir()
        files, maps = FolderSource(folder), MapSource(folder)
        return tuple(map(data.fingerprint, (files, Cached(files, 10**6), data.Selected(files, ("0", "2")), maps)))

    first = marks()
    assert first[0] == first[1] != first[2] and first[0].startswith("3 images ")
    (tmp_path / "images").rename(tmp_path / "moved")
    assert marks() == first
    write(tmp_path / "moved" / "0.png", noise(8, 9, 3))
    np.save(tmp_path / "moved" / "0.npy", np.zeros((4, 5), np.float32))
    assert not set(marks()) & set(first)
    write(tmp_path / "moved" / "0.png", noise(8, 8, 3))
    (tmp_path / "moved" / "2.png").rename(tmp_path / "moved" / "02.png")
    assert marks()[0] != first[0]
    arrays = ArraySource(["a"], [noise(4, 4, 3)])
    assert data.fingerprint(arrays) != data.fingerprint(ArraySource(["a"], [noise(4, 5, 3)]))


def coordinates(height: int, width: int, cell: int, number: int) -> np.ndarray:
    """A map, as a float image, that tells of every pixel which picture and which cell it is from."""
    rows, columns = np.indices((height * cell, width * cell)) // cell
    return (number * 1e4 + rows * 100 + columns)[..., None].astype(np.float32)


def pairs(count: int = 3, augment: bool = True) -> Stream:
    names = [f"{index}" for index in range(count)]
    lr, hr, weight = (
        ArraySource(names, [coordinates(7 + index, 9, cell, index) for index in range(count)]) for cell in (2, 8, 1)
    )
    # Partners are found by name, not by place.
    backwards = ArraySource(names[::-1], [hr.read(index) for index in range(count)][::-1])
    return Stream(("lr", "hr", "weight"), (lr, backwards, weight), (8, 32, 4), augment)


def test_patches_of_one_place_stay_together_through_every_turn():
    dataset = PatchDataset([pairs()], seed=3)
    turned = Counter()
    for n in range(300):
        sample = dataset[n]
        assert {name: tuple(sample[name].shape) for name in ("lr", "hr", "weight")} == {
            "lr": (1, 8, 8),
            "hr": (1, 32, 32),
            "weight": (1, 4, 4),
        }
        torch.testing.assert_close(sample["lr"][:, ::2, ::2], sample["weight"], rtol=0, atol=0)
        torch.testing.assert_close(sample["hr"][:, ::8, ::8], sample["weight"], rtol=0, atol=0)
        (here, right), (below, _) = sample["weight"][0, :2, :2].tolist()
        turned[int(below - here), int(right - here)] += 1
        assert sample["files"] == [str(int(sample["weight"].min()) // 10000)] * 3
    assert set(turned) == {(a * x, b * y) for a in (1, -1) for b in (1, -1) for x, y in ((100, 1), (1, 100))}
    assert min(turned.values()) > 15
    upright = PatchDataset([pairs(augment=False)], seed=3)
    assert all((upright[n]["weight"].diff(dim=1) == 100).all() for n in range(20))


def test_every_picture_once_per_epoch_and_every_position_equally_often():
    source = ArraySource("abc", [coordinates(7, 6, 1, number) for number in range(3)])
    dataset = PatchDataset([Stream(("x",), (source,), (5,))], seed=0)
    drawn = [dataset[n] for n in range(1800)]
    for epoch in range(0, 1800, 3):
        assert sorted(sample["files"][0] for sample in drawn[epoch : epoch + 3]) == ["a", "b", "c"]
    assert len({tuple(sample["files"][0] for sample in drawn[n : n + 3]) for n in range(0, 60, 3)}) > 1
    corners = Counter(int(sample["x"].min()) for sample in drawn)
    assert len(corners) == 3 * 3 * 2
    # 100 each are expected; five standard deviations.
    assert all(abs(count - 100) < 50 for count in corners.values())


def test_a_sample_depends_on_seed_and_number_alone():
    dataset = PatchDataset([pairs()], seed=1)
    again = pickle.loads(pickle.dumps(dataset))
    for n in (5, 0, 10**12, 2**40 + 1):
        a, b = dataset[n], again[n]
        assert all(torch.equal(a[name], b[name]) for name in ("lr", "hr", "weight"))
    other = PatchDataset([pairs()], seed=2)
    assert any(not torch.equal(dataset[n]["lr"], other[n]["lr"]) for n in range(4))
    assert any(not torch.equal(dataset[n]["lr"], dataset[n + 3]["lr"]) for n in range(4))


def test_streams_walk_through_the_same_pictures_in_orders_of_their_own():
    source = ArraySource([str(index) for index in range(50)], [coordinates(9, 9, 1, index) for index in range(50)])
    dataset = PatchDataset([Stream(("a",), (source,), (4,)), Stream(("b",), (source,), (4,))], seed=0)
    samples = [dataset[n] for n in range(50)]
    assert sum(sample["files"][0] == sample["files"][1] for sample in samples) < 10
    assert dataset.total == 50


def test_images_are_rgb_in_the_unit_range_whatever_the_file(tmp_path):
    deep, clear = noise(20, 20, 3, dtype=np.uint16), noise(20, 20, 4, seed=1)
    write(tmp_path / "deep.png", deep)
    write(tmp_path / "clear.png", clear)
    write(tmp_path / "grey.png", noise(20, 20, 1))
    dataset = PatchDataset([Stream(("x",), (FolderSource(tmp_path),), (20,), augment=False)], 0, grey_images="convert")
    found = {Path(sample["files"][0]).stem: sample["x"] for sample in (dataset[n] for n in range(3))}
    np.testing.assert_allclose(found["deep"], deep.transpose(2, 0, 1) / 65535, atol=1e-7)
    np.testing.assert_allclose(found["clear"], clear[..., :3].transpose(2, 0, 1) / 255, atol=1e-7)
    assert torch.equal(found["grey"][0], found["grey"][1]) and torch.equal(found["grey"][0], found["grey"][2])


def test_partners_are_required_by_name():
    few, many = ArraySource("ab", [noise(8, 8, 3)] * 2), ArraySource("abc", [noise(8, 8, 3)] * 3)
    assert len(Stream(("lr", "hr"), (few, many), (4, 4))) == 2
    with pytest.raises(InputError, match="no image of hr is named c, to go with c"):
        Stream(("lr", "hr"), (many, few), (4, 4))
    twice = ArraySource("aba", [noise(8, 8, 3)] * 3)
    with pytest.raises(InputError, match="two images of hr are named a"):
        Stream(("lr", "hr"), (few, twice), (4, 4))
    with pytest.raises(ValueError, match="a source and a positive size per field"):
        Stream(("lr", "hr"), (few, many), (4,))
    with pytest.raises(ValueError, match="a name of its own"):
        PatchDataset([Stream(("x",), (few,), (4,)), Stream(("x",), (many,), (4,))], 0)


@pytest.fixture
def mixed(tmp_path) -> Path:
    for index in range(6):
        write(tmp_path / f"good{index}.png", noise(24, 24, 3, seed=index))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    write(tmp_path / "tiny.png", noise(24, 15, 3))
    write(tmp_path / "grey.png", noise(24, 24, 1))
    return tmp_path


def dataset_of(folder: Path, **policy: str) -> PatchDataset:
    return PatchDataset([Stream(("x",), (FolderSource(folder),), (16,))], 0, **policy)


def test_a_bad_image_gives_way_to_the_next_good_one_and_is_named(mixed):
    dataset = dataset_of(mixed)
    samples = [dataset[n] for n in range(9)]
    assert all(Path(sample["files"][0]).stem.startswith("good") for sample in samples)
    found = {Path(bad.label).name: bad.reason for sample in samples for bad in sample["bad"]}
    assert found == {
        "broken.jpg": f"cannot read the image {mixed / 'broken.jpg'}: not an image, or damaged (10 bytes)",
        "tiny.png": f"the image {mixed / 'tiny.png'} is too small: 15 x 24 pixels, 16 are needed",
        "grey.png": f"the image {mixed / 'grey.png'} is grey",
    }
    again = dataset_of(mixed)
    assert [again[n]["files"] for n in range(9)] == [sample["files"] for sample in samples]
    converted = dataset_of(mixed, grey_images="convert")
    assert any(Path(converted[n]["files"][0]).stem == "grey" for n in range(9))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"bad_images": "stop", "grey_images": "convert"}, "tiny.png is too small|broken.jpg: not an image"),
        ({"grey_images": "stop"}, "grey.png is grey"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_stopping_at_once_names_the_image_in_one_line(mixed, policy, message, workers):
    with pytest.raises(InputError, match=message) as caught:
        list(data.make_loader(dataset_of(mixed, **policy), 3, 0, 3, workers=workers))
    assert "\n" not in str(caught.value)


def test_a_source_without_a_usable_image_is_refused(tmp_path):
    write(tmp_path / "tiny.png", noise(4, 4, 3))
    with pytest.raises(InputError, match=r"no usable image of x; the last one: the image .*tiny\.png is too small"):
        dataset_of(tmp_path)[0]


def test_partners_of_other_scales_do_not_fit():
    lr, hr = ArraySource("ab", [noise(10, 11, 3)] * 2), ArraySource("ab", [noise(40, 44, 3), noise(60, 66, 3)])
    dataset = PatchDataset([Stream(("lr", "hr"), (lr, hr), (4, 16))], 0)
    (bad,) = {bad for n in range(2) for bad in dataset[n]["bad"]}
    assert bad == BadImage(
        "b", "these images do not fit together, patches being (4, 16) pixels wide: b 11 x 10, b 66 x 60"
    )
    # 43 pixels at x1/4 are 10 or 11.
    for side in (10, 11):
        rounded = ArraySource("a", [noise(43, 43, 3)])
        stream = Stream(("lr", "hr"), (ArraySource("a", [noise(side, side, 3)]), rounded), (4, 16))
        assert PatchDataset([stream], 0)[0]["bad"] == []


def test_too_many_bad_images_stop_the_run():
    said: list[str] = []
    bad = data.BadImages(total=300, max_bad=0.01, say=said.append)
    for name in "abcab":
        bad.note([BadImage(name, f"{name} is grey")])
    assert said == ["left out: a is grey", "left out: b is grey", "left out: c is grey"]
    with pytest.raises(InputError, match=r"4 of 300 images cannot be used, more than the 1\.0% .* d is grey"):
        bad.note([BadImage("a", "a is grey"), BadImage("d", "d is grey")])


def same(a: list[data.patches.Batch], b: list[data.patches.Batch]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys()
        and all(torch.equal(x[k], y[k]) if isinstance(x[k], torch.Tensor) else x[k] == y[k] for k in x)
        for x, y in zip(a, b, strict=True)
    )


def test_workers_ranks_and_resuming_change_nothing(mixed):
    dataset = PatchDataset([pairs(), Stream(("x",), (FolderSource(mixed),), (16,))], seed=0)
    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    whole = list(data.make_loader(dataset, 4, 0, 5))
    assert whole[0]["lr"].shape == (4, 1, 8, 8) and whole[0]["x"].shape == (4, 3, 16, 16)
    assert len(whole[0]["files"]) == 16 and any(batch["bad"] for batch in whole)
    assert same(whole, list(data.make_loader(dataset, 4, 0, 5, workers=2)))
    assert same(whole[3:], list(data.make_loader(dataset, 4, 3, 2)))
    ranks = [list(data.make_loader(dataset, 4, 0, 5, rank=rank, world_size=2)) for rank in range(2)]
    for step, (first, second) in enumerate(zip(*ranks, strict=True)):
        assert torch.equal(torch.cat((first["hr"], second["hr"])), whole[step]["hr"])
        assert first["files"] + second["files"] == whole[step]["files"]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_steps_are_counted_without_end():
    (batch,) = data.make_loader(PatchDataset([pairs()], seed=0), 2, 10**12, 1)
    assert batch["lr"].shape == (2, 1, 8, 8)


def test_a_batch_must_be_shared_out_equally():
    with pytest.raises(ValueError, match="a batch of 5 cannot be shared out equally to 2"):
        data.make_loader(PatchDataset([pairs()], seed=0), 5, 0, 1, world_size=2)


class Hanging(ArraySource):
    """Its second read hears no signal and never ends, as on a file system that is gone."""

    reads = 0

    def read(self, index: int) -> np.ndarray:
        self.reads += 1
        if self.reads > 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGALRM})
            time.sleep(1000)
        return super().read(index)


@pytest.mark.thorough
def test_a_worker_that_hangs_ends_with_its_loader():
    dataset = PatchDataset([Stream(("hr",), (Hanging(["a"], [noise(8, 8, 3)]),), (8,))], seed=0)
    batches = data.make_loader(dataset, 1, 0, 2, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    batches.close()
    worker.join(timeout=30)  # the signal is on its way
    assert worker.exitcode == -signal.SIGKILL


@pytest.mark.thorough
def test_a_killed_worker_is_noticed_where_a_batch_is_wanted_and_nowhere_else():
    """PyTorch would raise an error from a signal, in the midst of whatever is done meanwhile."""
    batches = data.make_loader(PatchDataset([pairs()], seed=0), 2, 0, 50, workers=2)
    next(batches)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join(timeout=30)
    with pytest.raises(data.patches.ReaderKilled, match="a process that reads pictures was killed"):
        list(batches)
    assert not multiprocessing.active_children()


@pytest.mark.thorough
def test_a_worker_killed_before_it_is_listed_is_noticed_too(monkeypatch):
    listed, calls = multiprocessing.active_children, []

    def kill_and_list():
        calls.append(None)
        if len(calls) == 2:  # behind the fork
            for worker in listed():
                worker.kill()
                worker.join(timeout=30)
        return listed()

    monkeypatch.setattr(data.patches.multiprocessing, "active_children", kill_and_list)
    with pytest.raises(data.patches.ReaderKilled, match="a process that reads pictures was killed"):
        list(data.make_loader(PatchDataset([pairs()], seed=0), 2, 0, 50, workers=2))


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()], ids=repr)
def test_a_connection_that_a_killed_worker_breaks_off_tells_of_it(error):
    """Tensors come through sockets, which may end before the process is known to have."""

    class Loader:
        num_workers = 1

        def __iter__(self):
            self.reader = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            self.reader.start()
            return self.batches()

        def batches(self):
            self.reader.kill()
            raise error
            yield {}

    batches = data.patches._run(Loader())
    with pytest.raises(data.patches.ReaderKilled, match="a process that reads pictures was killed"):
        next(batches)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_workers_outlive_the_signals_that_ask_a_run_to_stop():
    batches = iter(data.make_loader(PatchDataset([pairs()], seed=0), 2, 0, 12, workers=1))
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    assert len(list(batches)) == 11


@pytest.mark.long
def test_a_worker_starts_after_opencv_has_worked_in_its_parent(tmp_path):
    """A forked process waits for ever for OpenCV's threads, if its parent had any. And ends when its parent does."""
    write(tmp_path / "a.png", noise(64, 64, 3))
    program = f"""
import cv2, numpy, pathlib
from models.data import FolderSource, PatchDataset, Stream, make_loader
cv2.GaussianBlur(numpy.ones((2000, 2000, 3), numpy.float32), (0, 0), 3)
dataset = PatchDataset([Stream(("x",), (FolderSource(pathlib.Path({str(tmp_path)!r})),), (16,))], 0)
print(len(list(make_loader(dataset, 2, 0, 3, workers=1))))
abandoned = make_loader(dataset, 2, 0, 1000, workers=2)
next(abandoned)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "3", done.stderr


def exif(number: int, order: str = "<", head: bytes = b"") -> bytes:
    """EXIF with one entry, the orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return head + mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, number, 0, 0)


def profile_of(space: bytes, size: int = 400) -> bytes:
    """What colour software takes for an ICC profile: a head, no tags, and bytes behind them."""
    head = struct.pack(">I4sI4s4s4s", size, b"test", 0x04000000, b"mntr", space, b"XYZ ") + b"\0" * 12
    head += b"acsp" + b"\0" * 28 + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(132, b"\0") + noise(size - 132).tobytes()


def with_metadata(suffix: str, pixels: np.ndarray, kind: int, content: bytes) -> bytes:
    bgr = pixels if pixels.shape[2] == 1 else cv2.cvtColor(pixels, data.images._TO_RGB[pixels.shape[2]])
    done, encoded = cv2.imencodeWithMetadata(suffix, bgr, [kind], [np.frombuffer(content, np.uint8)])
    assert done
    return encoded.tobytes()


# EXIF's number: what turns the stored pixels upright, as its specification draws the letter F.
UPRIGHT = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("number", UPRIGHT)
@pytest.mark.parametrize(
    ("suffix", "channels", "dtype"),
    [
        *((".png", 1, np.uint8), (".png", 3, np.uint16), (".png", 4, np.uint8), (".jpg", 1, np.uint8)),
        *((".jpg", 3, np.uint8), (".webp", 3, np.uint8), (".webp", 4, np.uint8)),
    ],
)
def test_a_picture_is_turned_upright(suffix, channels, dtype, number):
    pixels = np.maximum(noise(10, 14, channels, dtype=dtype), 1)
    plain = data.decode(with_metadata(suffix, pixels, cv2.IMAGE_METADATA_EXIF, exif(1)), "plain")
    for order in "<>":
        turned = with_metadata(suffix, pixels, cv2.IMAGE_METADATA_EXIF, exif(number, order))
        np.testing.assert_array_equal(data.decode(turned, "turned"), UPRIGHT[number](plain))


@pytest.mark.parametrize("damage", [b"", b"II", exif(6)[:12], exif(0), exif(9), b"\xff" * 40])
def test_exif_that_says_nothing_turns_nothing(damage):
    assert data.images._orientation(damage) == 1
    assert data.images._orientation(exif(6, head=b"Exif\0\0")) == 6


@pytest.mark.parametrize(("suffix", "channels"), [(".png", 1), (".png", 3), (".png", 4), (".jpg", 1), (".jpg", 3)])
@pytest.mark.parametrize("size", [400, 65_516, 65_520, 200_000])
def test_a_colour_profile_is_kept(tmp_path, suffix, channels, size):
    pixels, profile = smooth(16, 24), profile_of(b"GRAY" if channels == 1 else b"RGB ", size)
    pixels = np.dstack((pixels, pixels))[..., :channels]
    assert data.write_picture(tmp_path / f"plain{suffix}", pixels)
    assert data.write_picture(tmp_path / f"a{suffix}", pixels, profile)
    read, kept = data.read_profiled(tmp_path / f"a{suffix}")
    assert kept == profile
    np.testing.assert_array_equal(read, data.read_image(tmp_path / f"plain{suffix}"))
    assert data.read_profiled(tmp_path / f"plain{suffix}")[1] == b""


def test_a_profile_that_a_file_cannot_hold_is_left_out(tmp_path):
    pixels = smooth(16, 24)
    for name, profile in (
        ("a.tif", profile_of(b"RGB ")),
        ("a.bmp", profile_of(b"RGB ")),
        ("a.png", profile_of(b"CMYK")),
        ("b.png", profile_of(b"RGB ")[:60]),  # damaged
        ("a.jpg", profile_of(b"RGB ", 2**24)),
    ):
        assert not data.write_picture(tmp_path / name, pixels, profile)
        assert data.read_profiled(tmp_path / name)[1] == b""
    assert data.write_picture(tmp_path / "a.webp", pixels, profile_of(b"RGB "))
    assert data.read_profiled(tmp_path / "a.webp")[1] == profile_of(b"RGB ")


@pytest.mark.parametrize(("suffix", "side"), [(".jpg", 65_500), (".jpeg", 65_500), (".webp", 16_383), (".png", 10**6)])
def test_a_side_that_no_encoder_writes_is_refused(tmp_path, suffix, side):
    for shape in ((1, side + 1, 3), (side + 1, 1, 3)):
        with pytest.raises(InputError, match=rf"{shape[1]} x {shape[0]} pixels, {suffix} has at most {side} a side"):
            data.write_picture(tmp_path / f"a{suffix}", np.zeros(shape, np.uint8))
    write(tmp_path / f"a{suffix}", np.zeros((1, side, 3), np.uint8))
    assert data.read_image(tmp_path / f"a{suffix}").shape == (1, side, 3)


def test_pipes_and_links_to_themselves_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.npy")
    for source, index, message in (
        (FolderSource(tmp_path), 0, r"loop\.png: Too many levels of symbolic links"),
        (FolderSource(tmp_path), 1, r"pipe\.png: not a regular file"),
        (MapSource(tmp_path), 0, r"pipe\.npy: not a \.npy file, or damaged"),
    ):
        with pytest.raises(InputError, match=message):
            source.read(index)
    with pytest.raises(InputError, match=r"cannot write .*pipe\.png: not a regular file"):
        write(tmp_path / "pipe.png", noise(4, 4, 3))


def test_messages_are_one_line_whatever_a_file_is_called(tmp_path):
    for name in ("a\nb.png", os.fsdecode(b"c\xff.png")):
        (tmp_path / name).write_bytes(b"none")
    source = FolderSource(tmp_path)
    for index, shown in enumerate(("a\\nb.png", "c\\udcff.png")):
        assert source.label(index) == f"{tmp_path}/{shown}"
        with pytest.raises(InputError) as caught:
            source.read(index)
        assert str(caught.value).startswith(f"cannot read the image {tmp_path}/{shown}: not an image")


def test_names_are_those_of_files_below_their_folder():
    data.check_names(ArraySource(["000/00000000", "000/00000001", "a.b"], [noise(4, 4, 3)] * 3))
    for name in ("../a", "/a", "a/../b", "a//b", "", "a\0b"):
        with pytest.raises(InputError, match="no file in a folder can have this name"):
            data.check_names(ArraySource(["x", name], [noise(4, 4, 3)] * 2))
