"""The manifest: what a prepared dataset is. It is written last, so a half-written set does not exist."""

import hashlib
import json
import math
import re
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cdrl import storage
from cdrl.errors import DataError

__all__ = ["FILE_NAME", "SHARD_NAME", "Failure", "Manifest", "Origin", "Shard", "Split"]

FILE_NAME = "manifest.json"
SHARD_NAME = re.compile(r"^(train|holdout)-[0-9]{5,}-[0-9a-f]{12}\.arrow\Z")
FORMAT: Literal[1] = 1
ITEM_BYTES = {"uint8": 1, "float32": 4, "int32": 4}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(Part):
    """One Arrow IPC file: columns `image` (fixed-shape tensor) and `label` (int32; 0 = none, 1 ... C = class)."""

    # names come from a file and become paths: no separators, no dots in front
    name: str = Field(pattern=SHARD_NAME)
    rows: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Split(Part):
    """Rows in the order of their shards; `label_counts[c]` rows have label c (0 = none, 1 ... C = class)."""

    rows: int = Field(ge=0)
    label_counts: tuple[int, ...]
    shards: tuple[Shard, ...]


class Failure(Part):
    """One row of the source that could not be read: which, and why."""

    where: str
    reason: str


class Origin(Part):
    """Where the rows lay when they were prepared, and which of them could not be read: no part of the content.

    Attributes:
        path, holdout_path: as `cdrl data prepare` was given them.
        num_failures: rows left out; `failures` lists the first few hundred.
    """

    path: str | None = None
    holdout_path: str | None = None
    num_failures: int = Field(0, ge=0)
    failures: tuple[Failure, ...] = ()


class Manifest(Part):
    """A dataset as prepared: where it came from, what its rows look like, and which shards hold them.

    Attributes:
        source, options: what `cdrl data prepare` was asked for, without the paths.
        shape: (channels, height, width) of an image, or (dims,) of a point.
        dtype: `uint8`, pixels 0 ... 255, or `float32`, coordinates.
        class_names: C names; label c is `class_names[c - 1]`. Empty if there are no labels.
        mean, std: of the train split per channel or coordinate, in the units of dtype.
        origin: where the rows lay; datasets prepared before it existed keep their paths among the options.
    """

    format: Literal[1] = FORMAT
    source: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"]
    class_names: tuple[str, ...]
    splits: dict[Literal["train", "holdout"], Split]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: Origin | None = None

    @property
    def path(self) -> str | None:
        """Where the rows lay, as `cdrl data prepare` was told; None for sources that bring their own."""
        return self.options.get("path") if self.origin is None else self.origin.path

    @property
    def row_bytes(self) -> int:
        """Bytes of one image or point and its label."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype] + ITEM_BYTES["int32"]

    @property
    def has_holdout(self) -> bool:
        """Whether any rows are kept from training."""
        return "holdout" in self.splits and self.splits["holdout"].rows > 0

    @model_validator(mode="after")
    def _parts_agree(self) -> "Manifest":
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise ValueError(f"shape {list(self.shape)}: expected [channels, height, width] or [dims]")
        for name, split in self.splits.items():
            counts, shards = split.label_counts, sum(shard.rows for shard in split.shards)
            if len(counts) != len(self.class_names) + 1 or sum(counts) != split.rows or shards != split.rows:
                raise ValueError(f"{name}: {split.rows} rows, but {shards} in shards and labels {list(counts)}")
            for shard in split.shards:
                # nothing is compressed; with the check of a file's size, no row count can ask for more than is there
                if shard.rows * self.row_bytes > shard.bytes:
                    needed = shard.rows * self.row_bytes
                    raise ValueError(f"{shard.name}: {shard.rows} rows take {needed} bytes, it has {shard.bytes}")
        names = [shard.name for split in self.splits.values() for shard in split.shards]
        if len(set(names)) < len(names):
            raise ValueError("a shard is named twice")
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the canonical JSON of all but the origin; through the shards' digests, over every pixel.

        The same rows prepared from another place are the same dataset.
        """
        tree = self.model_dump(mode="json", exclude={"origin"})
        content = json.dumps(tree, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def read(cls, uri: str, pin: str | None = None) -> "Manifest":
        """Read the manifest of the dataset at `uri` and check its digest.

        Args:
            pin: beginning of the digest that is expected; None = whatever is there.

        Raises:
            DataError: no dataset there, another one than the pin says, or a manifest that is damaged or of another
                format.
            StorageError: the place cannot be reached.
        """
        place = storage.join(uri, FILE_NAME)
        content = storage.find_bytes(place)
        if content is None:
            hint = f"make one with: cdrl data prepare SOURCE {uri}"
            raise DataError(f"{uri}: no dataset here ({FILE_NAME} is missing); {hint}")
        try:
            tree = json.loads(content)
            if tree.get("format") != FORMAT:
                found = tree.get("format")
                raise DataError(f"{place}: expected format {FORMAT}, got {found!r}; prepare the data again")
            stated = tree.pop("digest", None)
            manifest = cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
            raise DataError(f"{place}: not a valid manifest: {reason}; prepare the data again") from None
        except (ValueError, AttributeError):
            raise DataError(f"{place}: not a valid manifest: it is no JSON object; prepare the data again") from None
        if stated != manifest.digest:
            raise DataError(f"{place}: changed after it was written: digest {stated!r}, content {manifest.digest!r}")
        if pin is not None and not manifest.digest.startswith(pin):
            found = manifest.digest[: len(pin)]
            raise DataError(f"{uri}: another dataset: expected digest {pin}, got {found}; mend data.uri or data.digest")
        return manifest

    def write(self, uri: str) -> None:
        """Write to the dataset at `uri`: the last file, which makes it visible.

        Raises:
            StorageError: the place cannot be reached or written.
        """
        tree = {**self.model_dump(mode="json"), "digest": self.digest}
        storage.write_bytes(storage.join(uri, FILE_NAME), json.dumps(tree, indent=1).encode())
