"""Finds the rank that the others wait for: one that was stopped, or that hangs."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch.distributed as dist

_LEFT = "left"


@dataclass
class Sign:
    """What a rank last showed of itself: that it lives (`beat`), how far it is (`moves`), whether it waits for others.

    `lived` and `moved` are when the first two last changed, by this rank's clock.
    """

    lived: float
    moved: float
    beat: int = 0
    moves: int = 0
    waiting: bool = False
    left: bool = False
    name: str = ""

    def read(self, text: str, now: float) -> None:
        if text == _LEFT:
            self.left = True
            return
        beat, moves, waiting, self.name = text.split(" ", 3)
        if int(beat) != self.beat:
            self.beat, self.lived = int(beat), now
        if int(moves) != self.moves:
            self.moves, self.moved = int(moves), now
        self.waiting = waiting == "1"


def missing(signs: Sequence[Sign], now: float, seconds: float) -> list[int] | None:
    """The ranks that hold up the run for so long; None if none does, [] if it stands still and none is to blame."""
    here = {rank: sign for rank, sign in enumerate(signs) if not sign.left}
    stopped = [rank for rank, sign in here.items() if now - sign.lived > seconds]
    if stopped:
        return stopped
    if not any(sign.waiting for sign in here.values()) or any(now - sign.moved <= seconds for sign in here.values()):
        return None
    return [rank for rank, sign in here.items() if not sign.waiting]


class Watch(threading.Thread):
    """Ends this process when a rank has shown no sign for some minutes; the first of the others says which.

    Every rank has one. A thread, because all but the one at fault wait in a collective that nothing interrupts.

    Attributes:
        moves: raised whenever this rank gets on.
        waiting: whether it waits for the others.
    """

    def __init__(self, store: dist.Store, rank: int, ranks: int, minutes: float) -> None:
        super().__init__(daemon=True, name="watch")
        self.moves, self.waiting = 0, False
        self._store, self._rank, self._seconds = store, rank, 60 * minutes
        self._keys = [f"watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{each}" for each in range(ranks)]
        self._name = f"process {os.getpid()} on {socket.gethostname()}"
        self._pause = min(10.0, self._seconds / 8)
        self._over = threading.Event()
        self._show(0)

    def _show(self, beat: int) -> None:
        self._store.set(self._keys[self._rank], f"{beat} {self.moves} {int(self.waiting)} {self._name}")

    def run(self) -> None:
        signs: list[Sign] = []
        beat, asked = 0, time.monotonic()
        while not self._over.wait(self._pause):
            beat, now = beat + 1, time.monotonic()
            if not signs or now - asked > 3 * self._pause:  # this process was stopped: everybody's time starts anew
                signs = [Sign(now, now) for _ in self._keys]
            asked = now
            try:
                self._show(beat)
                for key, sign in zip(self._keys, signs, strict=True):
                    if self._store.check([key]):
                        sign.read(self._store.get(key).decode(), now)
            except RuntimeError:  # the launcher is gone, and whoever ends it ends the ranks
                return
            found = missing(signs, now, self._seconds)
            if found is not None:
                self._end(found, signs)

    def _end(self, found: Sequence[int], signs: Sequence[Sign]) -> None:
        """Ends the process, whose main thread waits in a collective."""
        if self._rank == min(set(range(len(signs))) - set(found), default=0):
            names = ", ".join(f"rank {rank} ({signs[rank].name})" for rank in found)
            stuck = f"{names} has not got on" if found else "all ranks wait, and none has got on"
            sys.stderr.write(f"error: {stuck} for {self._seconds / 60:g} minutes (--run.rank-minutes): the run ends\n")
            sys.stderr.flush()
        else:  # a connection that breaks off first would end the one that has something to say
            time.sleep(3 * self._pause)
        os._exit(1)

    def close(self) -> None:
        """Ends the thread; the others miss this rank no more."""
        self._over.set()
        self.join(timeout=self._pause)
        if not self.is_alive():  # else it waits for a launcher that went first
            with suppress(RuntimeError):
                self._store.set(self._keys[self._rank], _LEFT)
