"""Two processes of DistributedDataParallel give the gradients of one process on the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.process import ranks

from srkernels._dispatch import why_not

RANK = """
import os
import sys
import torch
import torch.distributed as dist
import srkernels

rank, world, store, backends = int(sys.argv[1]), 2, sys.argv[2], sys.argv[3:]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.relu = torch.nn.ReLU()
        self.conv2 = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.relu(self.conv1(x)))

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.block = Block()
        self.bands = srkernels.nn.HaarHighPass()
        self.last = torch.nn.Conv2d(9, 1, 3, padding=1)

    def forward(self, x):
        image = self.block(self.first(x))
        return image, self.last(self.bands(image)).relu()

def backward(net, x, y):
    image, distance = net(x)
    # The map has a gradient too: the loss learns where to look.
    loss = srkernels.weighted_l1_loss(image, y, distance)
    loss.backward()
    return loss.detach()

torch.manual_seed(1)
net = Net().double()
assert srkernels.patch(net).taken
generator = torch.Generator().manual_seed(2)
x, y = (torch.rand(4, 3, 9, 12, dtype=torch.float64, generator=generator) for _ in range(2))
for backend in backends:
    net.zero_grad()
    with srkernels.use_backend(backend):
        parallel = torch.nn.parallel.DistributedDataParallel(net)
        loss = backward(parallel, x[2 * rank : 2 * rank + 2], y[2 * rank : 2 * rank + 2])
        dist.all_reduce(loss)
        found = {name: p.grad.clone() for name, p in net.named_parameters()}
        net.zero_grad()
        whole = backward(net, x, y)
    # Equal batches: the mean of the means is the mean, up to the order of fp64 sums of some thousand terms.
    tolerance = 4096 * torch.finfo(torch.float64).eps
    torch.testing.assert_close(loss / world, whole, rtol=tolerance, atol=0)
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=0, atol=tolerance * p.grad.abs().max().item())
        assert p.grad.any(), name
    print(backend, "equal", flush=True)
dist.destroy_process_group()
os._exit(0)  # all is proven; gloo's threads have been seen to abort the interpreter's teardown
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch was built without gloo")
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    backends = [b for b in ("reference", "native") if why_not(b, torch.device("cpu"), torch.float64) is None]
    for output in ranks(RANK, str(tmp_path / "store"), *backends):
        assert [line for line in output.splitlines() if line.endswith(" equal")] == [f"{b} equal" for b in backends]
