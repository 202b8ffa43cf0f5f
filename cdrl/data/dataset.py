"""The reader: a split of a prepared dataset as one array, gathered from memory-mapped shards."""

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cdrl import storage
from cdrl.data.manifest import Manifest, Shard
from cdrl.data.shards import read_shard
from cdrl.errors import DataError

__all__ = ["Dataset", "cache_root"]


class Dataset:
    """One split: `len(dataset)` rows, read by row number. Open it with `Dataset.open`.

    Attributes:
        manifest: what the dataset is.
    """

    def __init__(self, manifest: Manifest, images: list[NDArray], labels: list[NDArray[np.int32]]) -> None:
        self.manifest = manifest
        self._images = images
        self._labels = np.concatenate(labels).astype(np.int64)
        self._starts = np.cumsum([0, *map(len, images)])

    @classmethod
    def open(cls, uri: str, split: str = "train", cache: str | None = None) -> "Dataset":
        """Map the shards of a split, after checking each against the manifest's SHA-256.

        Args:
            uri: a prepared dataset: a path, `file://` or `s3://`. Local shards are mapped where they lie.
            split: `train` or `holdout`.
            cache: folder for shards from S3, which are downloaded once; several processes may share it.
                Default: `cdrl-cache-<user id>/<manifest digest>` in the temporary folder.

        Raises:
            DataError: no dataset, no such rows, or a shard that is missing or does not match the manifest.
            StorageError: S3 cannot be reached.
        """
        manifest = Manifest.read(uri)
        shards = manifest.splits[split].shards if split in manifest.splits else ()
        if not shards:
            raise DataError(f"{uri}: the split {split!r} has no rows; it has: {_rows(manifest)}")
        if storage.is_local(uri):
            paths = [_local(storage.local_path(uri), shard) for shard in shards]
        else:
            paths = [_cached(uri, cache_root(cache) / manifest.digest, shard) for shard in shards]
        views = [read_shard(path, manifest.shape, manifest.dtype) for path in paths]
        return cls(manifest, [images for images, _ in views], [labels for _, labels in views])

    def __len__(self) -> int:
        return len(self._labels)

    def images(self, indices: ArrayLike) -> NDArray:
        """Rows by number, in the order asked for: (n, *shape), uint8 pixels 0 ... 255 or float32 coordinates.

        Raises:
            IndexError: a number outside 0 ... len - 1.
        """
        indices = np.asarray(indices, np.int64)
        if ((indices < 0) | (indices >= len(self))).any():
            raise IndexError(f"row numbers {indices.min()} ... {indices.max()} in a split of {len(self)} rows")
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        gathered = np.empty((len(indices), *self.manifest.shape), self.manifest.dtype)
        for shard in np.unique(owner):
            here = owner == shard
            gathered[here] = self._images[shard][indices[here] - self._starts[shard]]
        return gathered

    def labels(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Labels by row number: int64 (n,), 0 = none, c = `manifest.class_names[c - 1]`."""
        return self._labels[np.asarray(indices, np.int64)]


def _rows(manifest: Manifest) -> str:
    return ", ".join(f"{name} ({split.rows} rows)" for name, split in manifest.splits.items())


def _local(folder: Path, shard: Shard) -> Path:
    path = folder / shard.name
    if not path.is_file():
        raise DataError(f"{path}: the shard is missing; prepare the data again with --overwrite")
    if not _matches(path, shard):
        raise DataError(
            f"{path}: the shard does not match the manifest: expected {shard.bytes} bytes of SHA-256 "
            f"{shard.sha256[:12]}..., got {path.stat().st_size} bytes; prepare the data again with --overwrite"
        )
    return path


def _cached(uri: str, folder: Path, shard: Shard) -> Path:
    path = folder / shard.name
    if not (path.is_file() and _matches(path, shard)):
        storage.download(storage.join(uri, shard.name), path, sha256=shard.sha256)
    return path


def cache_root(cache: str | None) -> Path:
    """Where things lie that can be made again: `cache`, else `cdrl-cache-<user id>` in the temporary folder."""
    if cache is not None:
        return Path(cache)
    root = Path(tempfile.gettempdir()) / f"cdrl-cache-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    return root


def _matches(path: Path, shard: Shard) -> bool:
    return path.stat().st_size == shard.bytes and storage.sha256_file(path) == shard.sha256
