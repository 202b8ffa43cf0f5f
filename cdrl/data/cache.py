"""Shards from S3 on the disk of this machine: fetched once for all its processes, checked at each opening, bounded."""

import mmap
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cdrl import storage
from cdrl.data.files import locked, map_file, remove_unused
from cdrl.data.manifest import SHARD_NAME, Shard
from cdrl.errors import DataError, StorageError

__all__ = ["ShardCache", "cache_root"]

DATASET_NAME = re.compile(r"^[0-9a-f]{64}\Z")
NUM_TRIES = 3  # a process that streams without a bound may remove a shard between its download and its mapping


class ShardCache:
    """The shards of one dataset, at `<root>/<manifest digest>/<shard name>`.

    Args:
        uri: the dataset on S3.
        digest: of its manifest.
        root: folder for the shards of any dataset.
        max_bytes: room for all shards below `root`; None = no bound. The least recently opened ones give way. Shards
            that a living process has mapped never do, so they may take more room when several processes share a cache.
    """

    def __init__(self, uri: str, digest: str, root: Path, max_bytes: int | None = None) -> None:
        self.uri, self.root, self.max_bytes = uri, root, max_bytes
        self.folder = root / digest

    def open(self, shard: Shard) -> mmap.mmap:
        """Map a shard, from the cache if it is there as it should be. It stays there while the mapping lives.

        Raises:
            DataError: what S3 has does not match the manifest, or the disk does not keep it.
            StorageError: S3 or the disk cannot be reached.
        """
        path = self.folder / shard.name
        try:
            if (mapping := self._mapped(shard)) is not None:
                return mapping
            with locked(self.folder / f".{shard.name}.lock"):
                if (mapping := self._mapped(shard)) is not None:
                    return mapping
                for _ in range(NUM_TRIES):
                    if (mapping := self._fetched(shard)) is not None:
                        return mapping
        except OSError as error:
            raise StorageError(f"{path}: the cache cannot be used: {error}") from None
        raise DataError(f"{path}: damaged again after {NUM_TRIES} downloads; choose another folder as data.cache")

    def remove(self, shard: Shard) -> None:
        """Remove a shard, unless a living process has it mapped."""
        remove_unused(self.folder / shard.name)

    def _mapped(self, shard: Shard) -> mmap.mmap | None:
        return map_file(self.folder / shard.name, shard.bytes, shard.sha256, in_use=True)

    def _fetched(self, shard: Shard) -> mmap.mmap | None:
        for rest in self.folder.glob(f".{shard.name}.*.partial*"):
            rest.unlink(missing_ok=True)  # of a process that was killed: we hold the lock of this shard
        with self._room(shard.bytes):
            place, path = storage.join(self.uri, shard.name), self.folder / shard.name
            storage.download(place, path, sha256=shard.sha256, num_bytes=shard.bytes)
            return self._mapped(shard)  # before anybody else looks for room: what is mapped stays

    @contextmanager
    def _room(self, num_bytes: int) -> Iterator[None]:
        """With a bound, one download at a time, so that the room that was made is not taken by another."""
        if self.max_bytes is None:
            yield
            return
        with locked(self.root / ".room.lock"):
            stored = sorted(self._stored(), key=lambda each: each[1].st_mtime_ns)
            taken = sum(status.st_size for _, status in stored)
            for path, status in stored:
                if taken + num_bytes <= self.max_bytes:
                    break
                if remove_unused(path):
                    taken -= status.st_size
            yield

    def _stored(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Shards of all datasets below the root, and of no folder that a link leads to."""
        for folder in self.root.iterdir():
            if DATASET_NAME.match(folder.name) and not folder.is_symlink():
                for path in folder.iterdir():
                    with suppress(FileNotFoundError):  # another process may remove it now
                        if SHARD_NAME.match(path.name):
                            yield path, path.lstat()


def cache_root(cache: str | None) -> Path:
    """Where things lie that can be made again: `cache`, else `cdrl-cache-<user id>` in the temporary folder.

    Raises:
        StorageError: the latter is there and belongs to somebody else, who could change what lies in it.
    """
    if cache is not None:
        return Path(cache)
    root = Path(tempfile.gettempdir()) / f"cdrl-cache-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise StorageError(f"{root}: not a folder of this user; set data.cache to a folder of your own")
    return root
