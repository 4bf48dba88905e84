"""Random calls of every op against formulas that share nothing with it: values, gradients, dtypes, layouts.

Everything about a call is drawn independently: backend, settings, sizes, the dtype and layout of each operand, which
of them require a gradient and how it is computed, autocast. The allowed error of a result follows from the operands
(``helpers.rounding``); no tolerance is picked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import count, islice
from math import gcd, inf, prod
from typing import Any

import pytest
import torch
from helpers import formulas
from helpers.drawing import Dice, failures, report
from helpers.marks import thorough
from helpers.operands import arranged
from helpers.rounding import Rounded, cast, exact, gradients, number, registers, viewed
from torch import Tensor
from torch.nn import functional as F

import srkernels
from srkernels import _triton
from srkernels._parity import flat

SEED = 20272
CASES = 2000
USUAL = 5  # of a whole run, one case in this many
INTERPRETED = 40  # one case in this many runs in Triton's interpreter
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
MASKS = {"bool": torch.bool, "uint8": torch.uint8, "int64": torch.int64}
LAYOUTS = ("contiguous", "channels_last", "sliced", "strided", "expanded", "permuted", "gray")
VALUES = ("normal", "whole", "ties", "large")
PADS = ("reflect", "zero", "symmetric", "periodization", "periodic", "floor")
ASKED = ("value", "backward", "grad", "create_graph", "func", "second")


CONVOLUTIONS = ("conv2d_act", "residual_block", "dense_block")


@dataclass
class Call:
    """One call of an op: its tensors by name, how to make it, and what it should give."""

    op: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    run: Callable[..., Any]  # of the tensors by name, and settings that are to be others
    formula: Callable[[dict[str, Rounded]], list[Rounded]]
    like: list[str]  # for each output, the operand whose layout it follows
    backend: str | None = None
    autocast: bool = False
    asked: str = "value"
    wanted: list[str] = field(default_factory=list)
    described: dict[str, str] = field(default_factory=dict)
    cotangent_seed: int = 0

    def __str__(self) -> str:
        operands = [f"{n}={d}{' grad' if n in self.wanted else ''}" for n, d in self.described.items()]
        settings = [f"{name}={value!r}" for name, value in self.settings.items()]
        mode = " under autocast" if self.autocast else ""
        return f"{self.op}({', '.join(operands + settings)}) on {self.backend}{mode}, asked for {self.asked}"

    def context(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()

    def check(self) -> Iterator[tuple[str, str]]:
        where = f"{self.op} on {self.backend}{' under autocast' if self.autocast else ''}"
        try:
            for what, seen in self._check():
                yield f"{where}: {what}", seen
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            yield f"{where}: {type(error).__name__}: {first[:80]}", f"asked for {self.asked}: {error}"[:600]

    def _check(self) -> Iterator[tuple[str, str]]:
        leaves = {name: x.detach().requires_grad_(name in self.wanted) for name, x in self.tensors.items()}
        before = {name: x.clone() for name, x in self.tensors.items()}
        with srkernels.use_backend(self.backend), self.context():
            outputs = flat(self.run(leaves))
            again = flat(self.run(leaves))
        sources = {name: exact(x) for name, x in self.tensors.items()}
        expected = self.formula(sources)
        if len(outputs) != len(expected):
            yield "number of outputs", f"{len(outputs)}, expected {len(expected)}"
            return
        for i, (y, e) in enumerate(zip(outputs, expected, strict=True)):
            yield from _compared(f"output {i}", y, e, self._like(self.like[i]), y.dim() >= 4)
        if not all(torch.equal(_bits(a), _bits(b)) for a, b in zip(outputs, again, strict=True)):
            yield "not repeatable", "two calls differ"
        if self.wanted:
            yield from self._check_gradients(leaves, sources, outputs, expected)
        for name, x in self.tensors.items():
            if not torch.equal(_bits(x), _bits(before[name])):
                yield f"{name} written to", ""

    def _like(self, name: str) -> Tensor:
        """The tensor whose layout ``name``, or the output that follows it, has."""
        if name == "x" and self.op == "conv2d_act" and self.tensors["x"].numel():
            filters = self.tensors["weight"]  # an image is converted to their layout
            return filters if _is_image_in_channels_last(filters) else self.tensors["x"]
        return self.tensors["high[0]" if name.startswith("high[") else name]

    def _check_gradients(
        self, leaves: dict[str, Tensor], sources: dict[str, Rounded], outputs: list[Tensor], expected: list[Rounded]
    ) -> Iterator[tuple[str, str]]:
        cotangents = [_cotangent(y, self.cotangent_seed + i) for i, y in enumerate(outputs)]
        given = [exact(c) for c in cotangents]
        exact_grads = gradients(expected, given, [sources[name] for name in self.wanted])
        second = self.asked == "second"
        if second:
            for c in cotangents:
                c.requires_grad_()
        found = self._gradients(leaves, outputs, cotangents)
        for name, g, e in zip(self.wanted, found, exact_grads, strict=True):
            # Plain eager PyTorch lays out gradients as it likes, and so does its accumulation of them.
            ours = self.asked != "backward" and not (self.backend is None and self.op in CONVOLUTIONS)
            like = self._like(name)
            # The gradient of what is only added is the cotangent itself, also where autocast keeps the skip's dtype.
            added = name == "residual" or (self.autocast and name == "x" and self.op in CONVOLUTIONS)
            laid_out = ours and like.dim() >= 4 and not added
            yield from _compared(f"gradient of {name}", g, e, like, laid_out)
        if not second:
            return
        directions = [_cotangent(g, self.cotangent_seed + 100 + i) for i, g in enumerate(found)]
        names = [*self.wanted, *(f"cotangent {i}" for i in range(len(cotangents)))]
        of = [*(leaves[name] for name in self.wanted), *cotangents]
        differentiable = [(g, v) for g, v in zip(found, directions, strict=True) if g.requires_grad]
        of_second = torch.autograd.grad(
            [g for g, _ in differentiable], of, [v for _, v in differentiable], materialize_grads=True
        )
        pairs = [(e, exact(v)) for e, v in zip(exact_grads, directions, strict=True) if e is not None]
        exact_second = gradients(
            [e for e, _ in pairs], [v for _, v in pairs], [*(sources[name] for name in self.wanted), *given]
        )
        for name, x, g, e in zip(names, of, of_second, exact_second, strict=True):
            yield from _compared(f"second derivative by {name}", g, e, x, False)

    def _gradients(
        self, leaves: dict[str, Tensor], outputs: list[Tensor], cotangents: list[Tensor]
    ) -> Sequence[Tensor]:
        wanted = [leaves[name] for name in self.wanted]
        if self.asked == "backward":
            torch.autograd.backward(outputs, cotangents)
            return [x.grad for x in wanted]  # type: ignore[misc]
        if self.asked != "func":
            return torch.autograd.grad(
                outputs, wanted, cotangents, create_graph=self.asked != "grad", materialize_grads=True
            )

        def loss(*inputs: Tensor) -> Tensor:
            tensors = {**self.tensors, **dict(zip(self.wanted, inputs, strict=True))}
            with self.context():
                ys = flat(self.run(tensors))
            return sum((y.double() * c.double()).sum() for y, c in zip(ys, cotangents, strict=True))  # type: ignore

        with srkernels.use_backend(self.backend):
            return torch.func.grad(loss, tuple(range(len(wanted))))(*(x.detach() for x in wanted))


def _bits(x: Tensor) -> Tensor:
    return torch.nan_to_num(x.detach(), nan=12345.0)


def _cotangent(y: Tensor, seed: int) -> Tensor:
    """Random, in a layout of its own."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.empty(y.shape).uniform_(-1, 1, generator=generator).to(y.dtype)
    if y.dim() < 4:
        return c
    layout = ("contiguous", "channels_last", "strided", "permuted", "expanded", "zero strides")[seed % 6]
    if layout == "zero strides":
        return c.flatten()[:1].sum().expand(y.shape)
    return arranged(c, layout)


def _compared(what: str, found: Tensor | None, expected: Rounded | None, like: Tensor, laid_out: bool) -> Any:
    """Differences in dtype, shape, layout and value."""
    if found is None:
        yield f"{what} is None", ""
        return
    found = found.detach()
    if expected is None:
        if found.any():
            yield f"{what}: value", f"largest {found.abs().max().item():.3g}, expected 0"
        return
    if found.dtype is not expected.dtype:
        yield f"{what}: dtype", f"{found.dtype}, expected {expected.dtype}"
    if found.shape != expected.shape:
        yield f"{what}: shape", f"{tuple(found.shape)}, expected {tuple(expected.shape)}"
        return
    if laid_out and not _follows(found, like):
        yield f"{what}: layout", f"strides {found.stride()} of {tuple(found.shape)}, its operand's {like.stride()}"
    value, error = expected.value, expected.error
    bound = torch.zeros_like(value) if error is None else error.nan_to_num(torch.inf, torch.inf)
    right = ((found.double() - value).abs() <= bound) | (bound == torch.inf) | (found.isnan() & value.isnan())
    if not right.all():
        off = torch.where(right, 0.0, (found.double() - value).abs() / bound).nan_to_num(torch.inf)
        at = int(off.argmax())
        yield (
            f"{what}: value",
            f"{int((~right).sum())} of {right.numel()} elements; element {at} is {found.flatten()[at].item():.9g}, "
            f"expected {value.flatten()[at].item():.9g} within {bound.flatten()[at].item():.3g}",
        )


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _follows(found: Tensor, like: Tensor) -> bool:
    """Dense NHWC that is not also dense NCHW is followed; everything else gives a contiguous tensor."""
    found, like = (_as_image(x) for x in (found, like))
    return _is_channels_last(found) if _is_image_in_channels_last(like) else found.is_contiguous()


def _is_image_in_channels_last(x: Tensor) -> bool:
    return _is_channels_last(x) and not x.is_contiguous()


def _as_image(x: Tensor) -> Tensor:
    """Bands in an axis of their own, (N, C, bands, h, w), as the image that they flatten to, if that needs no copy."""
    if x.dim() == 5:
        together = x.shape[1] == 1 or x.stride(1) == x.shape[2] * x.stride(2)
        return x.flatten(1, 2) if together else x.permute(0, 1, 3, 4, 2)[..., 0]
    return x


# Drawing.


class Draws:
    """What a case is made of."""

    def __init__(self, seed: int, number: int) -> None:
        self.dice = Dice(seed, number)
        self.values = self.dice.one("normal", "normal", "whole", "ties", "large")
        self.generator = torch.Generator().manual_seed(self.dice.getrandbits(40))
        self.described: dict[str, str] = {}
        self.dtype = self.dice.choice(list(DTYPES))
        self.mixes = self.dice.sometimes(0.7)  # dtypes, where an op allows it
        self.autocast = self.dice.sometimes(0.15)
        self.asked = self.dice.choice(ASKED)
        # Kernels have fast paths for dense images of whole vectors; half of the cases may take them.
        self.layout = self.dice.one("contiguous", "channels_last", None, None)
        self.whole_vectors = self.dice.sometimes(0.4)

    def any_dtype(self) -> str:
        return self.dice.choice(list(DTYPES)) if self.mixes else self.dtype

    def size(self) -> int:
        if INTERPRETING:
            return self.dice.one(1, 1, 2, 3, 5)
        if self.whole_vectors:
            return self.dice.one(4, 8, 16)
        return self.dice.one(1, 1, 2, 3, 4, 5, 7, 8, 11, 13, 16)

    def image(self) -> tuple[int, int, int, int]:
        dice = self.dice
        if dice.sometimes(0.003) and not INTERPRETING:
            return dice.one((2, 3, 192, 192), (1, 16, 48, 48), (2, 3, 63, 127))
        n, c = dice.one(1, 1, 2, 3), dice.one(1, 1, 2, 3) if INTERPRETING else dice.one(1, 2, 3, 3, 4, 8)
        if dice.sometimes(0.03) and self.asked != "second":  # that of an empty mean is infinity times zero
            n = 0
        return n, c, self.size(), self.size()

    def numbers(self, shape: Sequence[int], scale: float = 1.0) -> Tensor:
        x = torch.randn(tuple(shape), generator=self.generator)
        if self.values == "whole":
            return torch.randint(-3, 4, tuple(shape), generator=self.generator).float()
        if self.values == "ties":
            return (2 * x).round() / 2
        return x * scale * (100 if self.values == "large" and scale == 1 else 1)

    def tensor(self, name: str, shape: Sequence[int], dtype: str | None = None, values: Tensor | None = None) -> Tensor:
        """One operand in a layout of its own."""
        dtype = dtype or self.dtype
        x = (self.numbers(shape) if values is None else values).to({**DTYPES, **MASKS}[dtype])
        layout = self.layout or self.dice.choice(LAYOUTS)
        if dtype in MASKS:  # the gaps of other layouts hold NaN
            layout = self.dice.one("contiguous", "channels_last", "permuted", "expanded")
        if len(shape) < 4:
            layout = self.dice.one("contiguous", "contiguous", "strided")
        if layout == "gray":
            x = x[:, :1].contiguous().expand(x.shape) if x.shape[1] else x
        elif len(shape) == 1:
            x = torch.stack((x, torch.full_like(x, torch.nan)), 1)[:, 0] if layout == "strided" else x
        else:
            x = arranged(x, layout)
        self.described[name] = f"{dtype}{tuple(shape)} {layout}"
        return x


def _haar_eager(backend: str | None) -> bool:
    return backend == "reference"


def _analysis(draws: Draws, op: str, backend: str | None) -> Call:
    dice = draws.dice
    shape = list(draws.image())
    if dice.sometimes(0.03):
        shape[1] = 0
    x = draws.tensor("x", shape)
    least, largest = min(shape[2:]), max(shape[2:])
    settings = {"convention": dice.choice(list(formulas.HAAR)), "pad": dice.choice(PADS[: 6 if least > 1 else 5])}
    bands, levels = "high", 1
    if op == "haar_dwt2d":
        bands = settings["bands"] = dice.one("both", "both", "low", "high")
        most = least.bit_length() - 1 if settings["pad"] == "floor" else max(1, (largest - 1).bit_length())
        levels = settings["levels"] = min(most, dice.one(1, 1, 2, 3))

    def formula(xs: dict[str, Rounded]) -> list[Rounded]:
        low, highs = xs["x"], []
        for _ in range(levels):
            low, high = formulas.haar_analysis(low, settings["convention"], settings["pad"], _haar_eager(backend))
            highs += high
        return [low] * (bands != "high") + highs * (bands != "low")

    function = getattr(srkernels, op)
    like = ["x"] * (1 + 3 * levels)
    return Call(op, settings, {"x": x}, lambda ts: function(ts["x"], **settings), formula, like)


def _synthesis(draws: Draws, op: str, backend: str | None) -> Call:
    dice = draws.dice
    n, c, h, w = draws.image()
    convention = dice.choice([name for name in formulas.HAAR if name != "dasr_sum"])
    layout = formulas.HAAR[convention][3]
    which = dice.one("both", "both", "low", "high")
    tensors = {}
    if which != "high":
        tensors["low"] = draws.tensor("low", (n, c, h, w))
    if which != "low":
        if layout == "tuple":
            tensors |= {f"high[{k}]": draws.tensor(f"high[{k}]", (n, c, h, w)) for k in range(3)}
        else:
            tensors["high"] = draws.tensor("high", (n, 3 * c, h, w) if layout == "band-major" else (n, c, 3, h, w))
    sign = dice.one(-1, 1)
    size = dice.one(None, (2 * h + sign * dice.randrange(2), 2 * w + sign * dice.randrange(2)))
    settings = {"convention": convention, "output_size": size}

    def high(ts: dict[str, Any]) -> Any:
        return tuple(ts[f"high[{k}]"] for k in range(3)) if "high[0]" in ts else ts.get("high")

    def formula(xs: dict[str, Rounded]) -> list[Rounded]:
        bands = high(xs)
        bands = [bands] if isinstance(bands, Rounded) else bands
        return [formulas.haar_synthesis(xs.get("low"), bands, convention, size or (2 * h, 2 * w), _haar_eager(backend))]

    return Call(
        op,
        settings,
        tensors,
        lambda ts: srkernels.haar_idwt2d(ts.get("low"), high(ts), convention, output_size=size),
        formula,
        [next(iter(tensors))],
    )


def _weighted_loss(draws: Draws, op: str, backend: str | None) -> Call:
    dice = draws.dice
    shape = draws.image()
    dtypes = [draws.any_dtype() for _ in range(3)]
    input_values = draws.numbers(shape)
    target_values = draws.numbers(shape)
    if draws.values == "ties":
        target_values = torch.where(target_values > 0, input_values, target_values)
    tensors = {
        "input": draws.tensor("input", shape, dtypes[0], input_values),
        "target": draws.tensor("target", shape, dtypes[1], target_values),
    }
    settings: dict[str, Any] = {
        "reduction": dice.one("mean", "mean", "sum", "none"),
        "normalize": dice.one("numel", "weight_sum"),
        "align_corners": dice.one(False, True),
    }
    if op == "weighted_loss":
        settings |= {
            "kind": dice.one("l1", "charbonnier", "charbonnier", "mse", "huber", "huber"),
            "eps": dice.one(1e-12, 1e-6, 1e-3, 0.3),
            "delta": dice.one(1e-3, 0.3, 0.5, 1.0, 2.0, 50.0),
            "interpolation": "bilinear" if settings["align_corners"] else dice.one("bilinear", "nearest"),
        }
    weight, meant = _weight(draws, shape, dtypes[2], settings["normalize"] == "weight_sum")
    if isinstance(weight, Tensor):
        tensors["weight"] = weight
    else:
        settings["weight"] = weight

    def formula(xs: dict[str, Rounded]) -> list[Rounded]:
        w = xs.get("weight")
        if w is not None:
            w = viewed(cast(w, xs["input"].dtype) if w.dtype in MASKS.values() else w, *meant)
        elif weight is not None:
            w = number(weight, xs["input"])
        ts = {"input": xs["input"], "target": xs["target"], "weight": w}
        if call.autocast:
            ts = {name: x and cast(x, registers(x.dtype)) for name, x in ts.items()}
        return [formulas.weighted_loss(**{**settings, **ts})]

    def run(ts: dict[str, Tensor], **changed: Any) -> Tensor:
        return getattr(srkernels, op)(**{**settings, **ts, **changed})

    call = Call(op, settings, tensors, run, formula, ["input"])
    return call


def _weight(
    draws: Draws, shape: Sequence[int], dtype: str, summed: bool
) -> tuple[Tensor | float | None, Sequence[int]]:
    """A weight, of no sum that is nearly zero where it is ``summed``, and the shape of the map that it means."""
    dice, (n, c, height, width) = draws.dice, shape
    given = dice.one("map", "map", "map", "map", "fewer axes", "mask", "number", "none")
    least = int(summed and draws.asked == "second")  # that of a mean by weights of zero is infinity times zero
    if given in ("number", "none"):
        return dice.one(1, 0.5, -2.0, 0.1, least) if given == "number" else None, shape
    size = (draws.size(), draws.size()) if height * width <= 2000 else (48, 48)
    meant = passed = dice.one(1, n), dice.one(1, c), *size
    if given == "fewer axes":
        passed, meant = _fewer_axes(draws, shape, size)
    values = draws.numbers(passed)
    if given == "mask":
        return draws.tensor("weight", passed, dice.choice(list(MASKS)), values.clamp(least, 255)), meant
    return draws.tensor("weight", passed, dtype, values.abs() + 0.5 if summed else values), meant


def _fewer_axes(draws: Draws, shape: Sequence[int], size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of a weight of fewer axes, and of the map that it means: one for all, one per image or per channel."""
    n, c, _, width = shape
    if draws.dice.sometimes(0.4):
        size = ()
    each = size or (1, 1)
    of = draws.dice.one("all", "all, in an axis", "images", "channels")
    if of == "images" and n != c and (size or n != width):
        return (n, *size), (n, 1, *each)
    if of == "channels" and n != c and (size or c != width):
        return (c, *size), (1, c, *each)
    return (1, *size) if of == "all, in an axis" else size, (1, 1, *each)


def _parameters(
    draws: Draws, names: tuple[str, str], c_out: int, c_in: int, kernel: tuple[int, int], dtype: Callable[[], str]
) -> dict[str, Tensor]:
    """Filters and usually a bias."""
    shape = (c_out, c_in, *kernel)
    found = {names[0]: draws.tensor(names[0], shape, dtype(), draws.numbers(shape, prod(shape[1:]) ** -0.5))}
    if draws.dice.sometimes(0.8):
        found[names[1]] = draws.tensor(names[1], (c_out,), dtype(), draws.numbers((c_out,), 0.5))
    return found


def _activation(draws: Draws, channels: int, dtype: Callable[[], str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    name = draws.dice.one("none", "relu", "leaky_relu", "prelu")
    if name == "prelu" and draws.asked == "second" and draws.values in ("whole", "ties"):
        name = "leaky_relu"  # at zero the second derivative of F.prelu contradicts its first
    settings: dict[str, Any] = {"activation": name}
    if name == "leaky_relu":
        settings["slope"] = draws.dice.one(None, 0.1, 0.01, 0.0, -0.5, 1.5)
    if name != "prelu":
        return settings, {}
    count = draws.dice.one(1, channels)
    return settings, {"slope": draws.tensor("slope", (count,), dtype(), draws.numbers((count,), 0.5))}


def _in_autocast(xs: dict[str, Rounded], autocast: bool, apart: Sequence[str] = ()) -> dict[str, Rounded]:
    if not autocast or xs["x"].dtype is torch.float64:
        return xs
    return {name: x if name in apart else cast(x, torch.bfloat16) for name, x in xs.items()}


def _convolved(draws: Draws) -> Callable[[], str]:
    """The dtype of a convolution's operand: one for all, but any under autocast."""
    mixes = draws.autocast and draws.dtype != "fp64"
    return lambda: draws.dice.one("fp16", "bf16", "fp32") if mixes else draws.dtype


OURS = ("native", "triton")  # whose convolutions are 3x3 of stride 1


def _kernel(draws: Draws, backend: str | None) -> tuple[int, int]:
    return (3, 3) if backend in OURS else draws.dice.one((3, 3), (3, 3), (1, 1), (5, 5), (1, 3))


def _passes(draws: Draws, shape: Sequence[int], c_out: int) -> tuple[dict[str, Any], tuple[int, int], formulas.Passes]:
    """How filters pass over an image of ``shape``: the settings, filters' height and width, and what both mean."""
    dice, (_, c_in, *image) = draws.dice, shape
    while True:
        kernel = dice.one((3, 3), (3, 3), (1, 1), (5, 5), (1, 3), (2, 2), (4, 3))
        settings = {
            "stride": dice.one(1, 1, 2, 3, (2, 1), (1, 3)),
            "padding": dice.one(None, None, 0, 1, 2, (1, 0), (0, 3), "same", "valid"),
            "dilation": dice.one(1, 1, 2, (1, 2), (3, 1)),
            "groups": dice.one(1, 2, gcd(c_in, c_out)),
            "padding_mode": dice.one("zeros", "zeros", "reflect", "replicate", "circular"),
        }
        of_both_axes = {name: (n, n) for name, n in settings.items() if isinstance(n, int) and name != "groups"}
        passes = formulas.Passes(**settings | of_both_axes)
        margins, groups, mode = passes.margins(kernel), passes.groups, passes.padding_mode
        most = [{"reflect": size - 1, "circular": size}.get(mode, inf) for size in image]
        if (
            c_in % groups == c_out % groups == 0
            and (passes.padding is not None or kernel[0] % 2 == kernel[1] % 2 == 1)
            and (passes.padding != "same" or passes.stride == (1, 1))
            and all(max(margin) <= size for margin, size in zip(margins, most, strict=True))
            and min(passes.output(image, kernel)) > 0
        ):
            return settings, kernel, passes


def _conv2d_act(draws: Draws, op: str, backend: str | None) -> Call:
    dice, dtype = draws.dice, _convolved(draws)
    shape = draws.image()
    c_out = dice.one(1, 2, 3, 4, 8)
    how, kernel, passes = {}, _kernel(draws, backend), formulas.PLAIN
    if backend not in OURS and dice.sometimes(0.6):
        how, kernel, passes = _passes(draws, shape, c_out)
    tensors = {"x": draws.tensor("x", shape, dtype(), draws.numbers(shape, 2))}
    tensors |= _parameters(draws, ("weight", "bias"), c_out, shape[1] // passes.groups, kernel, dtype)
    settings, slope = _activation(draws, c_out, dtype)
    tensors |= slope
    if dice.sometimes(0.5):
        result = (shape[0], c_out, *passes.output(shape[2:], kernel))
        tensors["residual"] = draws.tensor("residual", result, draws.any_dtype())
    settings |= {"scale": dice.one(1.0, 0.5, 0.1, -2.0, 0.0), **how}

    def formula(xs: dict[str, Rounded]) -> list[Rounded]:
        ts = _in_autocast(xs, call.autocast, ("residual",))
        slope = ts.get("slope", settings.get("slope"))
        return [
            formulas.conv2d_act(
                ts["x"], ts["weight"], ts.get("bias"), slope, ts.get("residual"),
                settings["activation"], settings["scale"], passes,
            )
        ]  # fmt: skip

    def run(ts: dict[str, Tensor], **changed: Any) -> Tensor:
        options = {**settings, **{name: ts[name] for name in ("slope", "residual") if name in ts}, **changed}
        return srkernels.conv2d_act(ts["x"], ts["weight"], ts.get("bias"), **options)

    call = Call(op, settings, tensors, run, formula, ["x"])
    return call


def _residual_block(draws: Draws, op: str, backend: str | None) -> Call:
    dice, dtype = draws.dice, _convolved(draws)
    shape = draws.image()
    c, middle, kernel = shape[1], dice.one(1, 2, 3, 4, 8), _kernel(draws, backend)
    tensors = {"x": draws.tensor("x", shape, dtype(), draws.numbers(shape, 2))}
    tensors |= _parameters(draws, ("weight1", "bias1"), middle, c, kernel, dtype)
    tensors |= _parameters(draws, ("weight2", "bias2"), c, middle, kernel, dtype)
    settings, slope = _activation(draws, middle, dtype)
    tensors |= slope
    settings |= {"res_scale": dice.one(1.0, 0.5, 0.1, -2.0), "save": dice.one("activations", "recompute")}

    def formula(xs: dict[str, Rounded]) -> list[Rounded]:
        ts = _in_autocast(xs, call.autocast)
        weights, biases = [ts["weight1"], ts["weight2"]], [ts.get("bias1"), ts.get("bias2")]
        slope = ts.get("slope", settings.get("slope"))
        arguments = (weights, biases, slope, settings["activation"], settings["res_scale"])
        return [formulas.residual_block(xs["x"], ts["x"], *arguments)]

    def run(ts: dict[str, Tensor]) -> Tensor:
        options = {**settings, **({"slope": ts["slope"]} if "slope" in ts else {})}
        return srkernels.residual_block(
            ts["x"], ts["weight1"], ts.get("bias1"), ts["weight2"], ts.get("bias2"), **options
        )

    call = Call(op, settings, tensors, run, formula, ["x"])
    return call


def _dense_block(draws: Draws, op: str, backend: str | None) -> Call:
    dice, dtype = draws.dice, _convolved(draws)
    shape = draws.image()
    c, growth, kernel = shape[1], dice.one(1, 2, 3, 4), _kernel(draws, backend)
    tensors = {"x": draws.tensor("x", shape, dtype(), draws.numbers(shape, 2))}
    for k in range(5):
        names = f"weights[{k}]", f"biases[{k}]"
        tensors |= _parameters(draws, names, c if k == 4 else growth, c + k * growth, kernel, dtype)
    settings = {
        "slope": dice.one(0.2, 0.2, 0.01, 1.5),
        "res_scale": dice.one(0.2, 0.2, 1.0, -0.5),
        "save": dice.one("activations", "recompute"),
    }

    def split(ts: dict[str, Any]) -> tuple[list[Any], list[Any]]:
        return [ts[f"weights[{k}]"] for k in range(5)], [ts.get(f"biases[{k}]") for k in range(5)]

    def formula(xs: dict[str, Rounded]) -> list[Rounded]:
        ts = _in_autocast(xs, call.autocast)
        return [formulas.dense_block(xs["x"], ts["x"], *split(ts), settings["slope"], settings["res_scale"])]

    def run(ts: dict[str, Tensor]) -> Tensor:
        return srkernels.dense_block(ts["x"], *split(ts), **settings)

    call = Call(op, settings, tensors, run, formula, ["x"])
    return call


OPS: dict[str, Callable[[Draws, str, str | None], Call]] = {
    "haar_dwt2d": _analysis,
    "haar_highpass": _analysis,
    "haar_idwt2d": _synthesis,
    "weighted_l1_loss": _weighted_loss,
    "weighted_loss": _weighted_loss,
    "conv2d_act": _conv2d_act,
    "residual_block": _residual_block,
    "dense_block": _dense_block,
}


def draw(seed: int, number: int) -> Call:
    draws = Draws(seed, number)
    dice = draws.dice
    op = dice.one(*OPS, "weighted_l1_loss", "weighted_loss", "weighted_loss", "conv2d_act")
    backend = "triton" if INTERPRETING else dice.one(None, None, "reference", "native", "native")
    if draws.asked == "second" and not op.startswith("haar"):
        # What eager PyTorch rounds to a narrower dtype on the way to a second derivative is not tested.
        draws.autocast, draws.mixes, draws.dtype = False, False, dice.one("fp32", "fp64")
    call = OPS[op](draws, op, backend)
    call.backend, call.autocast, call.described = backend, draws.autocast, draws.described
    call.asked = draws.asked
    if call.asked != "value":
        names = [name for name, x in call.tensors.items() if x.is_floating_point()]
        call.wanted = names if dice.sometimes(0.3) else sorted(dice.sample(names, dice.randint(1, len(names))))
    call.cotangent_seed = dice.getrandbits(30)
    return call


def _found(pytestconfig: pytest.Config, share: int = 1, **env: str) -> str:
    """The failures of a run, as a report."""
    seed = pytestconfig.getoption("--seed") or SEED
    cases = (pytestconfig.getoption("--cases") or CASES) // share
    found = failures("test_differential", seed, cases, **env)
    return report(seed, cases, found) if found else ""


@pytest.mark.parametrize("share", [USUAL, thorough(1)])
def test_random_calls(share: int, pytestconfig: pytest.Config) -> None:
    found = _found(pytestconfig, share)
    assert not found, found


@pytest.mark.thorough
@pytest.mark.skipif(_triton.why_no_interpreter() is not None, reason=str(_triton.why_no_interpreter()))
def test_random_calls_in_the_interpreter(pytestconfig: pytest.Config) -> None:
    found = _found(pytestconfig, INTERPRETED, TRITON_INTERPRET="1")
    assert not found, found


def _straight_through(call: Call) -> Callable[[dict[str, Tensor]], Tensor]:
    """``conv2d_act`` whose gradient bypasses the activation."""

    def run(ts: dict[str, Tensor]) -> Tensor:
        linear = call.run(ts, activation="none")
        return call.run(ts).detach() + linear - linear.detach()

    return run


def _without_last_column(t: Tensor) -> Tensor:
    return t * (torch.arange(t.shape[-1]) < t.shape[-1] - 1)


def _groups_exchanged(call: Call, weight: Tensor) -> Tensor:
    return weight.roll(len(weight) // call.settings.get("groups", 1), 0)


def _largest(call: Call) -> float:
    """The largest difference of a loss."""
    return (call.tensors["input"].double() - call.tensors["target"].double()).abs().max().item()


def _has_map(call: Call) -> bool:
    return "weight" in call.tensors and call.tensors["weight"].dim() == 4


def _is_resized(call: Call) -> bool:
    return _has_map(call) and any(
        1 < cells != size
        for cells, size in zip(call.tensors["weight"].shape[2:], call.tensors["input"].shape[2:], strict=True)
    )


def _without_tap(weight: Tensor) -> Tensor:
    lost = torch.zeros(weight.shape[-2:], dtype=torch.bool)
    lost[weight.shape[-2] // 2, weight.shape[-1] // 2] = True
    return weight * ~lost


# Fault -> (op, which calls can show it, the faulty op).
FAULTS: dict[str, tuple[str, Callable[[Call], bool], Callable[[Call], Callable[[dict[str, Tensor]], Any]]]] = {
    "bf16 inside fp32": (
        "residual_block",
        lambda call: call.tensors["x"].dtype is torch.float32 and not call.autocast,
        lambda call: lambda ts: call.run({name: t.bfloat16().float() for name, t in ts.items()}),
    ),
    "a tap lost": (
        "conv2d_act",
        lambda call: True,
        lambda call: lambda ts: call.run({**ts, "weight": _without_tap(ts["weight"])}),
    ),
    "a stride's offset lost": (
        "conv2d_act",
        lambda call: call.settings.get("stride", 1) != 1 and call.tensors["x"].shape[-1] > 1,
        lambda call: lambda ts: call.run({**ts, "x": F.pad(ts["x"], (-1, 1))}),
    ),
    "groups exchanged": (
        "conv2d_act",
        lambda call: not torch.equal(_groups_exchanged(call, call.tensors["weight"]), call.tensors["weight"]),
        lambda call: lambda ts: call.run({**ts, "weight": _groups_exchanged(call, ts["weight"])}),
    ),
    "dilation ignored": (
        "conv2d_act",
        lambda call: (
            call.settings.get("dilation", 1) != 1
            and call.settings["padding"] in (None, "same")
            and min(*call.tensors["weight"].shape[2:], *call.tensors["x"].shape[2:]) > 1
        ),
        lambda call: lambda ts: call.run(ts, dilation=1),
    ),
    "zeros taken for a padding mode": (
        "conv2d_act",
        lambda call: call.settings.get("padding_mode", "zeros") != "zeros" and call.settings["padding"] in (1, 2),
        lambda call: lambda ts: call.run(ts, padding_mode="zeros"),
    ),
    "a mask missing": (
        "conv2d_act",
        lambda call: call.settings["activation"] == "relu" and "x" in call.wanted,
        _straight_through,
    ),
    "a gradient of zero": (
        "weighted_l1_loss",
        lambda call: "weight" in call.wanted and len(call.wanted) > 1 and call.asked != "backward",
        lambda call: lambda ts: call.run({**ts, "weight": ts["weight"].detach()}),
    ),
    "the last column lost": (
        "haar_highpass",
        lambda call: True,
        lambda call: lambda ts: call.run({"x": _without_last_column(ts["x"])}),
    ),
    "huber's delta ignored": (
        "weighted_loss",
        lambda call: call.settings["kind"] == "huber" and _largest(call) > 2 * call.settings["delta"],
        lambda call: lambda ts: call.run(ts, delta=4 * call.settings["delta"]),
    ),
    "charbonnier's eps ignored": (
        "weighted_loss",
        lambda call: call.settings["kind"] == "charbonnier" and call.settings["eps"] == 0.3 and _largest(call) < 10,
        lambda call: lambda ts: call.run(ts, eps=1e-12),
    ),
    "nearest taken for bilinear": (
        "weighted_loss",
        lambda call: call.settings["interpolation"] == "nearest" and _is_resized(call),
        lambda call: lambda ts: call.run(ts, interpolation="bilinear"),
    ),
    "the last column of a map lost": (
        "weighted_l1_loss",
        lambda call: _has_map(call) and call.tensors["weight"].shape[-1] <= call.tensors["input"].shape[-1],
        lambda call: lambda ts: call.run({**ts, "weight": _without_last_column(ts["weight"])}),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str) -> None:
    """Nine in ten of the calls that can show a fault do; in the others it meets zeros or ties."""
    op, shows, faulty = FAULTS[fault]

    def can_show(call: Call) -> bool:
        plain = call.op == op and call.backend != "native" and call.asked != "second"
        empty = not call.tensors[call.like[0]].numel() or call.settings.get("scale") == 0
        return plain and not empty and shows(call)

    calls = list(islice(filter(can_show, (draw(SEED, number) for number in count())), 20))
    found = 0
    for call in calls:
        wrong = replace(call, run=faulty(call))
        found += any(kind.endswith(": value") for kind, _ in wrong.check())
    assert found >= 18, f"{found} of {len(calls)}"
