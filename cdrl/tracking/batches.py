"""Entries of a journal that travel together."""

from collections.abc import Iterator
from typing import Any

from cdrl.tracking.journal import Entry

__all__ = ["MAX_METRICS", "batches"]

MAX_METRICS = 1000  # MLflow takes no more in a request


def batches(entries: Iterator[tuple[int, Entry]]) -> Iterator[tuple[int, list[Entry]]]:
    """Entries that go together, and the byte behind them: metrics of many steps, one file that was noted repeatedly."""
    batch: list[Entry] = []
    end = size = 0
    for at, entry in entries:
        same = batch and _together(batch[-1]) == _together(entry) is not None
        if batch and (not same or size >= MAX_METRICS):
            yield end, batch
            batch, size = [], 0
        batch.append(entry)
        end, size = at, size + len(entry.get("values", ()))
    if batch:
        yield end, batch


def _together(entry: Entry) -> Any:
    """Entries with the same one are sent as one; None = never."""
    match entry["kind"]:
        case "metrics":
            return "metrics"
        case "file":
            return entry["file"], entry["folder"]
    return None
