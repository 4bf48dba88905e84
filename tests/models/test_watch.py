"""A rank that is stopped or hangs is named by the others, whichever it is, and one that works for long is not."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta

import pytest
import torch.distributed as dist
from helpers.process import ROOT, environment

from models.train.watch import Sign, missing

RANK = """
import os, signal, sys, time
import torch
from models.train import distributed

rank, at_fault, how = int(os.environ["RANK"]), int(sys.argv[1]), sys.argv[2]
with distributed.process_group(torch.device("cpu"), 0.04):
    distributed.barrier()
    if rank == at_fault:
        if how == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif how == "hangs":
            time.sleep(100)
        elif how == "works":
            for _ in range(50):
                time.sleep(0.1)
                distributed.get_on()
        elif how == "dies":
            os._exit(3)
    try:
        distributed.barrier()
    except distributed.LostRank as error:
        sys.exit(str(error))
print("done")
"""


def run_ranks(at_fault: int, how: str) -> list[tuple[int | None, str]]:
    """Exit code and stderr of two ranks, one of which misbehaves; None for the code of one that had to be killed."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(at_fault), how],
            cwd=ROOT,
            env=environment(**common, RANK=str(rank), LOCAL_RANK="0", TORCHELASTIC_USE_AGENT_STORE="True"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        other = ranks[1 - at_fault]
        said = other.communicate(timeout=90)[1]
        found = {1 - at_fault: (other.returncode, said)}
        if how == "stops":
            ranks[at_fault].send_signal(signal.SIGKILL)
        said = ranks[at_fault].communicate(timeout=90)[1]
        found[at_fault] = ranks[at_fault].returncode, said
    finally:
        for each in ranks:
            each.kill()
    return [found[rank] for rank in range(2)]


@pytest.mark.thorough
@pytest.mark.parametrize("at_fault", [0, 1])
@pytest.mark.parametrize("how", ["stops", "hangs"])
def test_a_rank_that_is_at_fault_is_named_by_the_other(at_fault, how):
    ranks = run_ranks(at_fault, how)
    code, said = ranks[1 - at_fault]
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: rank {at_fault} (process ")
    assert "has not got on for 0.04 minutes (--run.rank-minutes)" in line
    assert ranks[at_fault][0] == (-signal.SIGKILL if how == "stops" else 1)


@pytest.mark.thorough
def test_a_rank_that_works_longer_than_that_is_waited_for():
    assert [code for code, _ in run_ranks(0, "works")] == [0, 0]


@pytest.mark.thorough
def test_a_rank_that_dies_leaves_the_others_a_line():
    code, said = run_ranks(0, "dies")[1]
    assert code == 1
    assert said.splitlines()[-1].startswith("rank 1 ends because another one did: ")


def signs(*states: tuple[float, float, bool, bool]) -> list[Sign]:
    return [Sign(lived, moved, waiting=waiting, left=left) for lived, moved, waiting, left in states]


@pytest.mark.parametrize(
    ("states", "found"),
    [
        ([(99, 99, False, False), (99, 95, True, False)], None),
        ([(99, 95, False, False), (99, 1, True, False)], None),  # the one works, the other waits
        ([(99, 1, True, False), (50, 99, True, False)], [1]),  # stopped
        ([(99, 1, True, False), (99, 2, False, False)], [1]),  # hangs
        ([(99, 1, True, False), (50, 1, True, True)], []),  # one has left: the network, then
        ([(99, 1, True, False), (99, 1, True, False)], []),
        ([(99, 1, False, False), (99, 1, False, False)], None),  # both compute, and nobody waits
        ([(50, 50, False, True), (50, 50, False, True)], None),
    ],
)
def test_who_is_at_fault(states, found):
    assert missing(signs(*states), 100.0, 20.0) == found


def test_a_sign_is_as_old_as_its_last_change():
    sign = Sign(0.0, 0.0)
    sign.read("1 5 1 process 7 on here", 10.0)
    sign.read("2 5 0 process 7 on here", 20.0)
    assert (sign.lived, sign.moved, sign.waiting, sign.name) == (20.0, 10.0, False, "process 7 on here")
    sign.read("left", 30.0)
    assert sign.left
