"""Every move of a champion, for good: numbered entries, each with the SHA-256 of the one before it.

The history decides who is champion; the alias on the MLflow server follows it. MLflow moves an alias without asking
where it stood, so two promotions at once could both succeed there. Here each of them tries to write the same next
entry, which can be created once: it holds the champion that was expected, and who comes second is refused. There is no
lock that a dead process could leave behind.
"""

import getpass
import hashlib
import os
import re
import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cdrl import storage
from cdrl.errors import RegistryError, StorageError

__all__ = ["Chain", "Entry", "History", "Overtaken"]

NAME = re.compile(r"\d{8}\.json")


class Overtaken(RegistryError):
    """Somebody else moved the champion in the meantime."""


class Entry(BaseModel):
    """One move.

    Attributes:
        number: from 0 on.
        action: found: the history begins, with the champion that was there.
        champion: the version that is champion from here on.
        before: the one that was expected to be champion, and was.
        why: what the gates found, and what the person said.
        gates: the settings that the gates went by; empty if none were asked.
        model_digest, proof_digest, scorecard_digest: of the new champion.
        previous: SHA-256 of the file of the entry before; empty in the first.
        nonce: makes every file another one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    action: Literal["found", "promote", "rollback"]
    model: str
    champion: int | None
    before: int | None = None
    who: str
    when: datetime = Field(default_factory=lambda: datetime.now(UTC))
    why: tuple[str, ...] = ()
    gates: dict[str, Any] = {}
    model_digest: str = ""
    proof_digest: str = ""
    scorecard_digest: str = ""
    previous: str = ""
    nonce: str = Field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Chain:
    """All entries as they were read, oldest first, and the SHA-256 of the last one's file."""

    entries: tuple[Entry, ...]
    digest: str

    @property
    def head(self) -> Entry:
        """The last move."""
        return self.entries[-1]

    @property
    def in_force(self) -> list[Entry]:
        """The moves that made each champion on the way to this one, without those that were rolled back."""
        stack: list[Entry] = []
        for entry in self.entries:
            if entry.action == "rollback":
                stack.pop()
            elif entry.champion is not None:
                stack.append(entry)
        return stack


class History:
    """The history of one model in a folder or below an `s3://` URI."""

    def __init__(self, uri: str, model: str) -> None:
        self.uri, self.model = uri, model

    @classmethod
    def found(cls, root: str, model: str, **values: Any) -> "History":
        """Begin one below `root`, in a folder of its own.

        Raises:
            StorageError: the place cannot be reached, or overwrites what it was asked to create.
        """
        history = cls(storage.join(root, f"{model}-{uuid.uuid4().hex[:8]}"), model)
        history._create(history._entry(0, action="found", **values))
        if history._create(history._entry(0, action="found", **values)):
            raise StorageError(
                f"{root}: this store overwrites what it is asked to create (no conditional writes, If-None-Match), so "
                "two promotions at once could both succeed; set gates.history to another place"
            )
        return history

    def read(self) -> Chain:
        """All entries; every link of the chain is checked.

        Raises:
            RegistryError: it is not there, or an entry is missing, damaged or was changed.
            StorageError: the place cannot be reached.
        """
        there = not storage.is_local(self.uri) or storage.local_path(self.uri).is_dir()
        names = [name for name in storage.listing(self.uri) if NAME.fullmatch(name)] if there else []
        if not names:
            raise RegistryError(
                f"no history of model {self.model!r} at {self.uri}: is that a folder of another machine? Nothing is "
                "promoted without it"
            )
        entries: list[Entry] = []
        previous = ""
        for number, name in enumerate(names):
            place = storage.join(self.uri, name)
            content = storage.read_bytes(place)
            try:
                entry = Entry.model_validate_json(content)
            except ValidationError:
                raise RegistryError(f"{place}: damaged: not an entry of a history; restore it from a copy") from None
            if (entry.number, name, entry.model) != (number, self._name(number), self.model):
                raise RegistryError(
                    f"{self.uri}: expected entry {number} of {self.model!r}, got {name}; restore what is missing"
                )
            if entry.previous != previous:
                raise RegistryError(f"{place}: the entry before it was changed after it was written; restore it")
            entries.append(entry)
            previous = hashlib.sha256(content).hexdigest()
        return Chain(tuple(entries), previous)

    def append(self, chain: Chain, **values: Any) -> Chain:
        """Write the next entry after `chain`, which must still be all there is.

        Raises:
            Overtaken: it is not: somebody was faster; nothing was changed.
        """
        head = chain.head
        entry = self._entry(head.number + 1, before=head.champion, previous=chain.digest, **values)
        if (content := self._create(entry)) is None:
            winner = self.read().entries[entry.number]
            raise Overtaken(
                f"{self.model}: {winner.who} made version {winner.champion} champion ({winner.action}) while this was "
                f"decided for version {head.champion or 'none'}; nothing was changed, look again and repeat"
            )
        return Chain((*chain.entries, entry), hashlib.sha256(content).hexdigest())

    def _entry(self, number: int, **values: Any) -> Entry:
        return Entry(number=number, model=self.model, who=_who(), **values)

    def _create(self, entry: Entry) -> bytes | None:
        """The content, if this call wrote it."""
        content = entry.model_dump_json(indent=1).encode()
        return content if storage.create_bytes(storage.join(self.uri, self._name(entry.number)), content) else None

    @staticmethod
    def _name(number: int) -> str:
        return f"{number:08d}.json"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
