"""Weights named by an option: what is fetched, and what is refused in one line."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.data import InputError
from models.networks import LPIPS, VGG19Features
from models.networks.weight_options import LPIPSFiles, load_lpips, load_vgg


class Hub:
    """Stands in for torch.hub's network: hands out `states` by file name, or raises `error`."""

    def __init__(self, states: dict[str, dict[str, torch.Tensor]], error: Exception | None = None) -> None:
        self.states, self.error, self.asked = states, error, {}

    def __call__(self, url: str, *, check_hash: bool, file_name: str, **options: object) -> dict[str, torch.Tensor]:
        if self.error is not None:
            raise self.error
        assert options["weights_only"] is True and torch.hub.HASH_REGEX.search(file_name)
        self.asked[file_name] = (url, check_hash)
        return self.states[file_name]


def hashed(name: str) -> str:
    return torch.hub.HASH_REGEX.search(name)[1]


def test_auto_fetches_public_files_by_their_hash(monkeypatch):
    vgg, lpips = VGG19Features(), LPIPS()
    alex = {key: value for key, value in lpips.state_dict().items() if key.startswith("features.")}
    lin = {key: value for key, value in lpips.state_dict().items() if key.startswith("lin")}
    names = ("vgg19-dcbb9e9d.pth", "alexnet-owt-7be5be79.pth", "lpips-v0.1-alex-df73285e.pth")
    hub = Hub(dict(zip(names, (vgg.state_dict(), alex, lin), strict=True)))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", hub)
    loaded = load_vgg(("conv5_4",), Path("auto"), "--weights.vgg")
    assert torch.equal(loaded.features["34"].weight, vgg.features["34"].weight)
    a, b = torch.rand(2, 1, 3, 40, 40)
    files = LPIPSFiles(lpips_alex=Path("auto"), lpips_lin=Path("auto"))
    assert torch.equal(load_lpips(files, "--lpips")(a, b), lpips(a, b))
    assert [hashed(name) for name in hub.asked] == ["dcbb9e9d", "7be5be79", "df73285e"]
    for url, check_hash in hub.asked.values():
        assert url.startswith("https://") and check_hash


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route to host"), RuntimeError('invalid hash value\n(expected "dcbb9e9d")'), EOFError()],
)
def test_without_a_network_auto_says_what_to_put_where(error, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", Hub({}, error))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    place = tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth"
    with pytest.raises(InputError, match=rf"^--weights\.vgg: cannot fetch https://[^\n]*Put [^\n]* at {place}, "):
        load_vgg(("conv5_4",), Path("auto"), "--weights.vgg")


def test_files_are_read_as_those_of_other_networks_are(tmp_path):
    """Wrapped, prefixed, in either format, and never with numbers that are not finite."""
    network = VGG19Features()
    state = network.state_dict()
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "vgg.safetensors")
    loaded = load_vgg(("conv5_4",), tmp_path / "vgg.safetensors", "--weights.vgg")
    assert torch.equal(loaded.features["0"].weight, network.features["0"].weight)
    torch.save({"state_dict": {**state, "features.34.bias": torch.full((512,), torch.nan)}}, tmp_path / "nan.pth")
    torch.save({**state, "features.0.weight": torch.zeros(1).expand(64, 3, 3, 3)}, tmp_path / "wide.pth")
    for name, message in (("nan.pth", r"features\.34\.bias that are not finite"), ("wide.pth", "claims to be")):
        with pytest.raises(InputError, match=rf"^--weights\.vgg: [^\n]*{message}"):
            load_vgg(("conv5_4",), tmp_path / name, "--weights.vgg")
