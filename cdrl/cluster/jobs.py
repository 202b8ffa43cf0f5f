"""A job as its user sees it, and what every place for jobs can do."""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from cdrl.errors import ClusterError, ClusterOutage, ConfigError, JobFailed, JobRefused

__all__ = [
    "FINISHED",
    "Job",
    "Place",
    "check_new",
    "default_name",
    "find",
    "follow",
    "job_id",
    "newest",
    "settle",
]

FINISHED = ("SUCCEEDED", "FAILED", "STOPPED")
POLL_S = 1.0
PATIENCE_S = 60.0
"""How long a cluster that does not answer is waited for while a job is followed."""


@dataclass(frozen=True)
class Job:
    """One attempt at a command.

    Attributes:
        id: by which the cluster knows it: the name, from the second attempt on with its number.
        status: PENDING, RUNNING, SUSPENDED (it waits for `resume` or for its turn in a queue) or one of FINISHED.
        line: the command, as a line of the shell.
        message: why it is in this state, one line.
        exit_code: of the command, once it has one and it is known.
        began: None before it did.
    """

    id: str
    name: str
    attempt: int
    status: str
    line: str
    message: str = ""
    exit_code: int | None = None
    began: datetime | None = None
    ended: datetime | None = None

    @property
    def finished(self) -> bool:
        """Whether it stays as it is."""
        return self.status in FINISHED


class Place(Protocol):
    """Where jobs run. Every method raises a ClusterError in one line where the cluster does not do what is asked."""

    def submit(self, name: str, command: Sequence[str]) -> str:
        """Begin `cdrl COMMAND`; returns the id of the job."""

    def jobs(self) -> list[Job]:
        """All jobs of cdrl, the oldest first."""

    def job(self, ref: str) -> Job:
        """The job of an id, or the newest attempt of a name."""

    def logs(self, job: Job) -> str:
        """What it has written so far."""

    def stop(self, job: Job) -> None:
        """Ask it to end after a checkpoint."""

    def resume(self, ref: str) -> str:
        """Begin the same command again under the next attempt; returns its id."""


def job_id(name: str, attempt: int) -> str:
    """What an attempt is called."""
    return name if attempt == 1 else f"{name}-{attempt}"


def default_name(command: Sequence[str]) -> str:
    """A name that nothing else has: the words of the command and six hex digits."""
    words = [word for word in command if not word.startswith("-")][:2]
    stem = re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")[:30].strip("-")
    return f"{stem if stem[:1].isalpha() else 'job'}-{secrets.token_hex(3)}"


def newest(jobs: Sequence[Job], ref: str) -> Job | None:
    """The job of this id, else the latest attempt of this name."""
    named = [job for job in jobs if job.name == ref]
    exact = [job for job in jobs if job.id == ref and job.attempt > 1]
    return max(exact or named, key=lambda job: job.attempt, default=None)


def find(jobs: Sequence[Job], ref: str, where: str) -> Job:
    """As `newest`, of jobs that lie `where`.

    Raises:
        ClusterError: no such job.
    """
    if found := newest(jobs, ref):
        return found
    names = ", ".join(dict.fromkeys(job.name for job in jobs)) or "none"
    raise ClusterError(f"job {ref!r}: no such job {where}; jobs: {names}")


def check_new(jobs: Sequence[Job], name: str) -> None:
    """Refuse a name that a job has.

    Raises:
        ConfigError: there is such a job.
    """
    if known := newest(jobs, name):
        raise ConfigError(
            f"--name {name!r}: there is such a job, it is {known.status}; "
            f"take another name, or say `cdrl jobs resume {name}`"
        )


def follow(place: Place, ref: str, told: Callable[[str], None]) -> Iterator[str]:
    """What a job writes, piece by piece, until it is finished. It is asked every second.

    Args:
        told: called with one line when the job's status changes, and when the cluster does not answer.
    """
    num_seen, status, lost_since = 0, "", 0.0
    while True:
        try:
            job = place.job(ref)
            text = place.logs(job)
            lost_since = 0.0
        except ClusterOutage as outage:
            lost_since = lost_since or time.monotonic()
            if not status or time.monotonic() - lost_since > PATIENCE_S:
                raise
            told(str(outage))
            time.sleep(5 * POLL_S)
            continue
        if job.status != status:
            told(f"job {job.id}: {job.status}" + (f" ({job.message})" if job.status == "PENDING" else ""))
            status = job.status
        if text[num_seen:]:
            yield text[num_seen:]
            num_seen = len(text)
        if job.finished:
            return
        time.sleep(POLL_S)


def settle(job: Job) -> None:
    """Nothing for a success.

    Raises:
        JobRefused: its command found a mistake of the user.
        JobFailed: it failed, or was stopped.
    """
    if job.status == "SUCCEEDED":
        return
    if job.exit_code == 2:
        raise JobRefused(f"job {job.id} ended with exit code 2: its command or its settings are wrong, see its log")
    how = f"ended as {job.status}" + (f" with exit code {job.exit_code}" if job.exit_code is not None else "")
    why = f": {job.message}" if job.message else ""
    raise JobFailed(f"job {job.id} {how}{why}; `cdrl jobs resume {job.name}` goes on from its checkpoints")
