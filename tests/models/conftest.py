"""One thread: the other core has tests of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.training import write_noise


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Options that name clean HR and real LR pictures; held-out pairs are in `val_hr` and `val_lr` beside them."""
    for index in range(3):
        write_noise(tmp_path / "hr" / f"{index}.png", 90, 101, index)
        write_noise(tmp_path / "lr" / f"{index}.jpg", 33, 40, 10 + index)
        write_noise(tmp_path / "val_hr" / f"{index}.png", 64, 80, 20 + index)
        write_noise(tmp_path / "val_lr" / f"{index}.png", 16, 20, 30 + index)
    return [f"--hr={tmp_path / 'hr'}", f"--lr={tmp_path / 'lr'}"]


@pytest.fixture(scope="session")
def hed_lpips(tmp_path_factory) -> list[str]:
    """Options that name the files of HED-LPIPS, of random numbers, without the dashes and prefix before them."""
    from models.networks import LPIPS, VGG16Features, save_weights

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    network = VGG16Features()
    network.origin = "HED"
    save_weights(network, folder / "hed.safetensors")
    state = LPIPS("vgg16").state_dict()
    torch.save({key: value.abs() for key, value in state.items() if key.startswith("lin")}, folder / "vgg.pth")
    return [f"lpips-vgg={folder / 'hed.safetensors'}", f"lpips-lin={folder / 'vgg.pth'}"]


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory) -> Path:
    """A file in the form of torchvision's, with random numbers in it."""
    from models.networks import VGG19Features

    path = tmp_path_factory.mktemp("weights") / "vgg.pth"
    torch.manual_seed(0)
    torch.save(VGG19Features().state_dict(), path)
    return path
