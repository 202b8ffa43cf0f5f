"""What all tasks of one prepare share, and the cards by which a prepare that was killed knows what is done.

    URI/.prepare/KEY/run-00007.rows, .json        rows of the source, decoded (`cdrl.data.decode`)
    URI/.prepare/KEY/train-00003.json             a shard that stands (`cdrl.data.gather`)
    URI/.prepare/claim.json                       which prepare works here: the one that began last

A card is written after the file that it speaks of. KEY is the digest of all that decides the bytes, so that a prepare
with another recipe, or of files that changed, finds no card.
"""

import json
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cdrl import storage
from cdrl.data.recipe import Options
from cdrl.errors import StorageError

__all__ = ["Card", "Job", "claimed", "sweep"]

FOLDER, CLAIM = ".prepare", "claim.json"


class Card(BaseModel):
    """What is known of a finished piece of work."""

    model_config = ConfigDict(extra="forbid", frozen=True)


C = TypeVar("C", bound=Card)


@dataclass(frozen=True)
class Job:
    """A dataset in the making.

    Attributes:
        uri: where it goes; a path is absolute, since workers have folders of their own.
        key: names the recipe, the source's state and the plan.
        first: names the row that all others must be like, in errors.
        shape, dtype: of a row.
        max_bad: so many rows may be unreadable.
    """

    uri: str
    key: str
    options: Options
    first: str
    shape: tuple[int, ...]
    dtype: str
    max_bad: int

    def place(self, name: str) -> str:
        """The URI of a file in the job's own folder."""
        return storage.join(self.uri, FOLDER, self.key, name)

    def card(self, name: str, kind: type[C]) -> C | None:
        """The card of that name; None if there is none that can be read."""
        content = storage.find_bytes(self.place(f"{name}.json"))
        if content is None:
            return None
        try:
            return kind.model_validate_json(content)
        except ValidationError:
            return None

    def note(self, name: str, card: Card) -> None:
        """Write a card."""
        storage.write_bytes(self.place(f"{name}.json"), card.model_dump_json().encode())

    def forget(self, name: str) -> None:
        """Remove a card."""
        storage.remove(self.place(f"{name}.json"))


def claimed(uri: str) -> Callable[[], None]:
    """Take the place over from any prepare that works there; returns a check that it has not been taken over since.

    No lock: an object store has none, and one that was killed would hold it for ever. So the prepare that began last
    goes on, and one that finds another's claim touches nothing more. The check raises `StorageError` then.
    """
    place, ours = storage.join(uri, FOLDER, CLAIM), json.dumps({"prepare": uuid.uuid4().hex}).encode()
    storage.write_bytes(place, ours)

    def check() -> None:
        if storage.find_bytes(place) != ours:
            raise StorageError(f"{uri}: another prepare has begun here and goes on alone; let one of them end first")

    return check


def sweep(uri: str, keep: str | None = None) -> None:
    """Remove what prepares of the dataset at `uri` have laid down, except for the job with the key `keep`."""
    root = storage.join(uri, FOLDER)
    for name in storage.listing(root):
        if keep is None or (name != CLAIM and not name.startswith(f"{keep}/")):
            storage.remove(storage.join(root, name))
    if keep is None and storage.is_local(uri):
        shutil.rmtree(storage.local_path(root), ignore_errors=True)
        with suppress(OSError):
            storage.local_path(uri).rmdir()  # only if it is empty: the dataset did not come to be
