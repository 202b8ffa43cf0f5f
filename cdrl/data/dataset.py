"""The reader: a split of a prepared dataset as one array, gathered from memory-mapped shards."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cdrl import storage
from cdrl.config import DataConfig
from cdrl.data import order
from cdrl.data.cache import ShardCache, cache_root
from cdrl.data.files import map_file
from cdrl.data.manifest import Manifest, Shard
from cdrl.data.shards import Rows, mapped_rows
from cdrl.data.shelf import Shelf
from cdrl.errors import DataError, StorageError

__all__ = ["Dataset", "cache_root"]

NUM_THREADS = 4  # that fetch and check shards
TELL_EVERY_S = 15.0

Tell = Callable[[str], None]
"""Called with one line now and then while shards are fetched and checked, which may take hours the first time."""


class Dataset:
    """One split: `len(dataset)` rows, read by row number. Open it with `Dataset.of` or `Dataset.open`.

    Attributes:
        manifest: what the dataset is.
        windows: what the order of a streamed split depends on; None if all its shards are at hand.
    """

    def __init__(self, manifest: Manifest, split: str, shards: "list[Rows] | Shelf", window: int | None = None) -> None:
        self.manifest = manifest
        rows = tuple(shard.rows for shard in manifest.splits[split].shards)  # type: ignore[index]
        self.windows = None if window is None else order.Windows(rows, window)
        self._shards = shards
        self._starts = np.cumsum([0, *rows])

    @classmethod
    def of(
        cls, data: DataConfig, split: str = "train", *, uri: str | None = None, tell: Tell | None = None
    ) -> "Dataset":
        """The split that a configuration names, or whatever lies at another `uri`, read in the same way; see `open`."""
        pin, window = data.digest if uri is None else None, data.window if data.stream else None
        place, room = uri or data.uri, data.cache_bytes
        return cls.open(place, split, data.cache, pin=pin, cache_bytes=room, window=window, tell=tell)

    @classmethod
    def open(
        cls,
        uri: str,
        split: str = "train",
        cache: str | None = None,
        *,
        pin: str | None = None,
        cache_bytes: int | None = None,
        window: int | None = None,
        tell: Tell | None = None,
    ) -> "Dataset":
        """Map the shards of a split, each after a check against the manifest's SHA-256, wherever it lies.

        Args:
            uri: a prepared dataset: a path, `file://` or `s3://`. Local shards are mapped where they lie.
            split: `train` or `holdout`.
            cache: folder for shards from S3, which are downloaded once; the processes of a machine may share it.
                Default: `cdrl-cache-<user id>` in the temporary folder.
            pin: beginning of the manifest's digest; None = whatever is there.
            cache_bytes: room for all shards in the cache; the least recently opened ones that nobody uses give way.
                None = no bound.
            window: stream: map shards when they are needed, and keep those of two windows of so many shards. Without
                a bound of the cache, a shard from S3 is removed from it when it is given up.
            tell: see `Tell`.

        Raises:
            DataError: no dataset, not the pinned one, no such rows, or a shard that is missing or does not match the
                manifest; while streaming, from where it is read.
            StorageError: S3 cannot be reached, or the cache has no room for what is at hand at a time.
        """
        manifest = Manifest.read(uri, pin)
        shards = manifest.splits[split].shards if split in manifest.splits else ()
        if not shards:
            raise DataError(f"{uri}: the split {split!r} has no rows; it has: {_rows(manifest)}")
        load, give_up = _local(uri, manifest), _nothing
        if not storage.is_local(uri):
            _check_room(uri, shards, cache_bytes, window)
            store = ShardCache(uri, manifest.digest, cache_root(cache), cache_bytes)
            load = _cached(store, manifest)
            give_up = store.remove if cache_bytes is None else _nothing
        if window is not None:
            shelf = Shelf(lambda number: load(shards[number]), lambda number: give_up(shards[number]), 2 * window)
            return cls(manifest, split, shelf, window)
        pool = ThreadPoolExecutor(NUM_THREADS)
        try:
            # with the patience of this thread
            opened = [pool.submit(copy_context().run, load, shard) for shard in shards]
            return cls(manifest, split, list(_told(uri, shards, opened, tell)))
        finally:
            pool.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def images(self, indices: ArrayLike) -> NDArray:
        """Rows by number, in the order asked for: (n, *shape), uint8 pixels 0 ... 255 or float32 coordinates.

        Raises:
            IndexError: a number outside 0 ... len - 1.
        """
        return self._gathered(indices, self.manifest.shape, self.manifest.dtype, lambda rows: rows.images)

    def labels(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Labels by row number: int64 (n,), 0 = none, c = `manifest.class_names[c - 1]`.

        Raises:
            IndexError: a number outside 0 ... len - 1.
        """
        return self._gathered(indices, (), "int32", lambda rows: rows.labels).astype(np.int64)

    def batch_indices(self, seed: int, step: int, batch_size: int) -> NDArray[np.int64]:
        """Row numbers of the global batch of a training step, int64 (batch_size,); see `cdrl.data.order`.

        Of a streamed split the shards for it and for what follows are fetched in the background.
        """
        if isinstance(self._shards, Shelf) and self.windows is not None:
            self._shards.expect(order.batch_shards(seed, step, batch_size, self.windows))
        return order.batch_indices(seed, step, batch_size, len(self), self.windows)

    def batch_flips(self, seed: int, step: int, batch_size: int) -> NDArray[np.bool_]:
        """Which images of `batch_indices` are mirrored, bool (batch_size,)."""
        return order.batch_flips(seed, step, batch_size, len(self), self.windows)

    def _gathered(
        self, indices: ArrayLike, shape: tuple[int, ...], dtype: str, column: Callable[[Rows], NDArray]
    ) -> NDArray:
        indices = np.asarray(indices, np.int64)
        if ((indices < 0) | (indices >= len(self))).any():
            raise IndexError(f"row numbers {indices.min()} ... {indices.max()} in a split of {len(self)} rows")
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        places = indices - self._starts[owner]
        # numpy copies a row of plain bytes as a whole, and goes over its values otherwise
        row = np.dtype((np.void, np.dtype(dtype).itemsize * math.prod(shape)))
        gathered = np.empty(len(indices), row)
        for number in np.unique(owner).tolist():
            here = np.flatnonzero(owner == number)
            rows = column(self._shards[number])
            gathered[here] = rows.reshape(len(rows), -1).view(row)[places[here], 0]
        return gathered.view(dtype).reshape(len(indices), *shape)


def _rows(manifest: Manifest) -> str:
    return ", ".join(f"{name} ({split.rows} rows)" for name, split in manifest.splits.items())


def _nothing(shard: Shard) -> None:
    pass


def _told(uri: str, shards: Sequence[Shard], opened: Sequence[Future[Rows]], tell: Tell | None) -> Iterator[Rows]:
    """The rows of all shards, in order."""
    spoke_s, num_bytes, total = time.monotonic(), 0, sum(shard.bytes for shard in shards)
    for shard, future in zip(shards, opened, strict=True):
        yield future.result()
        num_bytes += shard.bytes
        if tell is not None and time.monotonic() - spoke_s > TELL_EVERY_S:
            spoke_s = time.monotonic()
            tell(f"{uri}: {num_bytes / 1e6:,.0f} of {total / 1e6:,.0f} MB are here and checked")


def _local(uri: str, manifest: Manifest) -> Callable[[Shard], Rows]:
    def load(shard: Shard) -> Rows:
        path = storage.local_path(uri) / shard.name
        try:
            mapping = map_file(path, shard.bytes, shard.sha256)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error}") from None
        if mapping is None:
            raise DataError(f"{path}: {_mismatch(path, shard)}; prepare the data again with --overwrite")
        return _checked(mapped_rows(mapping, str(path), manifest.shape, manifest.dtype), path, shard, manifest)

    return load


def _mismatch(path: Path, shard: Shard) -> str:
    if not path.is_file():
        return "the shard is missing"
    expected = f"expected {shard.bytes} bytes of SHA-256 {shard.sha256[:12]}..."
    return f"the shard does not match the manifest: {expected}, got {path.stat().st_size} bytes"


def _cached(cache: ShardCache, manifest: Manifest) -> Callable[[Shard], Rows]:
    def load(shard: Shard) -> Rows:
        place = storage.join(cache.uri, shard.name)
        return _checked(mapped_rows(cache.open(shard), place, manifest.shape, manifest.dtype), place, shard, manifest)

    return load


def _checked(rows: Rows, place: Path | str, shard: Shard, manifest: Manifest) -> Rows:
    """A shard can be the one that the manifest means and still not hold what the manifest says."""
    if len(rows.labels) != shard.rows:
        raise DataError(f"{place}: expected {shard.rows} rows, got {len(rows.labels)}; prepare the data again")
    low, high, num_classes = rows.labels.min(), rows.labels.max(), len(manifest.class_names)
    if low < 0 or high > num_classes:
        raise DataError(f"{place}: expected labels 0 ... {num_classes}, got {low} ... {high}; prepare the data again")
    return rows


def _check_room(uri: str, shards: tuple[Shard, ...], cache_bytes: int | None, window: int | None) -> None:
    sizes = sorted((shard.bytes for shard in shards), reverse=True)
    needed = sum(sizes if window is None else sizes[: 2 * window])
    if cache_bytes is not None and needed > cache_bytes:
        advice = "set data.stream=true" if window is None else "take a smaller data.window"
        raise StorageError(
            f"{uri}: needs {needed} bytes of the cache at a time, data.cache_bytes allows {cache_bytes}; {advice} or "
            "allow more"
        )
