"""Where a run's checkpoints lie: written behind the back of the training, visible last, found again newest first.

Every rank writes the files of its pairs into the folder of this step and attempt, and then one list of their digests.
Rank 0 waits for the lists of all, writes model.json and state.json, which makes the folder a checkpoint, and removes
checkpoints that need not be kept. Whatever dies on the way leaves a folder without state.json: no checkpoint.
"""

import contextvars
import json
import secrets
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cdrl import storage
from cdrl.errors import StorageError
from cdrl.model import Model
from cdrl.runs import STEP_FOLDER, Checkpoint, best_of, cards_below, checkpoints_below, step_folder
from cdrl.training.checkpoint import Snapshot, write_cards, write_tensors

__all__ = ["Keep", "Store", "new_attempt", "remove_checkpoint"]

POLL_S = 0.2
GRACE_S = 30.0
LIST_FILE = "rank-{:05d}.json"

Told = Callable[[Checkpoint, float], None]
"""Called on rank 0 with the card of a checkpoint that stands, and with the seconds that writing took."""


def new_attempt(uri: str) -> str:
    """A name for workers that start now (`cdrl.runs.step_folder`), larger than those of all checkpoints below `uri`."""
    known = (int(folder.rpartition("-")[2][:8], 16) for folder in cards_below(uri))
    return f"{max(int(time.time()), 1 + max(known, default=0)):08x}{secrets.token_hex(2)}"


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay, beside the one with the lowest score.

    Attributes:
        last: the newest ones, at least 1.
        every: those after a multiple of so many updates; None = none for that reason.
    """

    last: int = 2
    every: int | None = None

    def kept(self, known: dict[str, Checkpoint]) -> set[str]:
        """Those that stay of the checkpoints in `known`, oldest first."""
        stay = set(list(known)[-self.last :])
        if self.every is not None:
            stay |= {uri for uri, card in known.items() if card.step % self.every == 0}
        best = best_of(known)
        return stay if best is None else stay | {best}


class Store:
    """One rank's end of it.

    Args:
        uri: the folder of the run's checkpoints.
        attempt: of these workers, equal on all ranks (`cdrl.runs.step_folder`).
        rank: this one.
        writers: the ranks that speak for a pair.
        keep: which checkpoints stay.
        told: see `Told`.
        before: called on rank 0 with the card of a checkpoint that is about to become one.
    """

    def __init__(
        self,
        uri: str,
        attempt: str,
        rank: int,
        writers: set[int],
        keep: Keep,
        told: Told,
        before: Callable[[Checkpoint], None] = lambda card: None,
    ) -> None:
        self.uri, self._attempt, self._rank, self._writers = uri, attempt, rank, writers
        self._keep, self._told = keep, told
        self._before = before
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._deadline_s: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is on its way, whatever ended the training; an error of the training goes first."""
        if error is not None:
            self._deadline_s = time.monotonic() + GRACE_S  # other ranks may be no more
        try:
            self.settle()
        except StorageError:
            if error is None:
                raise
        finally:
            self._thread.shutdown()

    def save(self, content: Snapshot, model: Model) -> None:
        """Begin to write this rank's part, once the previous one is written.

        One checkpoint is on its way at a time, so that the newest is never given up for a newer one.

        Raises:
            StorageError: the previous one could not be written.
        """
        self.settle()
        carried = contextvars.copy_context()  # with the patience of this one
        self._pending = self._thread.submit(carried.run, self._write, content, model)

    def settle(self) -> None:
        """Wait until this rank's part of what was begun is written; on rank 0, until the checkpoint stands.

        Raises:
            StorageError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, content: Snapshot, model: Model) -> None:
        begin_s = time.monotonic()
        place = storage.join(self.uri, step_folder(content.card.step, self._attempt))
        files: dict[str, str] = {}
        with tempfile.TemporaryDirectory(prefix="cdrl-checkpoint-") as name:
            folder = Path(name)
            for file in content.tensors:
                files[file] = write_tensors(content, file, folder)
                storage.upload(folder / file, storage.join(place, file))
                (folder / file).unlink()
            if self._rank != 0:
                if files:
                    storage.write_bytes(storage.join(place, LIST_FILE.format(self._rank)), json.dumps(files).encode())
                return
            for rank in sorted(self._writers - {0}):
                files |= json.loads(self._awaited(storage.join(place, LIST_FILE.format(rank)), rank))
            write_cards(content, model, files, folder)
            self._before(content.card)
            for file in ("model.json", "state.json"):  # in this order
                storage.upload(folder / file, storage.join(place, file))
        self._told(content.card, time.monotonic() - begin_s)
        self._prune()

    def _awaited(self, uri: str, rank: int) -> bytes:
        """Another rank's list. A rank that is late is waited for: one that died ends this one too, through Ray."""
        while not storage.exists(uri):
            if self._deadline_s is not None and time.monotonic() > self._deadline_s:
                raise StorageError(f"{uri}: rank {rank} has not written its part before the training ended")
            time.sleep(POLL_S)
        return storage.read_bytes(uri)

    def _prune(self) -> None:
        """Remove checkpoints that need not be kept, and what dead attempts have left before the newest one."""
        known = checkpoints_below(self.uri)
        stay = {uri.rpartition("/")[2] for uri in self._keep.kept(known)}
        newest = list(known)[-1].rpartition("/")[2]
        names = storage.listing(self.uri)
        folders = {name.partition("/")[0] for name in names if "/" in name}
        for folder in filter(STEP_FOLDER.fullmatch, folders):
            if folder not in stay and folder < newest:
                remove_checkpoint(self.uri, folder)


def remove_checkpoint(uri: str, folder: str) -> None:
    """Remove a folder; state.json first, after which it is no checkpoint."""
    storage.remove(storage.join(uri, folder, "state.json"))
    storage.remove_folder(storage.join(uri, folder))
