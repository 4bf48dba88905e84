"""``tune`` on whole networks, and the ranks of a distributed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.operands import random
from helpers.process import ranks
from helpers.tuning import loss
from torch import Tensor, nn

import srkernels
from srkernels import _native
from srkernels.tuned import choose, report
from srkernels.tuned.records import Record

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(_native.why_not(CPU) is not None, reason="one backend alone leaves nothing to choose")


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(srkernels.nn.ResidualBlock(8), srkernels.nn.ResidualBlock(8))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.drop(self.body(self.norm(self.first(x))))
        return {"image": y, "bands": [srkernels.haar_highpass(y)]}


def test_tune_runs_a_network_and_leaves_it_as_it_was(told) -> None:
    told |= {"native": 0.5, "before": 0.002, "after": 0.001}
    net, x = _Net(), random((2, 3, 12, 16), torch.float32, 0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    report = srkernels.tune(net, x)
    assert [(row.modules, row.call.op) for row in report.rows] == [
        (("body.0", "body.1"), "residual_block"),
        (("",), "haar_analysis"),
    ]
    assert {row.record.choice for row in report.rows} == {"native"}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    text = str(report)
    assert "body.0 and 1 more" in text
    assert "8 channels, up to 512 pixels, float32, training" in text
    assert text.splitlines()[-1] == "forward and backward 2000 us, tuned 1000 us (2.00x)"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_tune_measures_patched_blocks(told) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(torch.relu(self.conv1(x)))

    net = nn.Sequential(Block(), Block())
    assert len(srkernels.patch(net).taken) == 2
    report = srkernels.tune(net, random((1, 8, 6, 5), torch.float32, 0))
    # Two classes: the first block's input needs no gradient.
    assert [(row.modules, row.call.op) for row in report.rows] == [((name,), "residual_block") for name in "01"]


@pytest.mark.parametrize(
    ("arrange", "said"),
    [
        (lambda x: x, "float32"),
        (lambda x: x.contiguous(memory_format=torch.channels_last), "float32, channels_last"),
        (lambda x: x[..., ::2], "float32, strided"),
    ],
)
def test_a_report_says_how_images_lie(arrange, said, told, images) -> None:
    with srkernels.tuning() as tuner:
        loss(*map(arrange, images))
    (row,) = report.rows_of(tuner)
    assert report.table([row]).splitlines()[1].split("pixels, ")[1].split("  ")[0] == said


@pytest.mark.parametrize("network", [nn.Conv2d(3, 3, 1), nn.Identity()], ids=["no op of ours", "no parameters"])
def test_tune_takes_networks_without_our_ops(network: nn.Module) -> None:
    report = srkernels.tune(network, torch.rand(1, 3, 8, 8))
    assert report.rows == ()
    assert "forward and backward" in str(report)


def test_tune_hands_on_what_the_network_raises() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("broken")

    with pytest.raises(ZeroDivisionError, match="broken"):
        srkernels.tune(Broken(), torch.rand(1))
    assert choose._tuner is None


def test_the_real_clock_measures_what_is_chosen() -> None:
    """Without a told clock: every time is one, and the choice follows from them."""
    report = srkernels.tune(_Net(), random((2, 3, 12, 16), torch.float32, 0))
    for row in report.rows:
        assert set(row.record.seconds) == {"reference", "native"}
        assert all(0 < t < 10 for t in row.record.seconds.values())
        assert row.record.choice == Record(row.record.seconds).choice
    assert report.before > 0
    assert report.after > 0


RANK = """
import os, sys, torch, srkernels
import torch.distributed as dist
from srkernels.tuned import clock
rank, store = int(sys.argv[1]), sys.argv[2]
clock.medians = lambda calls, device: {name: (2.0, 0.1)[rank] if name == "native" else 1.0 for name in calls}
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
x = torch.rand(1, 3, 8, 8)
with srkernels.tuning():
    srkernels.weighted_l1_loss(x, x)
    assert "(automatic)" in srkernels.explain("weighted_l1_loss", x, x), "ranks differ while they measure"
print(srkernels.explain("weighted_l1_loss", x, x).splitlines()[0], flush=True)
dist.destroy_process_group()
os._exit(0)
"""


@pytest.mark.thorough
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch was built without gloo")
def test_every_rank_takes_what_rank_0_measured(tmp_path: Path, cache: Path) -> None:
    outputs = ranks(RANK, str(tmp_path / "store"))
    assert all("reference (measured on" in output for output in outputs), outputs
    assert len(list(cache.glob("*.json"))) == 1


RANKS_APART = """
import os, sys, torch, srkernels
import torch.distributed as dist
from datetime import timedelta
from srkernels.tuned import clock
rank, store, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["SRKERNELS_CACHE"] = os.path.join(os.path.dirname(store), "cache" + str(rank))
clock.medians = lambda calls, device: {name: 2.0 if name == "native" and rank == 0 else 1.0 for name in calls}
x = torch.rand(1, 3, 8, 8)
if what == "files" and rank == 0:
    with srkernels.tuning():
        srkernels.weighted_l1_loss(x, x)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
try:
    with srkernels.tuning() as tuner:
        srkernels.weighted_l1_loss(x, x)
        if what == "raises":
            raise ZeroDivisionError("on both ranks, at once")
except ZeroDivisionError as error:
    print(error, flush=True)
print(srkernels.explain("weighted_l1_loss", x, x).splitlines()[0], flush=True)
os._exit(0)
"""


@pytest.mark.thorough
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch was built without gloo")
@pytest.mark.parametrize(
    ("what", "expected"),
    [("files", ["reference (measured on"] * 2), ("raises", ["on both ranks, at once"] * 2)],
)
def test_ranks_whose_files_differ_agree_and_an_error_waits_for_nobody(what, expected, tmp_path: Path) -> None:
    outputs = ranks(RANKS_APART, str(tmp_path / "store"), what, timeout=50)
    assert all(words in output for words, output in zip(expected, outputs, strict=True)), outputs
