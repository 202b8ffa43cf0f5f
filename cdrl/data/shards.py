"""Shards: Arrow IPC files of rows, written once, memory-mapped for reading without a copy."""

import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cdrl.errors import DataError

__all__ = ["Rows", "mapped_rows", "read_shard", "write_shard"]


class Rows(NamedTuple):
    """Read-only views of a mapped shard: images (n, *shape) and labels int32 (n,); pages are loaded when touched."""

    images: NDArray
    labels: NDArray[np.int32]


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


def read_shard(path: Path, shape: tuple[int, ...], dtype: str) -> Rows:
    """Map a shard.

    Raises:
        DataError: no Arrow file, or rows of another shape or dtype.
    """
    try:
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise DataError(f"{path}: not a shard: {error}") from None
    return mapped_rows(mapping, str(path), shape, dtype)


def mapped_rows(mapping: mmap.mmap, place: str, shape: tuple[int, ...], dtype: str) -> Rows:
    """The rows of a shard that is mapped already; they keep the mapping alive.

    Raises:
        DataError: no Arrow file, or rows of another shape or dtype, named by `place`.
    """
    try:
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapping)))
        if reader.num_record_batches != 1 or reader.schema.names != ["image", "label"]:
            found = f"{reader.num_record_batches} of {reader.schema.names}"
            raise DataError(f"{place}: expected 1 record batch of ['image', 'label'], got {found}")
        batch = reader.get_batch(0)
        batch.validate()  # that no length goes beyond the bytes that are there
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{place}: not a shard: {' '.join(str(error).split())}") from None
    images, labels = batch.column("image"), batch.column("label")
    expected = pa.fixed_shape_tensor(pa.type_for_alias(dtype), shape)
    if images.type != expected or labels.type != pa.int32():
        raise DataError(f"{place}: expected image {expected} and label int32, got {images.type} and {labels.type}")
    pixels = images.storage.flatten()
    if images.null_count or labels.null_count or pixels.null_count or len(pixels) != len(images) * int(np.prod(shape)):
        raise DataError(f"{place}: expected rows without gaps, got some that are null")
    arrays = [column.to_numpy(zero_copy_only=True) for column in (pixels, labels)]
    return Rows(arrays[0].reshape(len(images), *shape), arrays[1])
