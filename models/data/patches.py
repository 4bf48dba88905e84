"""Random aligned patches, each a function of the seed and its number alone, and the loader that batches them.

Because sample n depends on nothing but (seed, n), batches are the same for any number of workers, the ranks of a
distributed run share out one global batch, and a run resumes by starting at another step.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import lru_cache
from itertools import chain
from math import gcd
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from models.data.images import InputError, as_rgb, to_tensor
from models.data.sources import Source, fingerprint

Array = NDArray[np.generic]
Batch = dict[str, Any]

# First words of seeds: an order and a patch never share a generator.
_ORDER, _PATCH = 1, 2

# Seconds that a worker keeps working after SIGTERM.
_GRACE = 10


class BadImage(NamedTuple):
    """An image that was left out: where it is, and a sentence that names it and says why."""

    label: str
    reason: str


class Unusable(Exception):
    """An image cannot be used; `policy` is what to do about it, "skip" or "stop"."""

    def __init__(self, label: str, reason: str, policy: str) -> None:
        self._bad, self._policy = BadImage(label, reason), policy

    def to_skip(self) -> BadImage:
        """The image, to be left out. Raises InputError if the run is to stop instead."""
        if self._policy == "stop":
            raise InputError(self._bad.reason) from self
        return self._bad


class Stream:
    """Images that are drawn together, patch by patch: a set, or pairs (triples, ...) aligned by name.

    Args:
        fields: what the patches are called in a sample, one per source.
        sources: one per field. The names are those of the first; the others must have them, and may have more, else
            InputError says which image lacks its partner.
        sizes: side of the patch taken from each source, in its own pixels, such as 32 of LR and 128 of HR.
        augment: flips and transposes at random, all fields in the same way.

    With g the greatest common divisor of the sizes, source k is seen as cells of sizes[k] / g pixels, and a patch is
    g cells wide everywhere. Every position on that grid is equally likely.
    """

    def __init__(
        self, fields: tuple[str, ...], sources: tuple[Source, ...], sizes: tuple[int, ...], augment: bool = True
    ) -> None:
        if not len(fields) == len(sources) == len(sizes) > 0 or min(sizes) < 1:
            raise ValueError(f"Stream: expected a source and a positive size per field, got {fields} and {sizes}")
        self.fields, self.sources, self.sizes, self.augment = fields, sources, sizes, augment
        self.cells = gcd(*sizes)
        self.cell_sizes = tuple(size // self.cells for size in sizes)
        self._places = _align(fields, sources)

    def __len__(self) -> int:
        return len(self.sources[0])

    def members(self, index: int) -> list[tuple[Source, int]]:
        """Every source, with its index of the image that is number `index` of the first."""
        return [(source, places[index]) for source, places in zip(self.sources, self._places, strict=True)]

    def labels(self, index: int) -> list[str]:
        return [source.label(place) for source, place in self.members(index)]

    def grids(self, images: list[Array]) -> NDArray[np.int64]:
        """How many cells high and wide each image is, (images, 2)."""
        return np.array([image.shape[:2] for image in images]) // np.array(self.cell_sizes)[:, None]


def _align(fields: tuple[str, ...], sources: tuple[Source, ...]) -> list[list[int]]:
    """For each source, its index of every name of the first one."""
    if len(sources) == 1:
        return [list(range(len(sources[0])))]
    by_name = [{name: index for index, name in enumerate(source.names)} for source in sources]
    for field, source, indices in zip(fields, sources, by_name, strict=True):
        if len(indices) < len(source):
            twice = next(name for index, name in enumerate(source.names) if indices[name] != index)
            raise InputError(f"two images of {field} are named {twice}, one is {source.label(indices[twice])}")
        for index, name in enumerate(sources[0].names):
            if name not in indices:
                raise InputError(f"no image of {field} is named {name}, to go with {sources[0].label(index)}")
    return [[indices[name] for name in sources[0].names] for indices in by_name]


class PatchDataset(Dataset[Batch]):
    """Sample n = 0, 1, 2 ... without end: a patch of every field of every stream.

    A stream walks through its images once per epoch, in a new order each time. An image that cannot be read, is
    smaller than the patch, does not fit its partner, or is grey is replaced by the next good one in that order.

    Args:
        streams: no two fields of theirs may have one name.
        seed: of every random choice, not negative.
        bad_images: "skip" replaces them as described, "stop" raises InputError.
        grey_images: the same for grey ones; "convert" gives them three equal channels.
        max_bad: share of all images that may be bad; kept here for `BadImages`.

    A sample maps each field to a float32 tensor (C, size, size), images as RGB in [0, 1] without alpha, maps as they
    are; "files" to the labels of the images used, field by field; "bad" to the `BadImage`s met. No image is kept in
    memory after its patch is cut. Raises InputError if no image of a stream can be used.
    """

    def __init__(
        self,
        streams: Iterable[Stream],
        seed: int,
        bad_images: Literal["skip", "stop"] = "skip",
        grey_images: Literal["skip", "convert", "stop"] = "skip",
        max_bad: float = 0.01,
    ) -> None:
        self.streams, self.seed = tuple(streams), seed
        self.bad_images, self.grey_images, self.max_bad = bad_images, grey_images, max_bad
        names = ["files", "bad", *(field for stream in self.streams for field in stream.fields)]
        if len(set(names)) < len(names):
            raise ValueError(f"PatchDataset: every field needs a name of its own, got {names[2:]}")

    @property
    def total(self) -> int:
        """Number of different images in all streams."""
        return len({label for stream in self.streams for index in range(len(stream)) for label in stream.labels(index)})

    def fingerprints(self) -> dict[str, str]:
        """Of every field, what tells whether its images are those of an earlier run."""
        streams = (zip(stream.fields, stream.sources, strict=True) for stream in self.streams)
        return {field: fingerprint(source) for field, source in chain.from_iterable(streams)}

    def __getitem__(self, n: int) -> Batch:
        sample: Batch = {"files": [], "bad": []}
        for number, stream in enumerate(self.streams):
            index, images = self._next_good(number, stream, n, sample["bad"])
            rng = np.random.default_rng([_PATCH, self.seed, number, n])
            top, left = rng.integers(stream.grids(images).min(axis=0) - stream.cells + 1)
            turns = rng.integers(2, size=3) * stream.augment
            for field, image, size, cell in zip(stream.fields, images, stream.sizes, stream.cell_sizes, strict=True):
                patch = image[top * cell : top * cell + size, left * cell : left * cell + size]
                sample[field] = to_tensor(_turn(as_rgb(patch) if _is_image(patch) else patch, *turns))
            sample["files"] += stream.labels(index)
        return sample

    def _next_good(self, number: int, stream: Stream, n: int, bad: list[BadImage]) -> tuple[int, list[Array]]:
        """Index and images that sample n takes from a stream; unusable ones are added to `bad`."""
        epoch, place = divmod(n, len(stream))
        order = _order(self.seed, number, epoch, len(stream))
        for step in range(len(stream)):
            index = int(order[(place + step) % len(stream)])
            try:
                return index, self._read(stream, index)
            except Unusable as error:
                bad.append(error.to_skip())
        raise InputError(f"no usable image of {', '.join(stream.fields)}; the last one: {bad[-1].reason}")

    def _read(self, stream: Stream, index: int) -> list[Array]:
        labels, images = stream.labels(index), []
        for size, (source, place) in zip(stream.sizes, stream.members(index), strict=True):
            images.append(read_usable(source, place, size, self.bad_images, self.grey_images))
        # A side that is not divisible was rounded up or down when the partner was made.
        if np.ptp(stream.grids(images), axis=0).max() > 1:
            extents = ", ".join(f"{label} {_extent(image)}" for label, image in zip(labels, images, strict=True))
            reason = f"these images do not fit together, patches being {stream.sizes} pixels wide: {extents}"
            raise Unusable(labels[0], reason, self.bad_images)
        return images


def read_usable(source: Source, index: int, size: int, bad_images: str, grey_images: str) -> Array:
    """An image of at least `size` pixels a side, unchanged. Raises Unusable, with the policy for what is wrong."""
    label = source.label(index)
    try:
        image = source.read(index)
    except InputError as error:
        raise Unusable(label, str(error), bad_images) from error
    if min(image.shape[:2]) < size:
        reason = f"the image {label} is too small: {_extent(image)} pixels, {size} are needed"
        raise Unusable(label, reason, bad_images)
    if grey_images != "convert" and _is_image(image) and image.shape[2] == 1:
        raise Unusable(label, f"the image {label} is grey", grey_images)
    return image


@lru_cache(maxsize=16)
def _order(seed: int, stream: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([_ORDER, seed, stream, epoch]).permutation(count)


def _extent(image: Array) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _is_image(array: Array) -> bool:
    """Whether it is an image and not a map."""
    return np.issubdtype(array.dtype, np.integer)


def _turn(patch: Array, flip_rows: int, flip_columns: int, transpose: int) -> Array:
    patch = patch[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return patch.swapaxes(0, 1) if transpose else patch


class BadImages:
    """Reports each left-out image once, and stops a run that has too many of them.

    Args:
        total: number of all images, such as `PatchDataset.total`.
        max_bad: share of them that may be bad.
        say: takes one line for each.
    """

    def __init__(self, total: int, max_bad: float, say: Callable[[str], object]) -> None:
        self.total, self.max_bad, self.say = total, max_bad, say
        self.labels: set[str] = set()

    def note(self, bad: Iterable[BadImage]) -> None:
        """Takes the "bad" of a sample or batch. Raises InputError when more than `max_bad` of all images are bad."""
        for label, reason in bad:
            if label in self.labels:
                continue
            self.labels.add(label)
            self.say(f"left out: {reason}")
            if len(self.labels) > self.max_bad * self.total:
                raise InputError(
                    f"{len(self.labels)} of {self.total} images cannot be used, more than the {self.max_bad:.1%} that "
                    f"may be; the last one: {reason}"
                )


def make_loader(
    dataset: PatchDataset,
    batch: int,
    first_step: int,
    steps: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The batches of steps first_step, ..., first_step + steps - 1; step k holds samples k * batch to (k + 1) * batch.

    `batch` counts all ranks; rank r gets the r-th of `world_size` equal shares, so world_size must divide it (else
    ValueError). A batch maps each field to (batch / world_size, C, size, size), and "files" and "bad" to lists over
    the batch. Batches are made in `workers` processes with one thread each, or here if it is 0. No global random
    state is touched.
    """
    if batch < 1 or batch % world_size:
        raise ValueError(f"make_loader: a batch of {batch} cannot be shared out equally to {world_size} processes")
    return _run(
        DataLoader(
            _Steps(dataset, batch, first_step, steps, rank, world_size),
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            # Without one of its own it would draw its workers' seed from the global generator.
            generator=torch.Generator(),
        )
    )


class ReaderKilled(Exception):
    """A process that reads pictures was killed."""


def _run(loader: DataLoader[Batch | InputError]) -> Generator[Batch, None, None]:
    others, handler = set(multiprocessing.active_children()), signal.getsignal(signal.SIGCHLD)
    batches: Iterator[Batch | InputError] | None = None
    readers: set[Any] = set()
    try:
        batches = iter(loader)
        readers = set(multiprocessing.active_children()) - others
        if threading.current_thread() is threading.main_thread():
            # PyTorch's raises an error wherever the process happens to be, such as in the midst of writing a file.
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        for batch in batches:
            if isinstance(batch, InputError):
                raise batch
            yield batch
    except (RuntimeError, OSError, EOFError) as error:  # PyTorch's, or what a connection to nobody gives
        for reader in readers:
            if multiprocessing.connection.wait([reader.sentinel], timeout=1):
                reader.join(timeout=1)
        # PyTorch names one that was killed as soon as it was there, and is none of the children any more.
        if "DataLoader worker" in str(error) or any(reader.exitcode for reader in readers):
            raise ReaderKilled(
                "a process that reads pictures was killed, perhaps because memory ran out (--run.workers)"
            ) from error
        raise
    finally:
        del batches  # ends the readers now and not when the interpreter exits
        for reader in readers:
            reader.kill()  # one that hangs in a read hears nothing else, and would be waited for at exit


class _Steps(Dataset[Batch | InputError]):
    """One rank's batch of every step, whole: with `batch_size=None` a worker assembles what it has read."""

    def __init__(
        self, dataset: PatchDataset, batch: int, first_step: int, steps: int, rank: int, world_size: int
    ) -> None:
        self._dataset, self._batch, self._first_step, self._steps = dataset, batch, first_step, steps
        self._share, self._rank = batch // world_size, rank

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> Batch | InputError:
        first = (self._first_step + index) * self._batch + self._rank * self._share
        try:
            return _collate([self._dataset[n] for n in range(first, first + self._share)])
        except InputError as error:
            # Raised here, it would reach the user as a worker's traceback instead of one line.
            return error


def _collate(samples: list[Batch]) -> Batch:
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {
        name: list(chain.from_iterable(column)) if name in ("files", "bad") else torch.stack(column)
        for name, column in columns.items()
    }


def _as_it_is(batch: Batch | InputError) -> Batch | InputError:
    return batch


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # These signals often reach all processes of a run. Only the main one may end it, after saving its state; a worker
    # that is still running some time after SIGTERM has no one left to work for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
