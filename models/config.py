"""Options as dataclasses: read from YAML that states what differs from the defaults, and written back in full."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import reprlib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml

from models.data import InputError
from models.data.files import read_file

T = TypeVar("T")

# Aliases in a few lines of YAML may stand for gigabytes.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 100, 100


@dataclasses.dataclass(frozen=True)
class Bound:
    """What an option's number may be: `Annotated[int, Bound(1, 9)]`. Every number of every option has one.

    `above` leaves out the lower end, `below` the upper one. Neither NaN nor an infinity is within a bound.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        low = value > self.least if self.above else value >= self.least
        return low and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        low = f"above {self.least} and up to" if self.above else f"from {self.least} to"
        return f"{low} {'below ' if self.below else ''}{self.most}"


@dataclasses.dataclass(frozen=True)
class Size(Bound):
    """A bound, in bytes, of an option that is a size such as 24GB."""

    def __contains__(self, value: object) -> bool:
        return super().__contains__(bytes_of(str(value)))

    def __str__(self) -> str:
        return "a size such as 24GB or 22.5GiB"


def bytes_of(size: str) -> float:
    """Bytes of 24GB (of 1e9 bytes) or 22.5GiB; NaN if it is no size."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) *([kmgt])(i?)b", size.strip().lower())
    if match is None:
        return math.nan
    return float(match[1]) * (1024 if match[3] else 1000) ** ("kmgt".index(match[2]) + 1)


# Bounds that several options share. The upper ends are far beyond what is of use.
Batch = Annotated[int, Bound(1, 4096)]
Beta = Annotated[float, Bound(0, 1, below=True)]
Blocks = Annotated[int, Bound(1, 256)]
Features = Annotated[int, Bound(1, 1024)]
Pixels = Annotated[int, Bound(1, 8192)]
Rate = Annotated[float, Bound(0, 1, above=True)]
Updates = Annotated[int, Bound(1, 10**9)]
Weight = Annotated[float, Bound(0, 10**6)]


def load_yaml(options: type[T], path: Path) -> T:
    """Reads the dataclass `options` from a YAML file; InputError names what is wrong."""
    try:
        mapping = yaml.safe_load(read_file(path))  # bytes: PyYAML reads UTF-8 and UTF-16, and the marks before them
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # PyYAML has more errors than its own: for depth, for dates and numbers that are none
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return from_mapping(options, mapping, str(path))


def check_bounds(options: object, prefix: str = "--") -> None:
    """Raises InputError naming the first number of a dataclass, or of those in it, that lies outside its bound."""
    hints = typing.get_type_hints(type(options), include_extras=True)
    for item in dataclasses.fields(options):  # type: ignore[arg-type]
        kind, value = hints[item.name], getattr(options, item.name)
        name = prefix + item.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            # tyro's arg(name=""): on the command line its options have no prefix.
            unnamed = any(getattr(extra, "name", None) == "" for extra in getattr(kind, "__metadata__", ()))
            check_bounds(value, prefix if unnamed else f"{name}.")
        elif (bound := _violated(kind, value)) is not None:
            raise InputError(f"{name} must be {bound}, got {value}")


def _violated(kind: Any, value: object) -> Bound | None:
    """The bound, out of those in an annotation, that the value or one of its items does not keep."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        own = (extra for extra in arguments[1:] if isinstance(extra, Bound) and value not in extra)
        return next(own, None) or _violated(arguments[0], value)
    if origin in (Union, UnionType) and value is not None:
        return _violated(next(each for each in arguments if each is not NoneType), value)
    if isinstance(value, tuple) and arguments:
        if not value:  # where numbers are wanted, at least one is
            return next((extra for extra in typing.get_args(arguments[0])[1:] if isinstance(extra, Bound)), None)
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        found = (_violated(each, item) for each, item in zip(kinds, value, strict=True))
        return next((bound for bound in found if bound is not None), None)
    return None


def check_crop(option: str, side: int, multiple: int, least: int) -> None:
    """Raises InputError naming the option if networks cannot take crops of this side."""
    if side % multiple or side < least:
        raise InputError(f"{option} must be a multiple of {multiple} and at least {least}, got {side}")


def preset_names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_preset(options: type[T], folder: Path, name: str) -> T:
    """A preset in a folder by its name, or a YAML file in the same form by its path. InputError names what is wrong."""
    path = folder / f"{name}.yaml"
    if not path.exists():
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            known = ", ".join(preset_names(folder))
            raise InputError(f"--preset must be one of {known} or a YAML file, got {name!r}")
    return load_yaml(options, path)


def from_mapping(options: type[T], mapping: object, where: str) -> T:
    """Builds the dataclass `options` from nested mappings; a key that is left out keeps its default.

    Raises InputError naming the key that is wrong: `where: dsn.batch ...`.
    """
    try:
        return _build(options(), mapping, "")
    except _Wrong as error:
        raise InputError(f"{where}: {error}") from None


def to_mapping(options: object) -> Any:
    """The reverse of `from_mapping`, in plain types that YAML, JSON and `torch.load(weights_only=True)` accept."""
    if dataclasses.is_dataclass(options):
        return {item.name: to_mapping(getattr(options, item.name)) for item in dataclasses.fields(options)}
    if isinstance(options, (tuple, list)):
        return [to_mapping(item) for item in options]
    return str(options) if isinstance(options, Path) else options


def option_of(arguments: Sequence[str], name: str, default: str) -> str:
    """The last value of `--name VALUE` or `--name=VALUE`, which decides what the other options are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", default=default)
    return str(getattr(parser.parse_known_args(arguments)[0], name))


def dump_yaml(options: object) -> str:
    return yaml.safe_dump(to_mapping(options), sort_keys=False)


class _Wrong(Exception):
    pass


def _build(default: Any, mapping: object, key: str) -> Any:
    """The dataclass `default` with the values of `mapping` in it; `key` leads there and is "" for the whole file."""
    if not isinstance(mapping, Mapping):
        raise _Wrong(f"{key or 'the file'} must be a mapping, got {_SHORT.repr(mapping)}")
    hints, prefix = typing.get_type_hints(type(default)), f"{key}." if key else ""
    if unknown := set(mapping) - set(hints):
        raise _Wrong(f"unknown key {', '.join(sorted(f'{prefix}{name}' for name in unknown))}")
    values = {}
    for name, value in mapping.items():
        old = getattr(default, name)
        build, start = (_build, old) if dataclasses.is_dataclass(old) else (_plain, hints[name])
        values[name] = build(start, value, prefix + name)
    return dataclasses.replace(default, **values)


def _plain(kind: Any, value: object, key: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not NoneType)
        return _plain(kind, value, key)
    if origin is Literal:
        if value not in arguments:
            raise _Wrong(f"{key} must be one of {', '.join(map(str, arguments))}, got {_SHORT.repr(value)}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else list(arguments)
        if len(kinds) == len(value):
            return tuple(_plain(each, item, key) for each, item in zip(kinds, value, strict=True))
    # YAML 1.1 reads 1e-4, without a dot, as a string.
    elif kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise _Wrong(f"{key} must be {name}, got {_SHORT.repr(value)}")
