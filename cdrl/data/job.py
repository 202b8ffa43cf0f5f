"""What all tasks of one prepare share, and the cards by which a prepare that was killed knows what is done.

    URI/.prepare/KEY/run-00007.rows, .json        rows of the source, decoded (`cdrl.data.decode`)
    URI/.prepare/KEY/train-00003.json             a shard that stands (`cdrl.data.gather`)

A card is written after the file that it speaks of. KEY is the digest of all that decides the bytes, so that a prepare
with another recipe, or of files that changed, finds no card.
"""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cdrl import storage
from cdrl.data.recipe import Options

__all__ = ["Card", "Job", "sweep"]

FOLDER = ".prepare"


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
        place = self.place(f"{name}.json")
        if not storage.exists(place):
            return None
        try:
            return kind.model_validate_json(storage.read_bytes(place))
        except ValidationError:
            return None

    def note(self, name: str, card: Card) -> None:
        """Write a card."""
        storage.write_bytes(self.place(f"{name}.json"), card.model_dump_json().encode())

    def forget(self, name: str) -> None:
        """Remove a card."""
        storage.remove(self.place(f"{name}.json"))


def sweep(uri: str, keep: str | None = None) -> None:
    """Remove what prepares of the dataset at `uri` have laid down, except for the job with the key `keep`."""
    root = storage.join(uri, FOLDER)
    for name in storage.listing(root):
        if keep is None or not name.startswith(f"{keep}/"):
            storage.remove(storage.join(root, name))
    if keep is None and storage.is_local(uri):
        shutil.rmtree(storage.local_path(root), ignore_errors=True)
        with suppress(OSError):
            storage.local_path(uri).rmdir()  # only if it is empty: the dataset did not come to be
