"""Made-up weights that are a function of a key alone (numpy's frozen RandomState), and what reduces gradients."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def random_of(key: str, seed: int = 0) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)


def weight(key: str, shape: Sequence[int], gain: float, seed: int, bias: float = 0.02) -> NDArray[np.float32]:
    random = random_of(key, seed)
    shape = tuple(shape)
    if len(shape) == 4:
        values = random.standard_normal(shape) * gain * np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 2:
        values = random.standard_normal(shape) * gain * np.sqrt(1 / shape[1])
    elif "running_var" in key:
        values = 1 + 0.1 * random.random_sample(shape)
    elif np.prod(shape) == 1 and "weight" in key:  # a PReLU's slope
        values = np.full(shape, 0.25)
    elif key.endswith("weight"):  # a norm's
        values = 1 + 0.05 * random.standard_normal(shape)
    else:
        values = bias * random.standard_normal(shape)
    return np.asarray(values, np.float32)


def probe(key: str, shape: Sequence[int]) -> NDArray[np.float64]:
    """A direction of length 1: the dot product with it is what a case keeps of a tensor beside its norm."""
    values = random_of("probe:" + key).standard_normal(tuple(shape))
    return values / np.linalg.norm(values)
