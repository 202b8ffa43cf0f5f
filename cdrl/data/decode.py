"""First half of preparing: runs of rows of the source are decoded, sorted by place and laid down.

The rows of a source often lie class after class, and those of a shard come from everywhere. So decoded rows are laid
down first, some thousands at a time, in the job's folder at the dataset's own URI; then each shard collects its own
(`cdrl.data.gather`). Each process holds one run in memory, whatever the size of the source, and the folder lies where
all workers reach it and where a prepare that was killed goes on. It takes as much room as the dataset itself.
"""

import hashlib
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdrl import storage
from cdrl.data.job import Card, Job
from cdrl.data.manifest import Failure
from cdrl.data.recipe import Options, row_of
from cdrl.data.rows import Part, Source
from cdrl.errors import DataError

__all__ = ["FailedRow", "Run", "RunCard", "check_failures", "first_row"]


class FailedRow(Card):
    """A row that could not be read: its place in the dataset, which stays empty, and the error."""

    place: int
    where: str
    message: str

    def failure(self) -> Failure:
        """As the manifest lists it."""
        return Failure(where=self.where, reason=self.message.removeprefix(f"{self.where}: "))


class RunCard(Card):
    """A run that is laid down.

    Attributes:
        number: of the run.
        digests: SHA-256 (hex) of its rows for each shard that has some of them, in order.
    """

    number: int
    failures: tuple[FailedRow, ...]
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """The task to decode one run of rows.

    Attributes:
        rows: reads them.
        places: (n,) where they go in the dataset.
        cuts: (shards+1,) of the sorted places, those from cuts[k] to cuts[k+1] belong to shard k.
    """

    job: Job
    number: int
    rows: Part
    places: NDArray[np.int64]
    cuts: NDArray[np.int64]

    def __call__(self) -> RunCard:
        """Decode the run and lay it down, unless that is done already.

        Raises:
            DataError: more unreadable rows than allowed, or a source that changed under way.
            StorageError: the place cannot be reached or written.
        """
        name = run_name(self.number)
        if (card := self.job.card(name, RunCard)) is not None:
            return card
        sorted_rows, failures = self._decoded()
        content = sorted_rows.tobytes()
        storage.write_bytes(self.job.place(f"{name}.rows"), content)
        spans = zip(self.cuts[:-1], self.cuts[1:], strict=True)
        digests = tuple(
            hashlib.sha256(sorted_rows[start:stop].tobytes()).hexdigest() for start, stop in spans if stop > start
        )
        card = RunCard(number=self.number, failures=tuple(failures), digests=digests)
        self.job.note(name, card)
        return card

    def _decoded(self) -> tuple[NDArray, list[FailedRow]]:
        """Rows (n, *shape) in the order of their places, and those that failed, which are left zero."""
        job, failures = self.job, list[FailedRow]()
        sorted_rows = np.zeros((len(self.places), *job.shape), job.dtype)
        ranks = np.empty(len(self.places), np.int64)
        ranks[np.argsort(self.places)] = np.arange(len(self.places))
        seen = 0
        for rank, place, example in zip(ranks, self.places, self.rows(), strict=False):
            seen += 1
            try:
                row = row_of(example, job.options)
                if row.shape != job.shape:
                    raise DataError(
                        f"mixed shapes: {job.first} is {_times(job.shape)}, {example.where} is {_times(row.shape)}; "
                        "give --size, and --grayscale or --rgb if the channels differ"
                    )
                sorted_rows[rank] = row
            except DataError as error:
                failures.append(FailedRow(place=int(place), where=example.where, message=str(error)))
                check_failures(failures, job.max_bad)
        if seen < len(ranks):
            raise DataError("the source has changed meanwhile: it has fewer rows now; run the same command again")
        return sorted_rows, failures


def run_name(number: int) -> str:
    """The name of a run's files in the job's folder, without suffix."""
    return f"run-{number:05d}"


def first_row(source: Source, options: Options, max_bad: int) -> tuple[str, NDArray]:
    """The name and the content of the first row that can be read.

    Raises:
        DataError: more than `max_bad` rows before it, or all, cannot be read.
    """
    failures: list[FailedRow] = []
    with closing(source.part(0, len(source.labels))()) as examples:
        for place, example in enumerate(examples):
            try:
                return example.where, row_of(example, options)
            except DataError as error:
                failures.append(FailedRow(place=place, where=example.where, message=str(error)))
                check_failures(failures, max_bad)
    raise DataError(f"no row can be read; the first: {failures[0].message}")


def check_failures(failures: list[FailedRow], max_bad: int) -> None:
    """Nothing, unless there are more than allowed.

    Raises:
        DataError: with the first of them.
    """
    if len(failures) <= max_bad:
        return
    if not max_bad:
        raise DataError(f"{failures[0].message}, or leave some out with --max-bad")
    raise DataError(f"more than {max_bad} rows cannot be read (--max-bad); the first: {failures[0].message}")


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
