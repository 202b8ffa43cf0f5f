"""One trial: a real training run in a thread of its own, told step by step. It knows no Ray Tune."""

import fcntl
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cdrl.config import Config
from cdrl.errors import CdrlError, Diverged, JobFailed
from cdrl.evaluation.reference import QuickScore
from cdrl.runs import RunRecord
from cdrl.training.board import Notice
from cdrl.training.launch import Enough, launch
from cdrl.tuning.notes import Score, State

__all__ = ["Report", "Running"]

ORPHAN_S = 120.0  # so long a trial waits for the process of a sweep that was killed to notice it
POLL_S = 0.5


@dataclass(frozen=True)
class Report:
    """A checkpoint was scored, or the trial is over; or both, at its last update.

    Attributes:
        cause: why it diverged or failed.
    """

    score: Score | None
    state: State = "running"
    cause: str = ""


class Running:
    """A run that is trained, or goes on where it was.

    Args:
        known: updates at the newest score that is known already.
        log: where the run's own words go.
    """

    def __init__(self, config: Config, known: int, log: Path) -> None:
        self._config, self._known, self._log = config, known, log
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._enough = threading.Event()
        self._last: Score | None = None
        self._thread = threading.Thread(target=self._work, name=config.run_id, daemon=True)
        self._thread.start()

    def next(self) -> Report:
        """Wait for what comes next; nothing comes after a report that has another state than running."""
        return self._reports.get()

    def stop(self) -> None:
        """End it where it is, and wait until its workers are gone."""
        self._enough.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a") as file:
                self._train(Console(file=file, width=120))
            self._over("complete")
        except Enough:
            self._over("stopped")
        except Diverged as error:
            self._over("diverged", str(error))
        except CdrlError as error:
            self._over("failed", str(error))
        except Exception as error:  # told in the table of the sweep, which goes on with the others
            self._over("failed", f"{type(error).__name__}: {error}")

    def _train(self, console: Console) -> None:
        self._wait_for_orphans()
        record = RunRecord.find(self._config.run_id, self._config.run.root)
        for card in record.checkpoints().values() if record else ():
            if card.score is not None and card.step > self._known:  # scored, and then the sweep was killed
                self._scored(card.step, card.score, card.score_error or 0.0)
        outcome = launch(self._config, score=QuickScore(self._config), console=console, watch=self._watch)
        if not outcome.complete:
            raise JobFailed(f"it was asked to end at update {outcome.step}")

    def _watch(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            if notice.kind == "checkpoint":
                self._scored(notice.step, notice.content["score"], notice.content["score_error"])
        if self._enough.is_set():
            raise Enough

    def _scored(self, step: int, fd: float, error: float) -> None:
        score = Score(step, fd, error)
        if step < self._config.training.num_updates:
            self._reports.put(Report(score))
        else:
            self._last = score  # told when the run is complete

    def _over(self, state: State, cause: str = "") -> None:
        self._reports.put(Report(self._last, state, " ".join(cause.split())))

    def _wait_for_orphans(self) -> None:
        """Until no other process drives the run: one of a killed sweep may not know it yet."""
        place = Path(self._config.run.root) / self._config.run_id / ".driver"
        deadline_s = time.monotonic() + ORPHAN_S
        while place.exists() and time.monotonic() < deadline_s and not self._enough.is_set():
            with place.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    time.sleep(POLL_S)
