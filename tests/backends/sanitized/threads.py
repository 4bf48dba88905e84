"""Four threads that call every op at once, or those named, for ThreadSanitizer to watch.

test_sanitizers.py runs it on such a build. Each calls ops on shared operands and on its own copies of them, with one
signature, so that a thread meets calls that another has decided.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from driver import both_passes, levels, of_the_core
from helpers.operands import operands
from torch import Tensor

from srkernels._parity import present
from srkernels._spec import Case, OpSpec
from srkernels.ops import specs
from srkernels.ops.conv.spec import CONV2D_ACT

THREADS = 4
IMAGE = (5, 4, 64, 64)
# Above two grains of work in every loop in csrc/cpu. Blocks call what conv2d_act calls.
LARGE = {
    "haar_dwt2d": Case("large", (IMAGE,)),
    "haar_highpass": Case("large", (IMAGE,)),
    "haar_idwt2d": Case("large", (IMAGE, (5, 4, 3, 64, 64))),
    "weighted_l1_loss": Case("large", (IMAGE, IMAGE, (5, 1, 16, 16))),
    "weighted_loss": Case("large", (IMAGE, IMAGE, (5, 1, 16, 16)), {"kind": "charbonnier"}),
    "conv2d_act": Case("large", (IMAGE, (4, 4, 3, 3), (4,), None, None)),
}
Call = tuple[OpSpec, Case, list[Tensor | None]]


def work(calls: list[Call], core_threads: int) -> None:
    assert torch.get_num_threads() == core_threads
    for spec, case, shared in calls:
        own = [None if x is None else x.clone() for x in shared]
        for drawn in (shared, own):
            both_passes(spec, case, drawn, present(drawn))


def at_once(calls: list[Call], core_threads: int) -> None:
    torch.set_num_threads(core_threads)
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, calls, core_threads) for _ in range(THREADS)]:
            done.result()


def main(names: list[str]) -> None:
    used = [spec for spec in specs() if not names or spec.name in names]
    for isa in levels():
        for dtype, layout in ((torch.float32, "contiguous"), (torch.bfloat16, "channels_last")):
            print(f"{isa}: {dtype}, {layout}", flush=True)
            some = [spec for spec in used if dtype is torch.float32 or not spec.composed]
            small = [
                (spec, case, operands(case, dtype, layout)) for spec in some for case in of_the_core(spec, spec.small)
            ]
            at_once(small, 1)
            # Large 16-bit convolutions are PyTorch's own, and slow.
            cases = [(spec, LARGE.get(spec.name)) for spec in some if dtype is torch.float32 or spec is not CONV2D_ACT]
            large = [(spec, case, operands(case, dtype, layout)) for spec, case in cases if case is not None]
            for core_threads in (1, 2):
                at_once(large, core_threads)
    print("clean")


main(sys.argv[1:])
