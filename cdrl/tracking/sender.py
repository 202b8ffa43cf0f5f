"""Threads that bring a journal to its server and watch the machine, so that training waits for neither."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from cdrl.errors import CdrlError, TrackingError, TrackingOutage
from cdrl.tracking import surroundings
from cdrl.tracking.journal import Journal
from cdrl.tracking.replica import LANES, Replica
from cdrl.tracking.server import shown

__all__ = ["Sender", "Watch"]

PAUSE_S = 1.0  # the server is so far behind the journal
LONGEST_PAUSE_S = 30.0  # between two tries while it does not answer
END_S = 20.0  # what the end of a run waits for the server
LOAD_EVERY_S = 20.0


class Sender:
    """Sends in the background until it is ended.

    Args:
        tell: gets a line when the server stays away, when it is back, and when it refuses something. A refusal is
            final for this process: the rest of its lane stays in the journal.
        trouble: what was told already when the first contact failed.
    """

    def __init__(self, replica: Replica, tell: Callable[[str], None], trouble: TrackingError | None = None) -> None:
        self._replica, self._tell = replica, tell
        self._lanes = list(LANES)
        self._away = isinstance(trouble, TrackingOutage)
        self._told = "" if self._away else str(trouble or "")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Try once more, for a while; how many entries the server does not have."""
        self._ended.set()
        self._thread.join(END_S)
        return sum(self._replica.pending().values())

    def _work(self) -> None:
        pause_s = PAUSE_S
        while not self._ended.wait(pause_s):
            self._round(self._ended.is_set)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S) if self._away else PAUSE_S
        self._lanes = list(LANES)  # a password or a run may have come back
        until_s = time.monotonic() + END_S
        self._round(lambda: time.monotonic() > until_s)

    def _round(self, stop: Callable[[], bool]) -> None:
        try:
            for lane in tuple(self._lanes):
                try:
                    self._replica.send(lane, stop=stop)
                except TrackingOutage:
                    raise
                except CdrlError as error:
                    self._lanes.remove(lane)
                    if str(error) != self._told:
                        self._tell(f"{error}; training goes on, the journal keeps everything")
                    self._told = str(error)
            if self._away and not stop():
                self._tell(f"MLflow at {shown(self._replica.uri)} answers again")
                self._away = False
        except TrackingOutage as error:
            if not self._away:
                self._tell(f"{error}; training goes on, the journal keeps everything")
            self._away = True


class Watch:
    """Notes now and then how busy the machine is.

    Args:
        step: tells the newest update.
    """

    def __init__(self, journal: Journal, step: Callable[[], int]) -> None:
        self._journal, self._step = journal, step
        self._ended = threading.Event()
        surroundings.load()  # rates count from here
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Note it once more."""
        self._ended.set()
        self._thread.join(END_S)

    def _work(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._ended.wait(LOAD_EVERY_S)
            with suppress(CdrlError):  # the run meets the same and tells it
                self._journal.append("metrics", step=self._step(), values=surroundings.load())
