"""Second half of preparing: a shard collects its rows, is written, uploaded, read back and noted on a card."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdrl import storage
from cdrl.data.decode import run_name
from cdrl.data.job import Card, Job
from cdrl.data.manifest import Shard
from cdrl.data.plan import Piece
from cdrl.data.shards import write_shard
from cdrl.errors import CdrlError, StorageError

__all__ = ["Collect", "ShardCard", "Slice"]

NUM_UPLOADS = 3
READ_BACK_PATIENCE_S = 20.0
SUM_BYTES = 2**20  # rows are summed in float64, which takes eight times the memory


class ShardCard(Card):
    """A shard that stands.

    Attributes:
        piece: its place among all shards of the dataset.
        shard: None if none of its rows could be read.
        left_out: places of rows that could not be read.
        label_counts: rows with label 0 ... C.
        total, squares: sums of values and of their squares per channel or coordinate; exact for pixels.
    """

    piece: int
    shard: Shard | None
    left_out: tuple[int, ...]
    label_counts: tuple[int, ...]
    total: tuple[float, ...]
    squares: tuple[float, ...]


@dataclass(frozen=True)
class Slice:
    """The rows of one run that belong to one shard.

    Attributes:
        run: number of the run.
        first: the rows before them in the run's file.
        places: (n,) where they go, ascending.
        digest: SHA-256 (hex) of the rows.
    """

    run: int
    first: int
    places: NDArray[np.int64]
    digest: str


@dataclass(frozen=True)
class Collect:
    """The task to make one shard.

    Attributes:
        number, piece: which.
        slices: where its rows lie.
        labels: (n,) of its rows, in order.
        num_labels: C + 1.
        left_out: places of rows that could not be read.
    """

    job: Job
    number: int
    piece: Piece
    slices: tuple[Slice, ...]
    labels: NDArray[np.int32]
    num_labels: int
    left_out: tuple[int, ...]

    def __call__(self) -> ShardCard:
        """Make the shard, unless it stands already.

        Raises:
            StorageError: the place cannot be reached or written, or does not give back what it was given.
        """
        name = f"{self.piece.split}-{self.piece.number:05d}"
        card = self.job.card(name, ShardCard)
        with tempfile.TemporaryDirectory(prefix="cdrl-prepare-") as folder:
            if card is None or card.left_out != self.left_out or not self._stands(card.shard, Path(folder)):
                card = self._made(name, Path(folder))
                self.job.note(name, card)
        return card

    def _made(self, name: str, folder: Path) -> ShardCard:
        rows, labels = self._rows()
        total, squares = _sums(rows)
        shard = None
        if len(rows):
            path = folder / "shard.arrow"
            try:
                write_shard(path, rows, labels)
            except OSError as error:
                raise StorageError(f"cannot write {path}: {error}; TMPDIR names another temporary folder") from None
            sha256 = storage.sha256_file(path)
            # the digest in the name keeps a replaced dataset readable until the new manifest stands
            name = f"{name}-{sha256[:12]}.arrow"
            shard = Shard(name=name, rows=len(rows), bytes=path.stat().st_size, sha256=sha256)
            self._upload(path, shard, folder)
        counts = np.bincount(labels, minlength=self.num_labels)
        return ShardCard(
            piece=self.number,
            shard=shard,
            left_out=self.left_out,
            label_counts=tuple(counts.tolist()),
            total=tuple(total.tolist()),
            squares=tuple(squares.tolist()),
        )

    def _rows(self) -> tuple[NDArray, NDArray[np.int32]]:
        """Rows (n, *shape) and labels (n,) in order, without those that could not be read."""
        job, start = self.job, self.piece.start
        rows = np.empty((self.piece.stop - start, *job.shape), job.dtype)
        row_bytes = rows[0].nbytes
        for part in self.slices:
            place = job.place(f"{run_name(part.run)}.rows")
            content = self._laid_down(place, part.first * row_bytes, len(part.places) * row_bytes)
            if hashlib.sha256(content).hexdigest() != part.digest:
                job.forget(run_name(part.run))
                reason = "came back changed" if content else "vanished, perhaps since another prepare has begun here"
                raise StorageError(f"{place}: {reason}; run the same command again, which decodes it anew")
            rows[part.places - start] = np.frombuffer(content, job.dtype).reshape(-1, *job.shape)
        if not self.left_out:
            return rows, self.labels
        readable = np.ones(len(rows), np.bool_)
        readable[np.array(self.left_out) - start] = False
        return rows[readable], self.labels[readable]

    def _laid_down(self, place: str, start: int, size: int) -> bytes:
        """What lies there; nothing if the file is gone."""
        try:
            return storage.read_range(place, start, size)
        except StorageError:
            if storage.exists(place):
                raise
            return b""

    def _upload(self, path: Path, shard: Shard, folder: Path) -> None:
        for _ in range(NUM_UPLOADS):
            storage.upload(path, storage.join(self.job.uri, shard.name))
            if self._stands(shard, folder):
                return
        raise StorageError(
            f"{storage.join(self.job.uri, shard.name)}: uploaded {NUM_UPLOADS} times, never read back unchanged; "
            "check the object store"
        )

    def _stands(self, shard: Shard | None, folder: Path) -> bool:
        """Whether the whole shard can be read back; a shard without rows needs no file."""
        if shard is None:
            return True
        back = folder / "back.arrow"
        try:
            with storage.patience(READ_BACK_PATIENCE_S):
                storage.download(storage.join(self.job.uri, shard.name), back, sha256=shard.sha256)
        except CdrlError:
            return False
        back.unlink()
        return True


def _sums(rows: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per channel or coordinate (C,): sums over rows (n, C, ...) of values and of squares."""
    total, squares = np.zeros((2, rows.shape[1]))
    step = max(1, SUM_BYTES // (rows.itemsize * int(np.prod(rows.shape[1:]))))
    for start in range(0, len(rows), step):
        channels = np.moveaxis(rows[start : start + step], 1, 0).reshape(len(total), -1).astype(np.float64)
        total += channels.sum(axis=1)
        squares += (channels**2).sum(axis=1)
    return total, squares
