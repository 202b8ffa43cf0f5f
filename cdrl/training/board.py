"""The notice board between the workers and the driver: what workers report, and whether they shall stop.

It lives in an actor of its own, so that workers never wait for a tracking server or a terminal.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from cdrl.errors import CdrlError
from cdrl.training.pulse import Beat

__all__ = ["Board", "Notice"]


@dataclass(frozen=True)
class Notice:
    """One report of a worker.

    Attributes:
        kind: what it is.
        step: updates made.
        content: of `metrics` and `saving` (what a checkpoint cost the training) {"name": float}; of a `picture`
            {"name": PNG bytes}; of a `checkpoint` that stands {"score": float | None, "score_error": float | None,
            "write_s": float}; of an `event` {"text": str}; of a `rescue` {"rescues": all so far}; of `waiting` for the
            storage {"text": str, "waited_s": float}.
    """

    kind: Literal["metrics", "saving", "picture", "checkpoint", "event", "rescue", "waiting"]
    step: int
    content: dict[str, Any]


@dataclass
class Board:
    """Notices in order of arrival, the workers' pulse, what is asked of them, and the error that ends the run."""

    notices: list[Notice] = field(default_factory=list)
    handed: list[Notice] = field(default_factory=list)
    stopping: bool = False
    in_haste: bool = False
    error: CdrlError | None = None
    pulse: dict[int, tuple[Beat, float]] = field(default_factory=dict)

    def post(self, notice: Notice) -> None:
        """Pin a notice to the board."""
        self.notices.append(notice)

    def take(self) -> list[Notice]:
        """Take all notices off the board; whoever comes again is done with those of the last time."""
        self.handed, self.notices = self.notices, []
        return self.handed

    def heard(self, step: int) -> bool:
        """Whether the driver is done with all metrics up to this update that have been posted."""
        return all(each.step > step for each in (*self.handed, *self.notices) if each.kind == "metrics")

    def beat(self, beat: Beat) -> None:
        """Take up a rank's pulse."""
        self.pulse[beat.rank] = (beat, time.monotonic())

    def beats(self) -> dict[int, tuple[Beat, float]]:
        """The last beat of each rank and its age in seconds."""
        now_s = time.monotonic()
        return {rank: (beat, now_s - came_s) for rank, (beat, came_s) in self.pulse.items()}

    def begin(self) -> None:
        """Forget the pulse of workers that are no more."""
        self.pulse.clear()

    def stop(self) -> None:
        """Ask the workers to write a checkpoint and end."""
        self.stopping = True

    def should_stop(self) -> bool:
        """Whether they are asked to."""
        return self.stopping

    def hurry(self) -> None:
        """Ask the workers to write a checkpoint before its time and go on."""
        self.in_haste = True

    def hurrying(self) -> bool:
        """Whether they are asked to and it does not stand yet."""
        return self.in_haste

    def hurried(self) -> None:
        """It stands, or nobody waits for it any more."""
        self.in_haste = False

    def fail(self, error: CdrlError) -> None:
        """Record the error that no restart can mend; the first one counts."""
        self.error = self.error or error

    def failure(self) -> CdrlError | None:
        """That error, if any."""
        return self.error
