"""The pictures of a run: two training domains, held-out pairs to validate on, and results with their references."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from models.data.images import IMAGE_SUFFIXES, InputError, Picture, eight_bit_rgb, list_files
from models.data.sources import Source

HeldOut = Iterable[tuple[str, Picture, Picture]]


@dataclass(frozen=True)
class Inputs:
    """Sources of pictures.

    Attributes:
        hr: clean HR pictures.
        real_lr: LR pictures of the target domain, showing other scenes.
        held_out: yields the held-out (name, LR, HR) of the target domain; None if there are none.
    """

    hr: Source
    real_lr: Source
    held_out: Callable[[], HeldOut] | None = None


class Pairs:
    """Held-out (name, LR, HR) as uint8 RGB, read one at a time, and again at every call.

    Raises InputError if an LR picture has no HR picture of the same name, or is not `scale` times smaller.
    """

    def __init__(self, lr: Source, hr: Source, scale: int) -> None:
        self._lr, self._hr, self._scale = lr, hr, scale
        indices = {name: index for index, name in enumerate(hr.names)}
        for index, name in enumerate(lr.names):
            if name not in indices:
                raise InputError(f"no HR picture is named {name}, to go with {lr.label(index)}")
        self._partners = [indices[name] for name in lr.names]

    def __call__(self) -> Iterator[tuple[str, Picture, Picture]]:
        for index, partner in enumerate(self._partners):
            lr, hr = eight_bit_rgb(self._lr.read(index)), eight_bit_rgb(self._hr.read(partner))
            height, width = (side * self._scale for side in lr.shape[:2])
            if not (0 <= hr.shape[0] - height < self._scale and 0 <= hr.shape[1] - width < self._scale):
                raise InputError(
                    f"{self._lr.label(index)} is {lr.shape[1]} x {lr.shape[0]} pixels, which is not 1/{self._scale} of "
                    f"{self._hr.label(partner)}, {hr.shape[1]} x {hr.shape[0]}"
                )
            yield self._lr.names[index], lr, hr[:height, :width]


def pair_files(sr_folder: Path, hr_folder: Path) -> list[tuple[Path, Path]]:
    """(SR, HR) for every picture of `hr_folder`: baby.png goes with baby.png, or with baby_x4.png, of one more word.

    Raises InputError naming a picture without its one partner, and two HR pictures of one name.
    """
    hr_paths = list_files(hr_folder, IMAGE_SUFFIXES, "image")
    names: dict[str, Path] = {}
    for path in hr_paths:
        if names.setdefault(path.stem, path) != path:
            raise InputError(f"two HR pictures are named {path.stem}: {names[path.stem]} and {path}")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in list_files(sr_folder, IMAGE_SUFFIXES, "image"):
        name = path.stem if path.stem in names else path.stem.rpartition("_")[0]
        if name not in names:
            raise InputError(f"{path} has no HR picture of its name in {hr_folder}")
        found[name].append(path)
    for path in hr_paths:
        if len(found[path.stem]) != 1:
            several = ", ".join(sr.name for sr in found[path.stem]) or "none"
            raise InputError(f"{path} must have one SR picture of its name in {sr_folder}, found {several}")
    return [(found[path.stem][0], path) for path in hr_paths]
