"""A worker's pulse: what it does and since when, said once a second by a thread of its own; and who hangs.

A collective makes all ranks stand still when one does. The one to blame is the one that is not in the collective: it
does something else, or its process says nothing at all any more.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

__all__ = ["Beat", "Pulse", "hanging"]

EVERY_S = 1.0


@dataclass(frozen=True)
class Beat:
    """What a rank said of itself.

    Attributes:
        rank: of the training.
        node: id of its machine in the cluster.
        pid, born_s: its process, and when that was created (a pid alone may be another process later).
        doing: in words.
        waiting: whether for other ranks, in a collective.
        still_s: seconds since its last progress.
        done: whether it has nothing more to do.
    """

    rank: int
    node: str
    pid: int
    born_s: float
    doing: str
    waiting: bool
    still_s: float
    done: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid}, node {self.node[:8]}), {self.doing}"


class Pulse:
    """Of one rank, while the block lasts.

    Args:
        send: takes a beat; must not block.
        rank, node: as in `Beat`.
    """

    def __init__(self, send: Callable[[Beat], None], rank: int, node: str) -> None:
        self._send, self._rank, self._node = send, rank, node
        self._born_s = psutil.Process().create_time()
        # what, whether waiting for others, since when; one tuple, so that the thread reads what belongs together
        self._now: tuple[str, bool, float | None] = ("starting", False, None)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            self._send(self._said(done=True))

    def moved(self, doing: str) -> None:
        """Progress was made, and this comes next."""
        self._now = (doing, False, time.monotonic())

    def prepare(self, doing: str) -> None:
        """From here to the next progress: work that may take long without a word, and lives while its process does."""
        self._now = (doing, False, None)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around a collective."""
        before = self._now
        self._now = (f"{before[0]}, waiting in {what}", True, time.monotonic())
        yield
        self._return(before)

    @contextmanager
    def working(self, doing: str) -> Iterator[None]:
        """Around work such as `prepare` is for."""
        before = self._now
        self.prepare(doing)
        yield
        self._return(before)

    def _return(self, before: tuple[str, bool, float | None]) -> None:
        doing, _, since_s = before
        self._now = (doing, False, None if since_s is None else time.monotonic())

    def _said(self, done: bool = False) -> Beat:
        doing, waiting, since_s = self._now
        still_s = 0.0 if since_s is None else time.monotonic() - since_s
        return Beat(self._rank, self._node, os.getpid(), self._born_s, doing, waiting, still_s, done)

    def _beat(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._send(self._said())


def hanging(beats: Mapping[int, tuple[Beat, float]], after_s: float) -> list[tuple[Beat, str]]:
    """Those to blame where ranks stand still, with the reason.

    Args:
        beats: by rank, the last beat of each and how many seconds ago it came.
        after_s: standing still for so long is hanging.
    """
    present = [(beat, age_s) for beat, age_s in beats.values() if not beat.done]
    still = [(beat, age_s) for beat, age_s in present if beat.still_s + age_s > after_s]
    blamed = [(beat, f"has said nothing for {age_s:.0f} s") for beat, age_s in still if age_s > after_s]
    blamed += [
        (beat, f"has made no progress for {beat.still_s + age_s:.0f} s")
        for beat, age_s in still
        if age_s <= after_s and not beat.waiting
    ]
    if not blamed and still and len(still) == len(present):
        blamed = [(beat, f"has waited {beat.still_s + age_s:.0f} s for the others, as all do") for beat, age_s in still]
    return blamed
