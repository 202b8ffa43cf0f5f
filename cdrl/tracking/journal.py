"""The journal of a run: one line of JSON for everything that shall be known of it, on disk before anywhere else."""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdrl.errors import StorageError, TrackingError
from cdrl.tracking.server import shown

__all__ = ["Entry", "Journal"]

Entry = dict[str, Any]


class Journal:
    """`journal.jsonl` in a run's folder. Lines are only added; several threads and processes may do so.

    Every entry has a `time` (milliseconds since 1970, later than that of the entry before, also where a clock was set
    back) and a `kind`: `start` (of the run: names, parameters), `tags`, `note`, `status`, `metrics`, `text`, `image`,
    `file`. Values that are no numbers stand as NaN and Infinity, as Python's JSON has them.

    Args:
        name: of another file than the run's journal, for lines of other kinds.

    Attributes:
        directory: the run's folder; files of entries are named relative to it.
    """

    def __init__(self, directory: Path, name: str = "journal.jsonl") -> None:
        self.directory = directory
        self._path = directory / name
        self._mutex = threading.Lock()
        self._time_ms = self._known_to = 0  # time of the last entry that this process has seen, the byte behind it

    def append(self, kind: str, **content: Any) -> None:
        """Add an entry. Names and passwords within URIs are left out.

        Raises:
            StorageError: the disk does not take it.
            TrackingError: another process left a damaged line.
        """
        with self._locked() as file:
            for end, entry in self.entries(self._known_to):  # those of other processes
                self._known_to, self._time_ms = end, max(self._time_ms, entry["time"])
            self._time_ms = max(self._time_ms + 1, int(time.time() * 1000))
            entry = _without_secrets({"time": self._time_ms, "kind": kind, **content})
            line = json.dumps(entry).encode() + b"\n"
            if file.write(line) < len(line):  # what is there now is cut off by the next one
                raise StorageError(f"cannot write {self._path}: the disk is full")
            self._known_to += len(line)

    def mend(self) -> int:
        """Cut off the last line where a process was killed while it wrote it; how many bytes that was."""
        if not self._path.exists():
            return 0
        with self._locked(mend=False) as file:
            return _cut(file)

    def entries(self, start: int = 0) -> Iterator[tuple[int, Entry]]:
        """Every whole line from byte `start` on: the byte behind it, and what it says.

        Raises:
            TrackingError: a line is damaged.
        """
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(start)
            end = start
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is being written now, or never will be
                end += len(line)
                yield end, _parsed(line, f"{self._path}, byte {end - len(line)}")

    def last(self, kind: str) -> Entry | None:
        """The newest entry of a kind."""
        newest = None
        for _, entry in self.entries():
            newest = entry if entry["kind"] == kind else newest
        return newest

    def persist(self) -> None:
        """Return when the disk holds what was added: nobody else shall know more than the journal."""
        if self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    @contextmanager
    def _locked(self, mend: bool = True) -> Iterator[Any]:
        """The file, open for this thread of this process alone."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._mutex, self._path.open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if mend:
                    _cut(file)  # of another process that died since
                yield file
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from None


def _cut(file: Any) -> int:
    """Cut off what follows the last end of a line; how many bytes that was."""
    size = file.seek(0, os.SEEK_END)
    kept, block = size, 1
    while kept:
        file.seek(max(0, kept - block))
        if (at := file.read(kept - file.tell()).rfind(b"\n")) >= 0:
            kept = max(0, kept - block) + at + 1
            break
        kept, block = max(0, kept - block), 65536
    if kept < size:
        file.truncate(kept)
    return size - kept


def _parsed(line: bytes, where: str) -> Entry:
    try:
        entry = json.loads(line)
        if isinstance(entry, dict) and isinstance(entry["time"], int) and isinstance(entry["kind"], str):
            return entry
    except (ValueError, KeyError):
        pass
    raise TrackingError(f"{where}: damaged: expected an entry with time and kind, got {line[:40]!r}; remove the line")


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {key: _without_secrets(each) for key, each in value.items()}
    return [_without_secrets(each) for each in value] if isinstance(value, list | tuple) else value
