"""Every number that a user can set has a bound, and one place holds it, before anything is forked, made or written."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from importlib import import_module
from types import UnionType
from typing import Annotated, Any, Literal, Union

import pytest
from helpers.arrows import sources

from models.__main__ import main
from models.config import Bound, check_bounds
from models.data import InputError
from models.train.loop import LoopConfig


def option_classes() -> list[type]:
    """The dataclasses of options in this package, and those that they hold."""
    modules = [vars(import_module(name)).values() for name in sources("models")]
    kinds = [value for values in modules for value in values if isinstance(value, type)]
    found = [kind for kind in kinds if kind.__name__.endswith(("Config", "Options", "Command"))]
    for kind in found:  # which grows meanwhile
        held = typing.get_type_hints(kind).values()
        found += [each for each in held if dataclasses.is_dataclass(each) and each not in found]
    return [kind for kind in dict.fromkeys(found) if kind.__module__.startswith("models.")]


def numbers(kind: Any, bounded: bool = False) -> Iterator[bool]:
    """For each number in an annotation, whether it has a bound."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        yield from numbers(arguments[0], any(isinstance(extra, Bound) for extra in arguments[1:]))
    elif origin in (Union, UnionType, tuple, list, dict):
        for each in arguments:
            yield from numbers(each)
    elif origin is not Literal and isinstance(kind, type) and kind in (int, float):
        yield bounded


def unbounded(options: type) -> list[str]:
    hints = typing.get_type_hints(options, include_extras=True)
    return [item.name for item in dataclasses.fields(options) if not all(numbers(hints[item.name]))]


CLASSES = option_classes()


def test_every_number_of_every_option_has_a_bound():
    assert len(CLASSES) > 15
    assert {each.__name__: names for each in CLASSES if (names := unbounded(each))} == {}


def test_a_number_without_a_bound_is_found():
    @dataclasses.dataclass
    class Options:
        one: Annotated[int, Bound(0, 1)] = 0
        many: tuple[Annotated[float, Bound(0, 1)], ...] = ()
        scale: Literal[1, 2] = 1
        flag: bool = False
        forgotten: int | None = None
        pair: tuple[Annotated[int, Bound(0, 1)], int] = (0, 0)

    Options.__annotations__ = {name: eval(kind, {**globals()}) for name, kind in Options.__annotations__.items()}
    assert unbounded(Options) == ["forgotten", "pair"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.1, 1.0, 10**400])
def test_what_lies_outside_is_named(value):
    with pytest.raises(InputError, match=r"^--ema must be from 0 to below 1, got "):
        check_bounds(LoopConfig(ema=value))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--run.workers 1000000", "--run.workers must be from 0 to 128, got 1000000"),
        ("--run.workers -1", "--run.workers must be from 0 to 128, got -1"),
        ("--run.seed -1", "--run.seed must be from 0 to 9223372036854775807, got -1"),
        ("--dsn.betas 0.5 1", "--dsn.betas must be from 0 to below 1, got (0.5, 1.0)"),
        ("--srn.learning-rate nan", "--srn.learning-rate must be above 0 and up to 1, got nan"),
        ("--dsn.discriminator.learning-rate 0", "--dsn.discriminator.learning-rate must be above 0 and up to 1, got 0"),
        ("--dsn.batch 1000000000", "--dsn.batch must be from 1 to 4096, got 1000000000"),
        ("--dsn.crop 1000000000", "--dsn.crop must be from 1 to 8192, got 1000000000"),
        ("--maps.box -3", "--maps.box must be from 0 to 1023, got -3"),
        ("--srn.schedule.at", "--srn.schedule.at must be from 1 to 1000000000, got ()"),
        ("--srn.schedule.at 5 0", "--srn.schedule.at must be from 1 to 1000000000, got (5, 0)"),
        ("--dsn.schedule.pretrain -1", "--dsn.schedule.pretrain must be from 0 to 1000000000, got -1"),
        ("--srn.content-weight inf", "--srn.content-weight must be from 0 to 1000000, got inf"),
        ("--dsn.discriminator.frequency-gain -1", "--dsn.discriminator.frequency-gain must be above 0 and up to 1000"),
        ("--srn.map-cap 0.5", "--srn.map-cap must be from 1 to 1000, got 0.5"),
        ("--dsn.perceptual.means 0", "--dsn.perceptual.means must be above 0 and up to 1000000, got (0.0,)"),
        ("--srn.perceptual.means 2", "--srn.perceptual.means is used with --srn.perceptual.scaled alone"),
        (
            "--srn.perceptual.scaled --srn.perceptual.means 2 3",
            "--srn.perceptual.means must be one for each of conv5_4, got (2.0, 3.0)",
        ),
        ("--dsn.perceptual.network lpips --dsn.perceptual.scaled", "--dsn.perceptual.scaled: LPIPS has a scale of its"),
    ],
)
def test_a_number_out_of_bounds_ends_a_run_before_it_starts(arguments, message, tmp_path, capsys):
    assert main(["dasr", "--preset=tiny", f"--hr={tmp_path}", "--lr=.", f"--out={tmp_path}/o", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        "demo --timing-pairs -1 --root OUT",
        "demo --run.workers 1000000 --root OUT",
        "ablate dasr --out OUT --seeds -1",
        "ablate usrda --out OUT --run.workers 129",
        "profile dasr --steps 0",
        "profile usrda --warmup 0",
        "profile usrda --run.workers 1000000",
        "usrda --dry-run --card-gb nan",
        "usrda --preset tiny --hr OUT --lr OUT --out OUT/o --loss.rec 0",
        "usrda --preset tiny --hr OUT --lr OUT --out OUT/o --synthesis.noise 0 inf",
        "subimages OUT OUT/o --workers 1000000",
        "subimages OUT OUT/o --size 0",
        "upscale --weights OUT OUT OUT/o --tile 0",
        "upscale --weights OUT OUT OUT/o --overlap -1",
        "evaluate --sr OUT --hr OUT --crop-border -1",
        "domain-gap OUT --real OUT --out OUT/o --seeds -1",
        "domain-gap OUT --real OUT --out OUT/o --held-out 1",
        "study OUT --hr OUT --out OUT/o --crop -1",
        "study OUT --hr OUT --out OUT/o --seed -1",
    ],
)
def test_every_command_holds_its_numbers(arguments, tmp_path, capsys):
    assert main(arguments.replace("OUT", str(tmp_path)).split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --") and said.count("\n") == 1
    assert " must be from " in said or " must be above " in said
    assert list(tmp_path.iterdir()) == []
