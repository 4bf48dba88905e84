"""Pictures through a network tile by tile, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.data import InputError, Pixels, to_pixels, to_tensor
from models.data.resize import bicubic
from models.train import distributed


class _Span(NamedTuple):
    """One axis of a tile, in LR pixels: what it contributes, what the network sees, and the one in the other."""

    given: slice
    seen: slice
    inner: slice


Tile = tuple[_Span, _Span]


@torch.inference_mode()
def enlarge_tiled(
    enlarge: Callable[[Tensor], Tensor],
    scale: int,
    pixels: Pixels,
    tile: int,
    overlap: int,
    track: Callable[[Sequence[Tile]], Iterable[Tile]] = iter,
) -> Pixels:
    """(H, W, C) grey, RGB or RGBA to (scale * H, scale * W, C) of the same depth.

    Args:
        enlarge: (1, 3, h, w) in [0, 1] to (1, 3, scale * h, scale * w); h and w come as multiples of 4 / scale.
        tile: the picture is cut into parts of one size, of sides no longer than this (rounded up to such a multiple).
        overlap: pixels around a part that `enlarge` sees too, where the picture has any.
        track: wraps the list of tiles, to show progress.

    With an overlap no shorter than the reach of `enlarge`, the result is that of the whole picture at once. Raises
    InputError if it is not finite, or too large.
    """
    multiple = math.ceil(4 / scale)
    height, width, channels = pixels.shape
    pixels = np.pad(pixels, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="symmetric")
    try:
        larger = np.empty((scale * pixels.shape[0], scale * pixels.shape[1], channels), pixels.dtype)
    except MemoryError as error:
        raise InputError(f"{scale} times {width} x {height} pixels are too large for the memory") from error
    rows, columns = (_spans(side, tile, overlap, multiple) for side in pixels.shape[:2])
    for y, x in track(list(product(rows, columns))):
        enlarged = _enlarge_channels(enlarge, scale, to_tensor(pixels[y.seen, x.seen])[None])[0]
        inner = enlarged[:, _times(scale, y.inner), _times(scale, x.inner)]
        if not bool(inner.isfinite().all()):
            raise InputError("the enlarged picture is not finite: the network's weights are too large for it")
        larger[_times(scale, y.given), _times(scale, x.given)] = to_pixels(inner, pixels.dtype)
        distributed.get_on()
    return larger[: scale * height, : scale * width]


@torch.inference_mode()
def shrink_tiled(shrink: Callable[[Tensor], Tensor], scale: int, image: Tensor, tile: int, overlap: int) -> Tensor:
    """(1, 3, H, W) to (1, 3, H / scale, W / scale); `scale` divides H and W, `tile` and `overlap` count output pixels.

    With an overlap no shorter than the reach of `shrink`, the result is that of the whole picture at once.
    """
    height, width = (side // scale for side in image.shape[-2:])
    smaller = image.new_empty(1, image.shape[1], height, width)
    for y, x in product(_spans(height, tile, overlap, 1), _spans(width, tile, overlap, 1)):
        small = shrink(image[..., _times(scale, y.seen), _times(scale, x.seen)])
        smaller[..., y.given, x.given] = small[..., y.inner, x.inner]
        distributed.get_on()
    return smaller


def _spans(side: int, tile: int, overlap: int, multiple: int) -> list[_Span]:
    part = multiple * math.ceil(side / math.ceil(side / tile) / multiple)
    margin = multiple * math.ceil(overlap / multiple)
    spans = []
    for start in range(0, side, part):
        stop = min(start + part, side)
        first = max(start - margin, 0)
        spans.append(_Span(slice(start, stop), slice(first, stop + margin), slice(start - first, stop - first)))
    return spans


def _times(scale: int, span: slice) -> slice:
    return slice(scale * span.start, scale * span.stop)


def _enlarge_channels(enlarge: Callable[[Tensor], Tensor], scale: int, image: Tensor) -> Tensor:
    if image.shape[1] == 1:
        return enlarge(image.expand(-1, 3, -1, -1)).clamp(0, 1).mean(1, keepdim=True)
    colour = enlarge(image[:, :3])
    if image.shape[1] == 3:
        return colour
    return torch.cat((colour, bicubic(image[:, 3:], scale).to(colour.device)), 1)
