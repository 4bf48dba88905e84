"""The documented formulas, restated for the tests: matrices for Haar and the resize, products of filters and the pixels
that they meet for convolutions.

Nothing here uses the library. Values, gradients of any order and the bounds of their errors come from ``rounding``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .rounding import (
    Rounded,
    cat,
    clamped,
    eps,
    expanded,
    indicator,
    moved,
    narrowed,
    number,
    over,
    plus,
    pointwise,
    product,
    registers,
    restored,
    root,
    scaled,
    stored,
    times,
    viewed,
)

# The table of Haar's page: factor of S; bands in order with their factors; what is added; their layout.
HAAR: dict[str, tuple[float, tuple[tuple[str, float], ...], float, str]] = {
    "orthonormal": (1 / 2, (("V", 1 / 2), ("H", 1 / 2), ("D", 1 / 2)), 0, "channel-major"),
    "dasr": (1 / 4, (("V", 1 / 4), ("H", 1 / 4), ("D", 1 / 4)), 1 / 2, "band-major"),
    "dasr_sum": (1 / 4, (("V", 1 / 12), ("H", 1 / 12), ("D", 1 / 12)), 1 / 2, "sum"),
    "mwcnn": (1 / 2, (("H", -1 / 2), ("V", -1 / 2), ("D", 1 / 2)), 0, "band-major"),
    "irn": (1 / 4, (("H", 1 / 4), ("V", 1 / 4), ("D", 1 / 4)), 0, "band-major"),
    "wct2": (1 / 2, (("H", -1 / 2), ("V", -1 / 2), ("D", 1 / 2)), 0, "tuple"),
    "wavesnet": (1 / 2, (("H", 1 / 2), ("V", 1 / 2), ("D", 1 / 2)), 0, "tuple"),
    "wtconv": (1 / 2, (("V", 1 / 2), ("H", 1 / 2), ("D", 1 / 2)), 0, "channel-major"),
}
# The sign of the second row and of the second column of a cell.
SIGNS = {"S": (1, 1), "V": (-1, 1), "H": (1, -1), "D": (-1, -1)}


def _along(x: Rounded, matrix: Tensor, axis: int, dtype: torch.dtype, error: Tensor | None = None) -> Rounded:
    """``x`` (N, C, H, W) times a matrix along its rows (-2) or columns (-1)."""
    filled = matrix != 0 if error is None else (matrix != 0) | (error != 0)
    terms = tuple(int(filled.sum(d).max()) if filled.numel() else 1 for d in (1, 0))
    equation = "nchw,ih->nciw" if axis == -2 else "nchw,iw->nchi"
    return product(equation, x, Rounded(matrix, error, x.dtype), dtype, (*terms, None))  # type: ignore[arg-type]


def _padding(size: int, pad: str) -> Tensor:
    """Appends to an odd number of samples the last but one, zero, the first or the last; or drops the last."""
    if pad == "floor":
        return torch.eye(size - size % 2, size, dtype=torch.float64)
    matrix = torch.eye(size + size % 2, size, dtype=torch.float64)
    if size % 2 and pad != "zero":
        matrix[size, {"reflect": max(size - 2, 0), "periodic": 0}.get(pad, size - 1)] = 1
    return matrix


def _pairs(size: int, sign: int) -> Tensor:
    """(size / 2, size): for each pair of samples, the first plus ``sign`` times the second."""
    matrix = torch.zeros(size // 2, 2, size // 2, dtype=torch.float64)
    matrix.diagonal(dim1=0, dim2=2).copy_(torch.tensor([[1.0], [sign]]))
    return matrix.permute(0, 2, 1).reshape(size // 2, size)


def _in_steps(x: Rounded) -> Rounded:
    """Input or output of a sum of four whose steps eager PyTorch stores: two sums, a factor, the fold of a pad."""
    for _ in range(4):
        x = restored(x)
    return x


def haar_analysis(x: Rounded, convention: str, pad: str, eager: bool) -> tuple[Rounded, list[Rounded]]:
    """(low, high), ``high`` as one tensor or three. ``eager``: sums of four in stored steps."""
    factor, bands, shift, layout = HAAR[convention]
    inside = registers(x.dtype)
    even = _in_steps(x) if eager else x
    for axis in (-2, -1):
        if x.shape[axis] % 2:
            even = _along(even, _padding(x.shape[axis], pad), axis, inside)

    def band(name: str, factor: float) -> Rounded:
        y = even
        for axis, sign in zip((-2, -1), SIGNS[name], strict=True):
            y = _along(y, _pairs(y.shape[axis], sign), axis, inside)
        return scaled(y, factor)

    low, *parts = (band(name, k) for name, k in (("S", factor), *bands))
    if layout == "sum":
        parts = [plus(plus(parts[0], parts[1]), parts[2])]
    if shift:
        parts = [plus(y, number(shift, y)) for y in parts]
    low, *parts = (_in_steps(stored(y, x.dtype)) if eager else stored(y, x.dtype) for y in (low, *parts))
    if layout == "band-major":
        parts = [cat(parts, 1)]
    elif layout == "channel-major":
        n, c, h, w = low.shape
        parts = [cat([viewed(y, n, c, 1, h, w) for y in parts], 2)]
    return low, parts


def haar_synthesis(
    low: Rounded | None, high: Sequence[Rounded] | None, convention: str, size: tuple[int, int], eager: bool
) -> Rounded:
    factor, bands, shift, layout = HAAR[convention]
    given: dict[str, tuple[Rounded, float, float]] = {}
    if low is not None:
        given["S"] = low, factor, 0
    if high is not None:
        for k, (name, band_factor) in enumerate(bands):
            given[name] = _band(high, k, layout), band_factor, shift
    image = None
    for name, (y, k, added) in given.items():
        inside = registers(y.dtype)
        y = _in_steps(y) if eager else y
        if added:
            y = plus(stored(y, inside), number(-added, y))
        for axis, sign, length in zip((-2, -1), SIGNS[name], size, strict=True):
            matrix = _pairs(2 * y.shape[axis], sign).T
            y = _along(y, F.pad(matrix, (0, 0, 0, length - len(matrix))), axis, inside)
        part = scaled(y, 1 / (4 * k))
        image = part if image is None else plus(image, part)
    assert image is not None
    image = stored(image, (low or high[0]).dtype)  # type: ignore[index]
    return _in_steps(image) if eager else image


def _band(high: Sequence[Rounded], k: int, layout: str) -> Rounded:
    if layout == "tuple":
        return high[k]
    (x,) = high
    if layout == "band-major":
        c = x.shape[1] // 3
        return narrowed(x, 1, k * c, c)
    n, c, _, h, w = x.shape
    return viewed(narrowed(x, 2, k, 1), n, c, h, w)


def _nearest_matrix(size: int, source: int) -> tuple[Tensor, Tensor | None]:
    """(size, source): sample i is cell floor(i * source / size), and the error that a rounded ratio causes: a product
    that is whole may come out below it.
    """
    matrix, error = torch.zeros(2, size, source, dtype=torch.float64)
    for i in range(size):
        cell, rest = divmod(i * source, size)
        matrix[i, cell] = 1
        if i and not rest and not _in_few_bits(source / size):
            error[i, cell - 1 : cell + 1] = 1
    return matrix, error if error.any() else None


def _in_few_bits(ratio: float) -> bool:
    """Whether products of it and small whole numbers are exact in fp32."""
    return float(torch.tensor(ratio, dtype=torch.float32)) == ratio and (ratio * 2**10).is_integer()


def _resize_matrix(
    size: int, source: int, interpolation: str, align_corners: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """(size, source): interpolation along one axis, and the error that rounded coordinates cause."""
    if interpolation == "nearest":
        return _nearest_matrix(size, source)
    if align_corners:
        ratio = (source - 1) / (size - 1) if size > 1 else 0.0
        at = [i * ratio for i in range(size)]
    else:
        ratio = source / size
        at = [max(0.0, (i + 0.5) * ratio - 0.5) for i in range(size)]
    matrix = torch.zeros(size, source, dtype=torch.float64)
    for i, x in enumerate(at):
        first = min(int(x), source - 1)
        second = min(first + 1, source - 1)
        matrix[i, first] += 1 - (x - first)
        matrix[i, second] += x - first
    if _in_few_bits(ratio):
        return matrix, None
    touched = F.max_pool1d((matrix > 0).double(), 3, 1, 1)  # a coordinate may land on the other side of a sample
    return matrix, touched * eps(dtype) * (source + 1)


def resize(weight: Rounded, size: tuple[int, int], interpolation: str, align_corners: bool) -> Rounded:
    for axis in (-2, -1):
        matrix, error = _resize_matrix(size[axis], weight.shape[axis], interpolation, align_corners, weight.dtype)
        dtype = registers(weight.dtype) if axis == -2 else None
        weight = stored(_along(weight, matrix, axis, dtype or weight.dtype, error), weight.dtype)
    return weight


def penalty(d: Rounded, kind: str, eps: float, delta: float) -> Rounded:
    """What a loss charges for a difference. Gradients are computed in registers, also where the value is not."""
    if kind == "l1":
        return times(d, indicator(d, torch.sign, 2.0))
    if kind == "mse":
        return times(d, d)
    wide = stored(d, registers(d.dtype))
    if kind == "huber":
        end = stored(number(delta, d), d.dtype)  # eager PyTorch rounds delta to the dtype of the images
        return pointwise(_huber, (d, end), lambda: clamped(wide, stored(number(delta, wide), wide.dtype)))

    def distance(d: Rounded) -> Rounded:
        return root(plus(times(d, d), number(eps, d)))

    y = distance(d)
    return Rounded(y.value, y.error, y.dtype, ((d, lambda g: times(g, over(wide, distance(wide)), d.dtype)),))


def _huber(d: Tensor, delta: Tensor) -> Tensor:
    size = d.abs()
    return torch.where(size <= delta, d * d / 2, delta * (size - delta / 2))


def weighted_loss(
    input: Rounded,
    target: Rounded,
    weight: Rounded | None,
    reduction: str,
    normalize: str,
    kind: str = "l1",
    eps: float = 1e-12,
    delta: float = 1.0,
    interpolation: str = "bilinear",
    align_corners: bool = False,
) -> Rounded:
    y = penalty(plus(input, target, -1), kind, eps, delta)
    full = None
    if weight is not None:
        height, width = input.shape[-2:]
        full = expanded(resize(weight, (height, width), interpolation, align_corners), input.shape)
        y = times(full, y)
    if reduction == "none":
        return y
    if reduction == "sum":
        return _total(y)
    count = number(float(input.value.numel()), Rounded(y.value.new_empty(()), None, y.dtype))
    return over(_total(y), count if full is None or normalize == "numel" else _total(full))


def _total(x: Rounded) -> Rounded:
    return moved(x, torch.sum, lambda t: t.expand(x.shape))


class Passes(NamedTuple):
    """How filters pass over an image, for rows and columns: as ``F.conv2d`` and ``nn.Conv2d`` take it."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str | None = None
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"

    def margins(self, kernel: Sequence[int]) -> list[tuple[int, int]]:
        """(rows above, rows below), (columns to the left, columns to the right)."""
        if self.padding == "valid":
            return [(0, 0), (0, 0)]
        if isinstance(self.padding, tuple):
            return [(p, p) for p in self.padding]
        reaches = [d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True)]
        return [(reach // 2, reach - reach // 2) for reach in reaches]

    def output(self, image: Sequence[int], kernel: Sequence[int]) -> list[int]:
        rooms = [size + sum(margin) for size, margin in zip(image, self.margins(kernel), strict=True)]
        steps = zip(rooms, self.dilation, kernel, self.stride, strict=True)
        return [(room - d * (k - 1) - 1) // s + 1 for room, d, k, s in steps]


PLAIN = Passes()


def _sources(size: int, margin: tuple[int, int], mode: str) -> Tensor:
    """The sample of an axis that each of a padded one is, or ``size`` where it is zero."""
    at = torch.arange(-margin[0], size + margin[1])
    if mode == "reflect":
        at = at.abs()
        return torch.minimum(at, 2 * (size - 1) - at)
    if mode == "zeros":
        return torch.where((at < 0) | (at >= size), size, at)
    return at.clamp(0, size - 1) if mode == "replicate" else at % size


def _gathered(x: Rounded, rows: Tensor, columns: Tensor, sums: torch.dtype) -> Rounded:
    """(N, C, *shape): the pixels at ``rows`` and ``columns``, which broadcast to ``shape``; past the last is zero."""
    h, w = x.shape[-2:]

    def there(t: Tensor) -> Tensor:
        return F.pad(t, (0, 1, 0, 1))[:, :, rows, columns]

    def back(t: Tensor) -> Tensor:
        room = t.new_zeros(h + 1, w + 1, *x.shape[:2])
        room.index_put_((rows, columns), t.movedim((0, 1), (-2, -1)), accumulate=True)
        return room[:h, :w].movedim((-2, -1), (0, 1))

    return moved(x, there, back, sums)


def patches(x: Rounded, kernel: Sequence[int], passes: Passes) -> Rounded:
    """(N, C, rows, columns, H, W): the pixels that each element of a kernel meets."""
    margins = passes.margins(kernel)
    if passes.padding_mode != "zeros":  # a copy, whose gradient is stored, and summed up in its dtype
        above, left = (_sources(size, m, passes.padding_mode) for size, m in zip(x.shape[-2:], margins, strict=True))
        x = _gathered(x, above[:, None], left, x.dtype)
        margins = [(0, 0), (0, 0)]
    met = []
    for size, margin, k, s, d in zip(x.shape[-2:], margins, kernel, passes.stride, passes.dilation, strict=True):
        met.append(_sources(size, margin, "zeros").unfold(0, d * (k - 1) + 1, s)[:, ::d].T)
    rows, columns = met
    return _gathered(x, rows[:, None, :, None], columns[:, None], _sums(x.dtype))


def _sums(dtype: torch.dtype) -> torch.dtype:
    """What PyTorch sums convolution gradients over taps and samples in: without oneDNN, the dtype itself."""
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return dtype
    if dtype is torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        return dtype
    return registers(dtype)


def convolution(x: Rounded, weight: Rounded, bias: Rounded | None, scale: float = 1, passes: Passes = PLAIN) -> Rounded:
    """``scale`` times before or after the sum, so that filters may be rounded once more."""
    if scale != 1:
        weight, bias = restored(weight), None if bias is None else restored(bias)
    (n, inputs), (outputs, _, *kernel), groups = x.shape[:2], weight.shape, passes.groups
    of_each = expanded(weight, (n, *weight.shape), _sums(x.dtype))
    filters = viewed(of_each, n, groups, outputs // groups, inputs // groups, *kernel)
    met = patches(x, kernel, passes)
    height, width = met.shape[-2:]
    met = viewed(met, n, groups, inputs // groups, *kernel, height, width)
    y = viewed(product("ngcijhw,ngocij->ngohw", met, filters, registers(x.dtype)), n, outputs, height, width)
    if bias is not None:
        y = plus(y, expanded(viewed(bias, 1, outputs, 1, 1), y.shape))
    return scaled(stored(y, x.dtype), scale)


def activation(z: Rounded, name: str, slope: Rounded | float | None) -> Rounded:
    if name == "none":
        return z
    inside = registers(z.dtype)
    above = times(z, indicator(z, lambda t: t > 0, 1.0), inside)
    if name == "relu":
        return stored(above, z.dtype)
    below = times(z, indicator(z, lambda t: t <= 0, 1.0), inside)
    if isinstance(slope, Rounded):
        below = times(below, expanded(viewed(slope, 1, -1, 1, 1), z.shape))
    else:
        below = scaled(below, 0.2 if slope is None else slope)
    return stored(plus(above, below), z.dtype)


def conv2d_act(
    x: Rounded,
    weight: Rounded,
    bias: Rounded | None,
    slope: Rounded | float | None,
    residual: Rounded | None,
    name: str,
    scale: float,
    passes: Passes,
) -> Rounded:
    if name == "none":
        y = convolution(x, weight, bias, scale, passes)
    else:
        y = scaled(activation(convolution(x, weight, bias, 1, passes), name, slope), scale)
    return y if residual is None else plus(residual, y)


def residual_block(
    x: Rounded,
    inside: Rounded,
    weights: Sequence[Rounded],
    biases: Sequence[Rounded | None],
    slope: Rounded | float | None,
    name: str,
    res_scale: float,
) -> Rounded:
    """``inside``: the image that the first convolution reads, in autocast's dtype."""
    h = activation(convolution(inside, weights[0], biases[0]), name, slope)
    return plus(x, convolution(h, weights[1], biases[1], res_scale))


def dense_block(
    x: Rounded,
    inside: Rounded,
    weights: Sequence[Rounded],
    biases: Sequence[Rounded | None],
    slope: float,
    res_scale: float,
) -> Rounded:
    parts = [inside]
    for weight, bias in zip(weights[:4], biases[:4], strict=True):
        parts.append(activation(convolution(cat(parts, 1), weight, bias), "leaky_relu", slope))
    return plus(x, convolution(cat(parts, 1), weights[4], biases[4], res_scale))
