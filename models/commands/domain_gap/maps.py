"""Whether a domain-distance map finds the regions of generated LR that are wrong, where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data import InputError, Source, eight_bit_rgb
from models.evaluate.statistics import Interval, interval, partial_spearman, resample, spearman


class Found(NamedTuple):
    """A rank correlation of maps with the true error: mean over pictures, 95 % interval, and each picture's own.

    None is the interval of a single picture, and a picture that has fewer than three regions or all alike.
    """

    mean: float
    interval: Interval | None
    pictures: dict[str, float | None]


def correlate(generated: Source, truth: Source, maps: Source, region: int) -> tuple[Found, Found]:
    """Compares map and true error as means over regions of `region` pixels: plainly, and with contrast held fixed.

    The error is the mean absolute difference of generated LR from what the camera gives of the same scene. A map is
    high where D takes the picture for real, so that one that finds the error is below zero. Where there is detail,
    errors are larger and any discriminator has more to say; what is left with the regions' contrast (deviation of
    grey) held fixed, a map does not owe to that.

    Raises InputError naming a picture that lacks its true one or its map, or does not fit them.
    """
    plain, partial = {}, {}
    for index, name in enumerate(generated.names):
        lr = eight_bit_rgb(generated.read(index))
        other = eight_bit_rgb(truth.read(_place(truth, name, "no true LR picture", generated.label(index))))
        place = _place(maps, name, "no map", generated.label(index))
        weight = maps.read(place)[..., 0]
        if other.shape != lr.shape:
            raise InputError(f"{generated.label(index)} is {_size(lr)}, its true LR picture {_size(other)}")
        if weight.shape not in [tuple(side // stride for side in lr.shape[:2]) for stride in (1, 2)]:
            raise InputError(
                f"{maps.label(place)} is {_size(weight)}, which is no map of {_size(lr)}, nor of half that"
            )
        if not np.isfinite(weight).all():
            raise InputError(f"{maps.label(place)} holds values that are not finite")
        height, width = lr.shape[:2]
        resized = cv2.resize(np.array(weight), (width, height), interpolation=cv2.INTER_LINEAR)
        grey = cv2.cvtColor(lr, cv2.COLOR_RGB2GRAY)
        score, error = (
            _regions(values, region).mean(axis=(1, 3))
            for values in (resized, np.abs(lr.astype(np.float32) - other).mean(2))
        )
        plain[name] = spearman(score, error)
        partial[name] = partial_spearman(score, error, _regions(grey, region).std(axis=(1, 3)))
    if all(map(math.isnan, plain.values())):
        raise InputError(f"--region {region}: no picture beside {generated.label(0)} has three regions that differ")
    return _mean(plain), _mean(partial)


def _mean(found: Mapping[str, float]) -> Found:
    known = np.array([value for value in found.values() if not math.isnan(value)])
    pictures = {name: None if math.isnan(value) else value for name, value in found.items()}
    means = resample(len(known), np.random.default_rng(0)) @ known / len(known)
    return Found(float(known.mean()), interval(means) if len(known) > 1 else None, pictures)


def _place(source: Source, name: str, what: str, label: str) -> int:
    if name not in source.names:
        raise InputError(f"{what} is named {name}, to go with {label}")
    return list(source.names).index(name)


def _size(pixels: NDArray[np.generic]) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def _regions(values: NDArray[np.generic], region: int) -> NDArray[np.float64]:
    """(rows, region, columns, region) of squares side by side, without what is left over at the right and below."""
    rows, columns = (side // region for side in values.shape)
    squares = values[: rows * region, : columns * region].reshape(rows, region, columns, region)
    return squares.astype(np.float64)
