"""Domain-distance maps against a written-out overlap average, at every kind of discriminator and at odd sizes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from models.dasr.config import MapsConfig
from models.dasr.maps import DistanceMap, spread, weights_of
from models.networks import PatchDiscriminator
from models.networks.frequency import frequency_filter


def overlap_average(scores: torch.Tensor, box: int, jump: int, first: int, size: tuple[int, int]) -> torch.Tensor:
    """Every score added to each place of its square, one by one, divided by how many were added."""
    total, count = torch.zeros(size, dtype=scores.dtype), torch.zeros(size, dtype=scores.dtype)
    for i, j in product(range(scores.shape[0]), range(scores.shape[1])):
        rows = slice(max(0, i * jump + first), max(0, i * jump + first + box))
        columns = slice(max(0, j * jump + first), max(0, j * jump + first + box))
        total[rows, columns] += scores[i, j]
        count[rows, columns] += 1
    return total / count


# First place that score 0 judges: -(13 - 1) / 2, -(23 - 1) / 2, 5.5 - (34 - 1) / 2 and 2 - (13 - 1) / 2.
@pytest.mark.parametrize(("kind", "first"), [("fsd", -6), ("paper", -11), ("nlayer_s2", -11), ("nlayer_s1", -4)])
@pytest.mark.parametrize("size", [(24, 30), (25, 31)])
def test_spreading_is_the_overlap_average(kind, first, size):
    network = PatchDiscriminator(9, 4, kind=kind)
    with torch.no_grad():
        scores = network(torch.rand(1, 9, *size)).double().sigmoid()
    found = spread(scores, network.receptive_field, network.jump, network.first_centre, size)
    expected = overlap_average(scores[0, 0], network.receptive_field, network.jump, first, size)
    torch.testing.assert_close(found[0, 0], expected)


def test_by_hand():
    """Three scores in a row, boxes of three: means of two, three and two."""
    scores = torch.tensor([[[[1.0, 2.0, 6.0]]]])
    assert spread(scores, 3, 1, 0.0, (1, 3)).flatten().tolist() == [1.5, 3.0, 4.0]
    # Two places apart, boxes of three: the place between two belongs to both.
    assert spread(scores, 3, 2, 0.0, (1, 5)).flatten().tolist() == [1.0, 1.5, 2.0, 4.0, 6.0]


@pytest.mark.parametrize("size", [(40, 56), (41, 57)])
def test_the_published_map(size):
    """FSD, Haar, boxes of 17: an average pooling of the scores, the odd last row left out before it."""
    torch.manual_seed(0)
    judge, lr = PatchDiscriminator(9, 4, kind="fsd"), torch.rand(1, 3, *size)
    view = frequency_filter("haar")
    scores = judge(view(lr)).sigmoid()[..., : size[0] // 2, : size[1] // 2]
    expected = F.avg_pool2d(scores, 17, 1, 8, count_include_pad=False)
    torch.testing.assert_close(DistanceMap(judge, view, MapsConfig(box=17))(lr), expected)
    torch.testing.assert_close(DistanceMap(judge, view, MapsConfig(smoothing="none"))(lr), scores)


@pytest.mark.parametrize("frequency", ["haar", "gbfs", "rgb"])
@pytest.mark.parametrize("kind", ["fsd", "paper"])
@pytest.mark.parametrize("smoothing", ["none", "receptive_field"])
def test_reflection_leaves_no_frame(frequency, kind, smoothing):
    """Of a constant picture every place is judged alike; with zero padding the border is not."""
    torch.manual_seed(0)
    view = frequency_filter(frequency)
    judge = PatchDiscriminator(view.channels, 8, kind=kind, norm="none").double()
    lr = torch.full((1, 3, 66, 70), 0.7, dtype=torch.float64)
    maps = {p: DistanceMap(judge, view.double(), MapsConfig(smoothing, padding=p))(lr) for p in ("zero", "reflect")}
    assert maps["reflect"].shape == maps["zero"].shape == (1, 1, 66 // view.stride, 70 // view.stride)
    ranges = {name: float(found.max() - found.min()) for name, found in maps.items()}
    assert ranges["reflect"] < 1e-6 < ranges["zero"]


def test_what_weighs_the_losses():
    """By formula: the mean is the batch's, so that a picture that lies further off weighs less as a whole."""
    maps = torch.tensor([[0.1, 0.3], [0.2, 1.0]]).view(2, 1, 1, 2)
    mean = (0.1 + 0.3 + 0.2 + 1.0) / 4
    for kind, expected in (
        ("map", [0.1, 0.3, 0.2, 1.0]),
        ("normalised", [0.1 / mean, 0.3 / mean, 0.2 / mean, 1.0 / mean]),
        ("capped", [0.1 / mean, 0.3 / mean, 0.2 / mean, 1.5]),
        ("constant", [mean] * 4),
    ):
        found = weights_of(maps, kind, 1.5)
        assert found.shape == maps.shape
        torch.testing.assert_close(found.flatten(), torch.tensor(expected))
    assert weights_of(maps, "normalised", 1.5).mean().item() == pytest.approx(1)
    assert not weights_of(torch.zeros(1, 1, 2, 2), "normalised", 1.5).any()
