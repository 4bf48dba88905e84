"""Preset files: they state what differs from the defaults, and a run's record states every number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from models.config import dump_yaml, to_mapping
from models.dasr import config as dasr
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
