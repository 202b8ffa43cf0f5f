"""Bring a run's journal to its server by hand, after the server or the driver was gone."""

import fcntl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cdrl.errors import ConfigError, TrackingOutage
from cdrl.runs import RunRecord
from cdrl.storage.patience import patiently
from cdrl.tracking import server
from cdrl.tracking.journal import Entry, Journal
from cdrl.tracking.replica import LANES, Replica

__all__ = ["State", "state", "synchronise"]


@dataclass(frozen=True)
class State:
    """What a journal holds and how much of it its server has.

    Attributes:
        status: the newest one in the journal, as MLflow names it.
        is_driven: whether a process is training the run now.
        pending: entries that the server does not have, by kind.
        num_torn_bytes: cut off from the journal's end, where a process was killed while it wrote.
        gone: files that could not be sent because they are no longer there or damaged.
    """

    uri: str
    mlflow_run_id: str
    status: str
    is_driven: bool
    pending: dict[str, int]
    num_torn_bytes: int = 0
    gone: tuple[str, ...] = ()


def state(record: RunRecord) -> State:
    """How far the run's server is behind; it is not asked.

    Raises:
        ConfigError: the run has no journal.
    """
    return _state(record, *_opened(record, record.tracking_uri))


def synchronise(
    record: RunRecord, uri: str | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> State:
    """Send what the server does not have, for as long as `storage.patience` says.

    A run whose driver died without a word is noted as KILLED, or FINISHED where it had all its updates.

    Args:
        uri: another server than the run's; it gets everything, and is the run's from now on.
        progress: called with the entries sent and those to send.

    Returns:
        The state before: `pending` is what was sent.

    Raises:
        ConfigError: the run has no journal.
        TrackingOutage: the server stays away.
        TrackingError: it refuses something, or the URI is none.
    """
    uri = uri or record.tracking_uri
    server.check(uri)
    journal, replica = _opened(record, uri)
    num_torn_bytes = journal.mend()
    before = _state(record, journal, replica)
    if before.status == "RUNNING" and not before.is_driven:
        journal.append("status", status="FINISHED" if record.finished else "KILLED")
        before = _state(record, journal, replica)
    total = sum(before.pending.values())
    left = total

    def advance(batch: Sequence[Entry]) -> None:
        nonlocal left
        left -= len(batch)
        progress(total - left, total)

    for lane in LANES:
        send = partial(replica.send, lane, advance=advance)
        patiently(send, lambda error: isinstance(error, TrackingOutage), lambda error, lost_s: error)
    if (record.tracking_uri, record.mlflow_run_id) != (uri, replica.mlflow_run_id):
        record.tracking_uri, record.mlflow_run_id = uri, replica.mlflow_run_id
        record.write(str(record.directory.parent))
    return State(
        uri, replica.mlflow_run_id, before.status, before.is_driven, before.pending, num_torn_bytes, tuple(replica.gone)
    )


def _opened(record: RunRecord, uri: str) -> tuple[Journal, Replica]:
    journal = Journal(record.directory)
    if next(journal.entries(), None) is None:
        raise ConfigError(f"run {record.run_id!r} in {record.directory} has no journal: an older cdrl made it")
    known = record.mlflow_run_id if uri == record.tracking_uri else ""
    return journal, Replica(journal, uri, known)


def _state(record: RunRecord, journal: Journal, replica: Replica) -> State:
    status = journal.last("status")
    known = status["status"] if status else "RUNNING"
    return State(replica.uri, replica.mlflow_run_id, known, _is_driven(record.directory), replica.pending())


def _is_driven(directory: Path) -> bool:
    """Whether a process holds the lock of the run's driver; the system frees that of a dead one."""
    place = directory / ".driver"
    if not place.exists():
        return False
    with place.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
