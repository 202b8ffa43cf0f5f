"""The middle of preparing: runs are decoded, shards gathered, and what their cards say becomes a manifest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cdrl.data import parallel
from cdrl.data.decode import FailedRow, Run, RunCard, check_failures
from cdrl.data.gather import Collect, ShardCard, Slice
from cdrl.data.job import Job
from cdrl.data.manifest import Manifest, Origin, Split
from cdrl.data.plan import Plan
from cdrl.data.rows import Source
from cdrl.errors import DataError

__all__ = ["Progress", "Work", "assemble"]

Progress = Callable[[Literal["rows", "shards"], int, int], None]
"""Called with what is done: how many of the rows are decoded, then how many of the shards stand."""

MAX_LISTED = 200  # failures in the manifest


@dataclass(frozen=True)
class Work:
    """All that is known before anything is decoded but the first row.

    Attributes:
        parts: sources and the rows taken of each, which count as one sequence of n rows.
        run_rows: rows decoded at a time.
        labels: (n,) 0 ... C.
    """

    job: Job
    parts: list[tuple[Source, int]]
    run_rows: int
    labels: NDArray[np.int32]
    plan: Plan

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of all parts."""
        return self.parts[0][0].class_names


def assemble(source: str, work: Work, workers: int, progress: Progress) -> Manifest:
    """Decode and gather all rows; returns the manifest, which is not written yet.

    Raises:
        DataError: more unreadable rows than the job allows.
        StorageError: the place cannot be reached or written.
    """
    job = work.job
    runs = list(_runs(work))
    done, cards, failures = 0, dict[int, RunCard](), list[FailedRow]()
    progress("rows", 0, len(work.labels))
    for card in parallel.each(runs, RunCard, workers):
        cards[card.number] = card
        failures += card.failures
        check_failures(failures, job.max_bad)
        done += len(runs[card.number].places)
        progress("rows", done, len(work.labels))
    failures.sort(key=lambda failed: failed.place)
    tasks = _collects(work, runs, cards, failures)
    shards: list[ShardCard] = []
    progress("shards", 0, len(tasks))
    for shard in parallel.each(tasks, ShardCard, workers):
        shards.append(shard)
        progress("shards", len(shards), len(tasks))
    shards.sort(key=lambda shard: shard.piece)
    train, holdout = (
        [shard for shard in shards if work.plan.pieces[shard.piece].split == split] for split in ("train", "holdout")
    )
    if not any(shard.shard for shard in train):
        raise DataError(f"{source}: no row is left for training; the first failure: {failures[0].message}")
    mean, std = _moments(train, int(np.prod(job.shape[1:])))
    return Manifest(
        source=source,
        options=job.options.without_paths().model_dump(mode="json"),
        shape=job.shape,
        dtype=job.dtype,
        class_names=work.class_names,
        splits={"train": _split(train, work), "holdout": _split(holdout, work)},
        mean=mean,
        std=std,
        origin=Origin(
            path=job.options.path,
            holdout_path=job.options.holdout_path,
            num_failures=len(failures),
            failures=tuple(failed.failure() for failed in failures[:MAX_LISTED]),
        ),
    )


def _runs(work: Work) -> Iterator[Run]:
    number = offset = 0
    for source, rows in work.parts:
        for start in range(0, rows, work.run_rows):
            stop = min(start + work.run_rows, rows)
            places = work.plan.places[offset + start : offset + stop]
            yield Run(work.job, number, source.part(start, stop), places, work.plan.cuts(np.sort(places)))
            number += 1
        offset += rows


def _collects(work: Work, runs: list[Run], cards: dict[int, RunCard], failures: list[FailedRow]) -> list[Collect]:
    slices: list[list[Slice]] = [[] for _ in work.plan.pieces]
    for run in runs:
        places, digests = np.sort(run.places), iter(cards[run.number].digests)
        for piece in np.flatnonzero(np.diff(run.cuts)):
            first, stop = run.cuts[piece : piece + 2]
            slices[piece].append(Slice(run.number, int(first), places[first:stop], next(digests)))
    labels = np.empty_like(work.labels)
    labels[work.plan.places] = work.labels
    return [
        Collect(
            work.job,
            number,
            piece,
            tuple(slices[number]),
            labels[piece.start : piece.stop],
            len(work.class_names) + 1,
            tuple(failed.place for failed in failures if piece.start <= failed.place < piece.stop),
        )
        for number, piece in enumerate(work.plan.pieces)
    ]


def _split(cards: list[ShardCard], work: Work) -> Split:
    shards = tuple(card.shard for card in cards if card.shard is not None)
    counts = np.zeros(len(work.class_names) + 1, np.int64)
    for card in cards:
        counts += card.label_counts
    return Split(rows=sum(shard.rows for shard in shards), label_counts=tuple(counts.tolist()), shards=shards)


def _moments(cards: list[ShardCard], values_per_row: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel or coordinate."""
    values = values_per_row * sum(card.shard.rows for card in cards if card.shard is not None)
    mean = np.sum([card.total for card in cards], axis=0) / values
    std = np.sqrt(np.maximum(np.sum([card.squares for card in cards], axis=0) / values - mean**2, 0))
    return tuple(mean.tolist()), tuple(std.tolist())
