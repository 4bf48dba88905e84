"""Every case of what published programs computed in whole steps, to ten times the error that was seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_steps import Case, Unavailable, compare, main

from models.dasr import config as dasr
from models.usrda import config as usrda
from models.usrda.synthesis import SourceLR

CASES = Path(__file__).with_name("published")
# By case: the largest error of losses and that of gradients. Why some are larger than others is in CASES / "README.md".
ERRORS = {
    "dsn_realsr": (3e-7, 1e-6),
    "srn_realsr": (2e-7, 1e-4),
    "srn_ntire": (1e-6, 1e-6),
    "usrda": (1e-9, 2e-9),
    "usrda_d_first": (1e-6, 1e-6),
}
OPTIONS = {"usrda": {"discriminator_first": False}}


def read(name: str) -> Case:
    return Case.read(CASES / f"{name}.npz")


def test_every_case_is_compared():
    assert {path.stem for path in CASES.glob("*.npz")} == {*ERRORS, "maps_aim"}


def test_options_are_changes_to_a_preset():
    def read_options(**changes: object) -> dasr.DASRConfig:
        return Case("made up", {"options": {"preset": "official-aim", **changes}}, {}).config(dasr.load_preset, "srn")

    config = read_options(
        **{
            "dsn.discriminator.frequency": "wavelet",
            "dsn": {"content_weight": "0.5"},
            "--srn.low-band-weight": 0,
            "batch": 3,
            "gan": "least_squares",
            "domain_gap": False,
        }
    )
    aim = dasr.load_preset("official-aim")
    dsn = replace(aim.dsn, content_weight=0.5, discriminator=replace(aim.dsn.discriminator, frequency="haar"))
    judge = replace(aim.srn.discriminator, gan="least_squares")
    srn = replace(aim.srn, low_band_weight=0.0, batch=3, discriminator=judge)
    assert config == replace(aim, dsn=dsn, srn=srn, domain_gap=False)
    with pytest.raises(Unavailable, match=r"^made up: there is no option srn\.nothing$"):
        read_options(**{"srn.nothing": 1})


@pytest.mark.thorough
@pytest.mark.parametrize("name", ERRORS)
def test_steps_are_the_published_ones(name, capsys):
    try:
        errors = compare(read(name), **OPTIONS.get(name, {}))
    except Unavailable as error:
        pytest.skip(str(error))
    losses, gradients = ERRORS[name]
    assert errors.pop("losses") <= losses
    assert max(errors.values()) <= gradients, errors
    assert not capsys.readouterr().out, "something was not compared"


@pytest.mark.thorough
def test_maps_are_the_published_ones(capsys):
    """Also those of sides that are multiples of 4 but not of 8."""
    assert main([str(CASES / "maps_aim.npz")]) == 0
    errors = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert errors["map"] <= 1e-6
    assert errors["lr"] == 0


def test_source_lr_of_the_unofficial_code_is_not_clamped():
    case = read("usrda")
    hr = torch.from_numpy(case.arrays["batch/hr"]).permute(0, 3, 1, 2).double() / 255
    wanted = torch.from_numpy(case.arrays["batch/source_lr"])
    make = SourceLR(usrda.load_preset("unofficial").synthesis, 4, 0)
    torch.testing.assert_close(torch.stack([make(picture, 0) for picture in hr]), wanted, rtol=0, atol=1e-12)
    assert wanted.min() < 0 and wanted.max() > 1
