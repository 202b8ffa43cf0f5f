"""Shards: Arrow IPC files of rows, written once, memory-mapped for reading without a copy."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cdrl.errors import DataError

__all__ = ["read_shard", "write_shard"]


def write_shard(path: Path, rows: NDArray, labels: NDArray[np.int32]) -> None:
    """Write rows (n, *shape) and labels (n,) as one uncompressed record batch.

    One batch makes the mapped column one array. Uncompressed, because decoded pixels hardly shrink and a mapped array
    needs no copy.
    """
    columns = {
        "image": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(rows)),
        "label": pa.array(labels, pa.int32()),
    }
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def read_shard(path: Path, shape: tuple[int, ...], dtype: str) -> tuple[NDArray, NDArray[np.int32]]:
    """Read-only views (n, *shape) and (n,) of a mapped shard; pages are loaded when touched.

    Raises:
        DataError: no Arrow file, or rows of another shape or dtype.
    """
    try:
        # the arrays keep the mapping alive
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        images, labels = batch.column("image"), batch.column("label")
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise DataError(f"{path}: not a shard: {' '.join(str(error).split())}") from None
    expected = pa.fixed_shape_tensor(pa.type_for_alias(dtype), shape)
    if images.type != expected or labels.type != pa.int32():
        raise DataError(f"{path}: expected image {expected} and label int32, got {images.type} and {labels.type}")
    pixels = images.storage.flatten().to_numpy(zero_copy_only=True)
    return pixels.reshape(len(images), *shape), labels.to_numpy(zero_copy_only=True)
