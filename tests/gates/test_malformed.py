"""Random malformed calls: each raises one sentence that names the op and the argument, or is valid after all.

A valid call of a public function or constructor gets one or two of its arguments replaced. What an argument may be is
stated once, by its kind (``Number``, ``Image``, ...); everything else must raise TypeError or ValueError.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
import pytest
import torch
from helpers.drawing import Dice, failures, report
from helpers.marks import thorough
from torch import Tensor, nn

import srkernels

SEED = 20260
CASES = 1000
USUAL = 3  # of a whole run, one case in this many
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MASKS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
WRONG, EITHER, RIGHT = range(3)


class Subclass(Tensor):
    """As users write them; nothing is overridden."""


def of(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, max(1, int(np.prod(shape))))[: int(np.prod(shape))].reshape(shape)


# Values of every kind of type, keyed by the expression that makes them.
JUNK: dict[str, Callable[[], Any]] = {
    source: (lambda source=source: eval(source))
    for source in (
        "None", "'0.5'", "'no'", "''", "b'relu'", "[]", "[1]", "(1, 2)", "{}", "{'a': 1}", "set()", "object()", "int",
        "1j", "float('nan')", "float('inf')", "-1", "-0.5", "0", "1", "2", "0.5", "1e400", "2**70", "True", "False",
        "Fraction(1, 2)", "np.float32(0.5)", "np.float64(0.5)", "np.int64(1)", "np.bool_(True)", "np.complex64(1)",
        "np.zeros(3)", "np.zeros((2, 4, 8, 8), np.float32)", "np.array(0.5)", "np.array(['relu'])", "torch.tensor(0.5)",
        "torch.tensor(1)", "torch.ones(1)", "torch.tensor(True)", "torch.zeros(2, 4, 8, 8)", "torch.ones(0)",
        "torch.float32", "(i for i in range(5))", "range(5)", "lambda: 1", "slice(1)", "nn.ReLU()", "'cpu'", "print",
    )
}  # fmt: skip

# What turns a valid tensor into another one, and whether that may be valid.
CHANGES: dict[str, tuple[int, Callable[[Tensor], Any]]] = {
    "t.long()": (WRONG, lambda t: t.long()),
    "t.to(torch.uint8)": (WRONG, lambda t: t.to(torch.uint8)),
    "t > 0": (WRONG, lambda t: t > 0),
    "t.to(torch.complex64)": (WRONG, lambda t: t.to(torch.complex64)),
    "t.to(torch.float8_e4m3fn)": (WRONG, lambda t: t.to(torch.float8_e4m3fn)),
    "t.to(torch.float8_e5m2)": (WRONG, lambda t: t.to(torch.float8_e5m2)),
    "torch.quantize_per_tensor(t, 0.1, 0, torch.quint8)": (
        WRONG,
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
    ),
    "t.to_sparse()": (WRONG, lambda t: t.to_sparse()),
    "t.to_mkldnn()": (WRONG, lambda t: t.to_mkldnn()),
    "torch.nested.nested_tensor(list(t))": (WRONG, lambda t: torch.nested.nested_tensor(list(t))),
    "torch.nested.nested_tensor(list(t), layout=torch.jagged)": (
        WRONG,
        lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
    ),
    "t[None]": (WRONG, lambda t: t[None]),
    "t[0]": (WRONG, lambda t: t[0]),
    "t.sum()": (WRONG, lambda t: t.sum()),
    "t.tolist()": (WRONG, lambda t: t.tolist()),
    "t.numpy()": (WRONG, lambda t: t.detach().numpy()),
    "t[..., :0]": (EITHER, lambda t: t[..., :0]),
    "t[..., 1:]": (EITHER, lambda t: t[..., 1:]),
    "t[:, 1:]": (EITHER, lambda t: t[:, 1:] if t.dim() > 1 else t[1:]),
    "t[1:]": (EITHER, lambda t: t[1:]),
    "torch.cat((t, t))": (EITHER, lambda t: torch.cat((t, t))),
    "t[:0]": (EITHER, lambda t: t[:0]),
    "t[:, :0]": (EITHER, lambda t: t[:, :0] if t.dim() > 1 else t[:0]),
    "t.half()": (EITHER, lambda t: t.half()),
    "t.double()": (EITHER, lambda t: t.double()),
    "t.to('meta')": (EITHER, lambda t: t.to("meta")),
    "nn.Parameter(t)": (RIGHT, lambda t: nn.Parameter(t)),
    "t.as_subclass(Subclass)": (RIGHT, lambda t: t.as_subclass(Subclass)),
    "torch._neg_view(t)": (RIGHT, lambda t: torch._neg_view(t)),
    "t.flip(0).flip(0)": (RIGHT, lambda t: t.flip(0).flip(0)),
}


@dataclass(frozen=True)
class Kind:
    """What an argument may be: ``standing`` of a value that JUNK or ``changes`` makes."""

    optional: bool = False

    def standing(self, value: Any) -> int:
        return WRONG

    def replacements(self, right: Any, dice: Dice) -> tuple[str, Any, int]:
        """(expression, value, standing) of one replacement."""
        source = dice.choice(list(JUNK))
        value = JUNK[source]()
        return source, value, RIGHT if self.optional and value is None else self.standing(value)


@dataclass(frozen=True)
class Number(Kind):
    positive: bool = False

    def standing(self, value: Any) -> int:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (Real, np.floating, np.integer)):
            return WRONG
        if self.positive and not value > 0:
            return WRONG
        return EITHER if isinstance(value, Fraction) else RIGHT


class Boolean(Kind):
    def standing(self, value: Any) -> int:
        return RIGHT if isinstance(value, (bool, np.bool_)) else WRONG


class Choice(Kind):
    """One of a few names, none of which JUNK makes."""


class Count(Kind):
    """A size of at least 1; other integers may not fit the rest of the call."""

    def standing(self, value: Any) -> int:
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        return EITHER if whole and 0 <= value <= 1024 else WRONG


class Kernel(Count):
    """A size, or one for each axis."""

    def standing(self, value: Any) -> int:
        if isinstance(value, (tuple, list)) and len(value) == 2:
            return min(map(super().standing, value))
        return super().standing(value)


class Padding(Kernel):
    """The same, where None is half a filter of odd size."""

    def standing(self, value: Any) -> int:
        return EITHER if value is None else super().standing(value)


@dataclass(frozen=True)
class Image(Kind):
    """A floating-point tensor."""

    def standing(self, value: Any) -> int:
        return EITHER if isinstance(value, Tensor) and value.dtype in FLOATS else WRONG

    def replacements(self, right: Any, dice: Dice) -> tuple[str, Any, int]:
        if not isinstance(right, Tensor) or dice.sometimes(0.3):
            return super().replacements(right, dice)
        source = dice.choice(list(CHANGES))
        standing, change = CHANGES[source]
        try:
            return source, change(right), standing
        except (RuntimeError, TypeError):  # torch has no such tensor of this shape
            return super().replacements(right, dice)


class Weight(Image):
    """A map of four dimensions, or of fewer where they are plain, a mask, or a number."""

    def standing(self, value: Any) -> int:
        if isinstance(value, Tensor) and value.dtype in (*FLOATS, *MASKS):
            return EITHER
        return Number().standing(value)

    def replacements(self, right: Any, dice: Dice) -> tuple[str, Any, int]:
        source, value, standing = super().replacements(right, dice)
        plain = isinstance(value, Tensor) and value.dtype in (*FLOATS, *MASKS) and value.dim() <= 4
        return source, value, EITHER if plain and value.layout is torch.strided else standing


def _same_shape(value: Any, right: Any) -> bool:
    return right is None or (isinstance(value, Tensor) and value.shape == right.shape)


@dataclass(frozen=True)
class Several(Kind):
    """A sequence of five tensors, or Nones where ``holes``."""

    holes: bool = False

    def replacements(self, right: Any, dice: Dice) -> tuple[str, Any, int]:
        if dice.sometimes(0.3):
            return super().replacements(right, dice)
        if dice.sometimes(0.4):
            source, make, standing = dice.one(
                ("tuple(ts)", tuple, RIGHT),
                ("ts[:4]", lambda ts: ts[:4], WRONG),
                ("ts + ts[:1]", lambda ts: ts + ts[:1], WRONG),
                ("iter(ts)", iter, WRONG),
                ("dict(enumerate(ts))", lambda ts: dict(enumerate(ts)), WRONG),
                ("set(ts)", set, WRONG),
                ("[ts] * 5", lambda ts: [ts] * 5, WRONG),
                ("'abcde'", lambda ts: "abcde", WRONG),
                ("ts[0]", lambda ts: ts[0], WRONG),
                ("torch.zeros(5, 4, 4, 3, 3)", lambda ts: torch.zeros(5, 4, 4, 3, 3), WRONG),
                ("nn.ParameterList(ts)", nn.ParameterList, EITHER),
            )
            return source, make(list(right)), standing
        at = dice.randrange(5)
        source, value, standing = Image(optional=self.holes).replacements(right[at], dice)
        if standing == EITHER and not _same_shape(value, right[at]):
            standing = WRONG
        return f"ts[{at}] = {source}", [*right[:at], value, *right[at + 1 :]], standing


class Bands(Image):
    """A tensor or, in conventions with tuples, three."""

    def replacements(self, right: Any, dice: Dice) -> tuple[str, Any, int]:
        if not isinstance(right, tuple) or dice.sometimes(0.3):
            return super().replacements(right, dice)
        if dice.sometimes(0.3):
            source, value, standing = dice.one(
                ("list(ts)", list(right), RIGHT),
                ("ts[:2]", right[:2], WRONG),
                ("ts + ts", right + right, WRONG),
                ("iter(ts)", iter(right), WRONG),
                ("torch.stack(ts)", torch.stack(right), WRONG),
                ("'abc'", "abc", WRONG),
            )
            return source, value, standing
        at = dice.randrange(3)
        source, value, standing = Image().replacements(right[at], dice)
        if standing == EITHER and not _same_shape(value, right[at]):
            standing = WRONG
        return f"ts[{at}] = {source}", (*right[:at], value, *right[at + 1 :]), standing


class Size(Kind):
    """(rows, columns) of an image whose bands are 4x4."""

    def replacements(self, right: Any, dice: Dice) -> tuple[str, Any, int]:
        source, standing = dice.one(
            ("[8, 7]", RIGHT), ("torch.Size((7, 8))", RIGHT), ("(np.int64(8), 8)", RIGHT), ("None", RIGHT),
            ("8", WRONG), ("(8,)", WRONG), ("(8, 8, 8)", WRONG), ("'88'", WRONG), ("(8.0, 8)", WRONG),
            ("(8, '8')", WRONG), ("(8, None)", WRONG), ("(True, 8)", WRONG), ("(9, 8)", RIGHT), ("(9, 7)", WRONG),
            ("(-8, 8)", WRONG), ("(8, 2**70)", WRONG), ("{7: 1, 8: 2}", WRONG), ("(8, float('nan'))", WRONG),
            ("((8,), 8)", WRONG),
            ("(torch.tensor(8), 8)", WRONG), ("torch.tensor([8, 8])", WRONG), ("np.array([8, 8])", EITHER),
            ("(np.float32(8), 8)", WRONG), ("iter((8, 8))", WRONG), ("object()", WRONG), ("(8j, 8)", WRONG),
            ("{8, 7}", WRONG),
        )  # fmt: skip
        return source, eval(source), standing


class Asked(Image):
    """What ``explain`` is called with: it may answer for tensors that an op would refuse."""

    def replacements(self, right: Any, dice: Dice) -> tuple[str, Any, int]:
        source, value, standing = super().replacements(right, dice)
        return source, value, max(standing, EITHER)


class Public(Kind):
    """A function of the library or its name."""


class Model(Kind):
    def standing(self, value: Any) -> int:
        return RIGHT if isinstance(value, nn.Module) else WRONG


@dataclass(frozen=True)
class Signature:
    """A valid call: every argument with its valid value and its kind."""

    name: str
    run: Callable[..., Any]
    arguments: dict[str, tuple[Any, Kind]]
    says: tuple[str, ...] = ()  # other names that an error may begin with: the op that a module calls
    positional: int = 0  # arguments that are passed by position

    @property
    def names(self) -> set[str]:
        """What an error may name: arguments of the call, and of the op that a module calls."""
        ops = [getattr(srkernels, op) for op in self.says if hasattr(srkernels, op)]
        return {*self.arguments, *self.says, *(name for op in ops for name in inspect.signature(op).parameters)}


IMAGE, OPTIONAL, NAME, NUMBER, FLAG, COUNT = Image(), Image(optional=True), Choice(), Number(), Boolean(), Count()


def _entered(backend: Any) -> None:
    with srkernels.use_backend(backend):
        pass


def _called(module: type[nn.Module], *arguments: Any, **settings: Any) -> Callable[..., Any]:
    return lambda *inputs, **named: module(*arguments, **settings)(*inputs, **named)


def _signatures() -> Iterator[Signature]:
    x, filters, bias = of(2, 4, 8, 8), of(6, 4, 3, 3), of(6)
    bands = {"x": (x, IMAGE), "convention": ("irn", NAME), "pad": ("zero", NAME)}
    several = {"levels": (2, COUNT), "bands": ("both", NAME)}
    yield Signature("haar_dwt2d", srkernels.haar_dwt2d, {**bands, **several})
    yield Signature("haar_highpass", srkernels.haar_highpass, bands)
    for convention, high in (
        ("irn", of(2, 12, 4, 4)),
        ("orthonormal", of(2, 4, 3, 4, 4)),
        ("wct2", (of(2, 4, 4, 4),) * 3),
    ):
        yield Signature(
            "haar_idwt2d",
            srkernels.haar_idwt2d,
            {
                "low": (of(2, 4, 4, 4), OPTIONAL),
                "high": (high, Bands(optional=True)),
                "convention": (convention, NAME),
                "output_size": ((8, 8), Size()),
            },
            positional=2,
        )
    yield Signature(
        "convert_haar_weight",
        srkernels.convert_haar_weight,
        {
            "weight": (of(6, 12, 3, 3), IMAGE),
            "source": ("mwcnn", NAME),
            "target": ("irn", NAME),
            "bias": (bias, OPTIONAL),
            "bands": ("high", NAME),
        },
    )
    loss = {"input": (x, IMAGE), "target": (of(2, 4, 8, 8), IMAGE), "weight": (of(2, 1, 4, 4), Weight(optional=True))}
    settings = {"reduction": ("mean", NAME), "normalize": ("numel", NAME), "align_corners": (False, FLAG)}
    yield Signature("weighted_l1_loss", srkernels.weighted_l1_loss, {**loss, **settings})
    others = {"kind": ("huber", NAME), "delta": (0.5, Number(positive=True)), "interpolation": ("bilinear", NAME)}
    yield Signature("weighted_loss", srkernels.weighted_loss, {**loss, **settings, **others})
    for activation, slope in (("leaky_relu", (0.1, Number(optional=True))), ("prelu", (bias, IMAGE))):
        yield Signature(
            "conv2d_act",
            srkernels.conv2d_act,
            {
                "x": (x, IMAGE),
                "weight": (filters, IMAGE),
                "bias": (bias, OPTIONAL),
                "activation": (activation, NAME),
                "slope": slope,
                "residual": (of(2, 6, 8, 8), OPTIONAL),
                "scale": (0.5, NUMBER),
            },
        )
        yield Signature(
            "conv2d_act",
            srkernels.conv2d_act,
            {
                "x": (x, IMAGE),
                "weight": (of(6, 2, 4, 4), IMAGE),
                "bias": (bias, OPTIONAL),
                "activation": (activation, NAME),
                "slope": slope,
                "residual": (of(2, 6, 4, 5), OPTIONAL),
                "stride": ((2, 2), Kernel()),
                "padding": ((1, 2), Padding()),
                "dilation": (1, Kernel()),
                "groups": (2, COUNT),
                "padding_mode": ("reflect", NAME),
            },
        )
        yield Signature(
            "residual_block",
            srkernels.residual_block,
            {
                "x": (x, IMAGE),
                "weight1": (filters, IMAGE),
                "bias1": (bias, OPTIONAL),
                "weight2": (of(4, 6, 3, 3), IMAGE),
                "bias2": (of(4), OPTIONAL),
                "activation": (activation, NAME),
                "slope": slope,
                "res_scale": (0.5, NUMBER),
                "save": ("recompute", NAME),
            },
        )
    weights = [of(4 if k == 4 else 2, 4 + 2 * k, 3, 3) for k in range(5)]
    yield Signature(
        "dense_block",
        srkernels.dense_block,
        {
            "x": (x, IMAGE),
            "weights": (weights, Several()),
            "biases": ([of(2), None, of(2), of(2), of(4)], Several(optional=True, holes=True)),
            "slope": (0.2, Number(positive=True)),
            "res_scale": (0.2, NUMBER),
            "save": ("activations", NAME),
        },
    )

    pad = {"convention": ("irn", NAME), "pad": ("zero", NAME)}
    yield Signature("HaarDWT2d", srkernels.nn.HaarDWT2d, {**pad, **several})
    yield Signature("HaarHighPass", srkernels.nn.HaarHighPass, pad)
    yield Signature("WeightedL1Loss", srkernels.nn.WeightedL1Loss, {"loss_weight": (0.5, NUMBER), **settings})
    common = {
        "activation": ("leaky_relu", NAME),
        "slope": (0.1, Number(optional=True)),
        "slopes": (1, COUNT),
        "bias": (True, FLAG),
    }
    yield Signature(
        "Conv2dAct",
        srkernels.nn.Conv2dAct,
        {"in_channels": (4, COUNT), "out_channels": (6, COUNT), "kernel_size": (3, Kernel()), **common},
    )
    save = {"res_scale": (0.5, NUMBER), "save": ("recompute", NAME)}
    yield Signature("ResidualBlock", srkernels.nn.ResidualBlock, {"channels": (4, COUNT), **common, **save})
    dense = {
        "channels": (4, COUNT),
        "growth": (2, COUNT),
        "slope": (0.2, Number(positive=True)),
        "bias": (True, FLAG),
        **save,
    }
    yield Signature("ResidualDenseBlock", srkernels.nn.ResidualDenseBlock, dense)
    yield Signature("RRDB", srkernels.nn.RRDB, dense, ("ResidualDenseBlock",))
    for module, op, sizes in (
        (srkernels.nn.HaarDWT2d, "haar_dwt2d", ()),
        (srkernels.nn.HaarHighPass, "haar_highpass", ()),
        (srkernels.nn.Conv2dAct, "conv2d_act", (4, 6)),
        (srkernels.nn.ResidualBlock, "residual_block", (4,)),
        (srkernels.nn.ResidualDenseBlock, "dense_block", (4, 2)),
        (srkernels.nn.RRDB, "dense_block", (4, 2)),
    ):
        yield Signature(module.__name__ + ".forward", _called(module, *sizes), {"x": (x, IMAGE)}, (op,))
    yield Signature(
        "WeightedL1Loss.forward", _called(srkernels.nn.WeightedL1Loss, 0.5), loss, ("weighted_loss",), positional=3
    )

    yield Signature("use_backend", _entered, {"backend": ("native", Choice(optional=True))}, positional=1)
    asked = {"op": ("conv2d_act", Public()), "x": (x, Asked()), "weight": (filters, Asked(optional=True))}
    yield Signature("explain", srkernels.explain, asked, ("inputs",), positional=3)
    for function in (srkernels.patch, srkernels.unpatch):
        yield Signature(function.__name__, function, {"model": (nn.Sequential(nn.Conv2d(4, 4, 3)), Model())})


_SIGNATURES = list(_signatures())
_OF_PYTHON = re.compile(r"unexpected keyword|missing \d+ required|takes (from )?\d+ .*positional|multiple values for")
_CANNOT_RUN = re.compile(r"\w+: backend '\w+' was asked for but cannot run: [^\n]+")


@dataclass(frozen=True)
class Malformed:
    """One call."""

    signature: Signature
    arguments: dict[str, Any]
    replaced: dict[str, tuple[str, Any, int]]
    backend: str | None

    def __str__(self) -> str:
        changes = ", ".join(f"{name}={source}" for name, (source, *_) in self.replaced.items())
        return f"{self.signature.name}({changes}) on {self.backend}"

    @property
    def standing(self) -> int:
        standings = [standing for *_, standing in self.replaced.values()]
        # Two replacements that are each valid need not be valid together.
        return min(standings) if len(standings) == 1 or WRONG in standings else EITHER

    def check(self) -> Sequence[tuple[str, str]]:
        names = list(self.arguments)
        by_position = [self.arguments[name] for name in names[: self.signature.positional]]
        named = {name: self.arguments[name] for name in names[self.signature.positional :]}
        try:
            with srkernels.use_backend(self.backend):
                self.signature.run(*by_position, **named)
        except Exception as error:
            wrong = self._refusal(error)
        else:
            wrong = "accepted" if self.standing == WRONG else None
        return [(f"{self.signature.name}({', '.join(self.replaced)}): {wrong.split(':')[0]}", wrong)] if wrong else []

    def _refusal(self, error: Exception) -> str | None:
        """What is wrong with the error that the call raised."""
        sentence = str(error)
        seen = f"{type(error).__name__}: {sentence[:300]}"
        if self.standing == RIGHT:
            return f"refused: {seen}"
        if isinstance(error, RuntimeError) and _CANNOT_RUN.fullmatch(sentence):
            return None
        if not isinstance(error, (TypeError, ValueError)):
            return seen
        if isinstance(error, TypeError) and _OF_PYTHON.search(sentence):
            return None
        name = self.signature.name.removesuffix(".forward")
        if not sentence.startswith(tuple(f"{op}: " for op in (name, *self.signature.says))):
            return f"does not begin with the name: {seen}"
        if "\n" in sentence:
            return f"several lines: {seen}"
        # If two tensors do not fit each other, either may be named.
        only = [name for name, (_, value, _) in self.replaced.items() if not isinstance(value, (Tensor, list, tuple))]
        named = only if len(self.replaced) == 1 and only else self.signature.names
        if not any(re.search(rf"\b{name}\b", sentence) for name in named):
            return f"does not name the argument: {seen}"
        return None


def draw(seed: int, number: int) -> Malformed:
    dice = Dice(seed, number)
    signature = dice.choice(_SIGNATURES)
    names = list(signature.arguments)
    arguments = {name: right for name, (right, _) in signature.arguments.items()}
    replaced = {}
    for name in dice.sample(names, 2 if len(names) > 1 and dice.sometimes(0.25) else 1):
        right, kind = signature.arguments[name]
        replaced[name] = kind.replacements(right, dice)
        arguments[name] = replaced[name][1]
    if signature.positional < len(names) and dice.sometimes(0.03):
        arguments[names[-1] + "s"] = arguments.pop(names[-1])
        replaced["misspelt"] = "", None, WRONG
    return Malformed(signature, arguments, replaced, dice.one(None, None, "reference", "native"))


@pytest.mark.parametrize("share", [USUAL, thorough(1)])
def test_malformed_calls(share: int, pytestconfig: pytest.Config) -> None:
    seed, cases = pytestconfig.getoption("--seed") or SEED, (pytestconfig.getoption("--cases") or CASES) // share
    found = failures("test_malformed", seed, cases)
    assert not found, report(seed, cases, found)


def test_right_calls_are_right() -> None:
    """The calls that the malformed ones are made from."""
    for signature in _SIGNATURES:
        right = {name: (str(value), value, RIGHT) for name, (value, _) in signature.arguments.items()}
        case = Malformed(signature, {name: value for name, (_, value, _) in right.items()}, right, None)
        assert not case.check(), case
