"""Parquet files of encoded images, read one small batch after the other, however large their row groups are."""

import glob
from collections.abc import Generator, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cdrl.data.rows import Example, Part, Request, Source, file_states, label_names, place_of
from cdrl.errors import DataError

__all__ = ["parquet"]

IMAGE_COLUMNS = ("img", "image", "img.bytes", "image.bytes")  # binary, or struct with the field `bytes`
LABEL_COLUMN = "label"
IMAGE_BATCH, LABEL_BATCH = 64, 65_536  # rows
BUFFER_BYTES = 2**20  # without it, the images of a whole row group are read at once


class _File(NamedTuple):
    path: Path
    column: str
    rows: int


class _Labels(NamedTuple):
    """Labels of a run of rows from row `first` of a file: `values[code]`, or none where the code is -1."""

    path: Path
    first: int
    values: list[Any]
    codes: NDArray[np.int32]


def parquet(request: Request) -> Source:
    """Parquet files with encoded images and, where the column exists, integer (from 0) or string labels."""
    if request.path is None:
        raise DataError("parquet: where is the data? give --path")
    paths = _paths(request.path)
    names = request.class_names
    try:
        schemas = [pq.read_schema(path).names for path in paths]
        labelled = all(LABEL_COLUMN in found for found in schemas)
        if not labelled and names:
            raise DataError(f"{paths[0]}: no column {LABEL_COLUMN!r}, but classes {', '.join(names[:5])} are expected")
        files = [
            _File(path, _image_column(path, found), pq.read_metadata(path).num_rows)
            for path, found in zip(paths, schemas, strict=True)
        ]
        coded = list(chain.from_iterable(map(_coded_labels, paths))) if labelled else []
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{paths[0].parent}: unreadable Parquet: {' '.join(str(error).split())}") from None
    total = sum(file.rows for file in files)
    if not total:
        raise DataError(f"{request.path}: the Parquet files have no rows")
    if names is None:
        names = label_names(chain.from_iterable(run.values for run in coded))
    labels = np.concatenate([_labels(run, names) for run in coded]) if coded else np.zeros(total, np.int32)
    return Source(labels, names, partial(_part, files), file_states("", map(str, paths)))


def _paths(path: str) -> list[Path]:
    root = Path(path)
    found = sorted(root.glob("*.parquet")) if root.is_dir() else sorted(map(Path, glob.glob(path)))
    if not found:
        raise DataError(f"{path}: no Parquet files here")
    halves = {half for half in ("train", "test") for file in found if file.name.startswith(half)}
    if len(halves) == 2:
        raise DataError(
            f"{path}: holds both train and test files; keep them apart: "
            f"--path '{root}/train-*.parquet' --holdout-path '{root}/test-*.parquet'"
        )
    return [file.absolute() for file in found]


def _image_column(path: Path, found: list[str]) -> str:
    for column in IMAGE_COLUMNS:
        if column in found:
            return column
    raise DataError(f"{path}: no image column; expected one of {', '.join(IMAGE_COLUMNS)}, got {', '.join(found)}")


def _coded_labels(path: Path) -> Iterator[_Labels]:
    first = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(LABEL_BATCH, columns=[LABEL_COLUMN]):
            column = batch.column(LABEL_COLUMN).dictionary_encode()
            codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
            yield _Labels(path, first, column.dictionary.to_pylist(), codes)
            first += len(batch)


def _labels(run: _Labels, names: tuple[str, ...]) -> NDArray[np.int32]:
    rows = {int(code): run.first + int(row) for code, row in zip(*np.unique(run.codes, return_index=True), strict=True)}
    known = [1 + place_of(value, names, f"{run.path} row {rows[code]}") for code, value in enumerate(run.values)]
    return np.array([*known, 0], np.int32)[run.codes]  # code -1: the last, no label


def _part(files: list[_File], start: int, stop: int) -> Part:
    spans: list[tuple[_File, int, int]] = []
    first = 0
    for file in files:
        if first < stop and start < first + file.rows:
            spans.append((file, max(start - first, 0), min(stop - first, file.rows)))
        first += file.rows
    return partial(_examples, spans)


def _examples(spans: list[tuple[_File, int, int]]) -> Generator[Example, None, None]:
    for file, start, stop in spans:
        try:
            yield from _rows(file, start, stop)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file.path}: unreadable Parquet: {' '.join(str(error).split())}") from None


def _rows(file: _File, start: int, stop: int) -> Generator[Example, None, None]:
    """Rows start ... stop-1 of a file. Row groups before are skipped; rows before, of the same group, are read over."""
    with pq.ParquetFile(file.path, buffer_size=BUFFER_BYTES, pre_buffer=False) as opened:
        sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
        ends = np.cumsum(sizes, dtype=np.int64)
        groups = [group for group, end in enumerate(ends) if end > start and end - sizes[group] < stop]
        if not groups:
            return  # it had more rows when it was opened
        row = int(ends[groups[0]]) - sizes[groups[0]]
        for batch in opened.iter_batches(IMAGE_BATCH, row_groups=groups, columns=[file.column]):
            low, high = max(start - row, 0), min(stop - row, len(batch))
            if low < high:
                for number, content in enumerate(batch.column(file.column).slice(low, high - low).to_pylist(), low):
                    encoded = content.get("bytes") if isinstance(content, dict) else content
                    yield Example(f"{file.path} row {row + number}", encoded)
            row += len(batch)
            if row >= stop:
                return
