"""The notice board between the workers and the driver: what workers report, and whether they shall stop.

It lives in an actor of its own, so that workers never wait for a tracking server or a terminal.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from cdrl.errors import CdrlError

__all__ = ["Board", "Notice"]


@dataclass(frozen=True)
class Notice:
    """One report of a worker.

    Attributes:
        kind: metrics of a step, a picture (PNG bytes) or a finished checkpoint.
        step: updates made.
        content: {"name": float}, {"name": bytes} or {"score": float | None}.
    """

    kind: Literal["metrics", "picture", "checkpoint"]
    step: int
    content: dict[str, Any]


@dataclass
class Board:
    """Notices in order of arrival, a request to stop, and the error that ends the run."""

    notices: list[Notice] = field(default_factory=list)
    stopping: bool = False
    error: CdrlError | None = None

    def post(self, notice: Notice) -> None:
        """Pin a notice to the board."""
        self.notices.append(notice)

    def take(self) -> list[Notice]:
        """Take all notices off the board."""
        taken, self.notices = self.notices, []
        return taken

    def stop(self) -> None:
        """Ask the workers to write a checkpoint and end."""
        self.stopping = True

    def should_stop(self) -> bool:
        """Whether they are asked to."""
        return self.stopping

    def fail(self, error: CdrlError) -> None:
        """Record the error that no restart can mend; the first one counts."""
        self.error = self.error or error

    def failure(self) -> CdrlError | None:
        """That error, if any."""
        return self.error
