"""Preset files: they state what differs from the defaults, and a run's record states every number."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from models.config import dump_yaml, to_mapping
from models.dasr import config as dasr
from models.data import InputError
from models.usrda import config as usrda

DEFAULTS = {dasr: dasr.DASRConfig(), usrda: usrda.USRDAConfig()}
PRESETS = [(method, name) for method in DEFAULTS for name in method.presets()]
each_preset = pytest.mark.parametrize(("method", "name"), PRESETS, ids=[name for _, name in PRESETS])


def repeated(given: Mapping[str, Any], default: Mapping[str, Any], key: str = "") -> Iterator[str]:
    """The keys whose value is the default's, and the mappings that say nothing."""
    for name, value in given.items():
        if isinstance(value, dict):
            yield from [f"{key}{name}"] if not value else repeated(value, default[name], f"{key}{name}.")
        elif value == default[name]:
            yield f"{key}{name}"


@each_preset
def test_a_preset_repeats_no_default(method, name):
    given = yaml.safe_load((method.PRESETS / f"{name}.yaml").read_text())
    assert list(repeated(given, to_mapping(DEFAULTS[method]))) == []


@each_preset
def test_the_record_of_a_run_states_every_number(method, name, tmp_path):
    config = method.load_preset(name)
    record = tmp_path / "config.yaml"
    record.write_text(dump_yaml(config))
    assert yaml.safe_load(record.read_text()) == to_mapping(config)
    assert method.load_preset(str(record)) == config


def test_the_presets_of_the_papers_are_the_defaults():
    assert dasr.load_preset("paper") == DEFAULTS[dasr]
    assert usrda.load_preset("paper-unpaired") == DEFAULTS[usrda]


def test_part_of_a_schedule_keeps_the_rest(tmp_path):
    """A schedule as a class has no default values; those of the stage it belongs to hold."""
    (tmp_path / "short.yaml").write_text("dsn: {schedule: {steps: 7}}\n")
    found, whole = dasr.load_preset(str(tmp_path / "short.yaml")), DEFAULTS[dasr]
    schedule = found.dsn.schedule
    assert (schedule.steps, schedule.pretrain, schedule.falls, schedule.at) == (7, 25_000, "halve_every", (10_000,))
    assert (found.srn, found.maps, found.run) == (whole.srn, whole.maps, whole.run)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_a_preset_is_read_whatever_its_encoding_or_named(tmp_path, encoding):
    """A mark says which; without one, what is no UTF-8 is refused."""
    path = tmp_path / "own.yaml"
    path.write_bytes("# après\nscale: 2\n".encode(encoding))
    if encoding in ("utf-16-le", "latin-1"):
        with pytest.raises(InputError, match=r"^[^\n]*own\.yaml is not YAML: [^\n]*$"):
            dasr.load_preset(str(path))
    else:
        assert dasr.load_preset(str(path)).scale == 2


BOMB = "a: &a [1,2,3,4,5,6,7,8,9]\n" + "".join(
    f"{now}: &{now} [{','.join([f'*{before}'] * 9)}]\n" for before, now in itertools.pairwise("abcdefghijk")
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("scale: " + "[" * 100_000, "is not YAML"),
        ("{a: " * 5000, "is not YAML"),
        ("scale: 2001-99-99", "is not YAML"),
        ("scale: !!float x", "is not YAML"),
        ("scale: !!timestamp x", "is not YAML"),
        ("scale: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("? [a]\n: b", "is not YAML"),
        ("scale: \0", "is not YAML"),
        (BOMB, "unknown key a, b, c"),
        (f"{BOMB}scale: *k", "unknown key"),
        (f"- {BOMB}".replace("\n", "\n  ") + "\n", "the file must be a mapping"),
        ("&a {dsn: *a}", r"unknown key dsn\.dsn"),
        ("srn: {learning_rate: 1" + "0" * 400 + "}", r"srn\.learning_rate must be float"),
        ("", "the file must be a mapping, got None"),
        ("dsn: [1]", "dsn must be a mapping"),
        ("scale: " + "x" * 10_000, "scale must be one of"),
    ],
    ids=range(16),
)
def test_yaml_that_is_no_preset_is_refused_in_one_short_line(tmp_path, content, message):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        dasr.load_preset(str(tmp_path / "own.yaml"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(tmp_path)) + 400


def test_a_preset_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "own.yaml")
    with pytest.raises(InputError, match=r"cannot read .*own\.yaml: not a regular file"):
        dasr.load_preset(str(tmp_path / "own.yaml"))
