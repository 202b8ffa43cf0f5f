"""From a source to shards and a manifest at a URI."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cdrl import storage
from cdrl.data import images, manifest, order, sources
from cdrl.data.manifest import Manifest, Shard, Split
from cdrl.data.points import LAWS
from cdrl.data.shards import write_shard
from cdrl.errors import DataError, StorageError

__all__ = ["Options", "Progress", "prepare", "prepared"]

Progress = Callable[[int, int], None]
"""Called with (rows read, rows expected) while a source is read."""

DEFAULT_HOLDOUT = {"digits": 500.0}  # the split on which the demonstration's figures were measured
OTHER_HOLDOUT = 0.1
SHARD_BYTES = 64 * 2**20  # also the scale of the memory that prepare needs
HALVED = (*LAWS, "torchvision")  # sources that bring a hold-out of their own


class Options(BaseModel):
    """How a source becomes a dataset. Together with the source's name this is the dataset's recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(None, description="file, folder or glob of the source")
    holdout_path: str | None = Field(None, description="the same for the hold-out split")
    holdout: float | None = Field(None, ge=0, description="rows held out: a fraction below 1, or a number of rows")
    size: int | None = Field(None, ge=1, description="side of the square images, in pixels; default: as they are")
    crop: bool = Field(True, description="scale the shorter side and cut the centre out; otherwise squeeze both sides")
    grayscale: bool | None = Field(None, description="true: one channel; false: three; default: as the images are")
    class_names: tuple[str, ...] | None = Field(None, description="classes in order; default: what the source holds")
    limit: int | None = Field(None, ge=1, description="read at most this many rows of each path")
    shard_rows: int | None = Field(None, ge=1, description="rows of one shard; default: what fits into 64 MiB")
    seed: int = Field(0, ge=0, description="decides hold-out rows and the order inside the shards")


def prepared(source: str, uri: str, options: Options) -> Manifest | None:
    """The manifest at `uri` if this very recipe was prepared there; None if there is no dataset.

    Raises:
        DataError: another dataset is there, or a damaged manifest.
        StorageError: the place cannot be reached.
    """
    if not storage.exists(storage.join(uri, manifest.FILE_NAME)):
        return None
    found = Manifest.read(uri)
    wanted = {"source": source, **options.model_dump(mode="json")}
    there = {"source": found.source, **found.options}
    if wanted != there:
        changed = [f"{key} {there.get(key)!r} -> {wanted[key]!r}" for key in wanted if wanted[key] != there.get(key)]
        raise DataError(f"{uri}: another dataset is here ({', '.join(changed)}); choose another place or --overwrite")
    return found


def prepare(
    source: str,
    uri: str,
    options: Options = Options(),  # noqa: B008 (frozen)
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Turn a source into shards and a manifest at `uri`; the very same recipe is not prepared twice.

    The source is read once into a temporary file, as decoded rows; from there the splits are dealt to shards in a
    seeded random order. So memory stays bounded, and the temporary folder needs room for the decoded set. The manifest
    is written last, and a failure removes what was written.

    Args:
        source: `digits`, `checkerboard`, `gaussians`, `folder`, `parquet` or `torchvision:NAME`.
        uri: a path, `file://` or `s3://`.
        overwrite: replace any dataset at `uri`, which stays readable until the new manifest stands.

    Raises:
        DataError: an empty or unreadable source, mixed shapes, an unknown label, or another dataset at `uri`.
        StorageError: the place cannot be reached or written.
    """
    if not overwrite and (found := prepared(source, uri, options)):
        return found
    if options.holdout is not None and options.holdout_path is not None:
        raise DataError("--holdout and --holdout-path contradict each other; give one")
    names = options.class_names or ()
    if len(set(names)) < len(names) or "" in names:
        raise DataError(f"--class-names {','.join(names)}: expected names that differ, none empty")
    before = set(storage.listing(uri))
    with tempfile.TemporaryDirectory(prefix="cdrl-prepare-") as name:
        folder = Path(name)
        rows, class_names = _read(source, options, folder / "train.rows", True, progress)
        if options.holdout_path or (options.holdout is None and source.partition(":")[0] in HALVED):
            path = options.holdout_path or options.path
            other = options.model_copy(update={"path": path, "class_names": class_names})
            held_rows, _ = _read(source, other, folder / "holdout.rows", False, progress)
            if held_rows.images.shape[1:] != rows.images.shape[1:]:
                shapes = f"{rows.images.shape[1:]} and {held_rows.images.shape[1:]}"
                raise DataError(f"{source}: train and hold-out have the shapes {shapes}; give --size or --grayscale")
            kept, held = np.arange(len(rows.labels)), np.arange(len(held_rows.labels))
        else:
            held_rows = rows
            kept, held = _split(rows.labels, options, source)
        with _removing_on_failure(uri, before) as written:
            train, mean, std = _write("train", rows, kept, uri, folder, options, len(class_names), written)
            holdout, _, _ = _write("holdout", held_rows, held, uri, folder, options, len(class_names), written)
            made = Manifest(
                source=source,
                options=options.model_dump(mode="json"),
                shape=rows.images.shape[1:],
                dtype=rows.images.dtype.name,
                class_names=class_names,
                splits={"train": train, "holdout": holdout},
                mean=mean,
                std=std,
            )
            made.write(uri)
    for name in before - set(written):
        if manifest.SHARD_NAME.fullmatch(name):  # of the dataset that was replaced, or of a prepare that was killed
            storage.remove(storage.join(uri, name))
    return made


class _Rows(NamedTuple):
    """A source, decoded: images (n, *shape) on disk and labels (n,), 0 = none, 1 ... C = class."""

    images: NDArray
    labels: NDArray[np.int32]


def _read(
    source: str, options: Options, place: Path, train: bool, progress: Progress | None
) -> tuple[_Rows, tuple[str, ...]]:
    """Decode a source into the file `place`, and map it."""
    opened = sources.open_source(
        source, options.path, class_names=options.class_names, seed=options.seed, train=train
    )
    total = min(opened.total, options.limit or opened.total)
    labels: list[int] = []
    first: tuple[str, NDArray] | None = None
    with open(place, "wb") as file:
        for example in islice(opened.examples, total):
            row = _row(example, options)
            if first is None:
                first = example.where, row
            elif row.shape != first[1].shape:
                raise DataError(
                    f"mixed shapes: {first[0]} is {_times(first[1])}, {example.where} is {_times(row)}; "
                    "give --size, and --grayscale or --rgb if the channels differ"
                )
            file.write(row.tobytes())
            labels.append(0 if example.label is None else example.label + 1)
            if progress:
                progress(len(labels), total)
    assert first is not None, "open_source refuses an empty source"
    images = np.memmap(place, first[1].dtype, "r", shape=(len(labels), *first[1].shape))
    return _Rows(images, np.array(labels, np.int32)), opened.class_names


def _row(example: sources.Example, options: Options) -> NDArray:
    if isinstance(example.content, np.ndarray):
        if options.size is not None or options.grayscale is not None:
            raise DataError(f"{example.where}: a point has no pixels; leave --size, --grayscale and --rgb out")
        return example.content
    return images.pixels(
        example.content, example.where, size=options.size, crop=options.crop, grayscale=options.grayscale
    )


def _times(row: NDArray) -> str:
    return "x".join(map(str, row.shape))


def _split(labels: NDArray[np.int32], options: Options, source: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers kept for training and held out; in proportion to the classes where labels exist."""
    from sklearn.model_selection import train_test_split

    holdout = DEFAULT_HOLDOUT.get(source, OTHER_HOLDOUT) if options.holdout is None else options.holdout
    everything = np.arange(len(labels))
    if holdout == 0:
        return everything, everything[:0]
    if holdout >= 1 and holdout != int(holdout):
        raise DataError(f"--holdout {holdout}: expected a fraction below 1 or a whole number of rows")
    classes = labels if labels.any() else None
    size = int(holdout) if holdout >= 1 else holdout
    try:
        kept, held = train_test_split(everything, test_size=size, stratify=classes, random_state=options.seed)
    except ValueError as error:  # too few rows, or too few of a class
        raise DataError(f"cannot hold out {holdout:g} of {len(labels)} rows: {error}; change --holdout") from None
    return np.sort(kept), np.sort(held)


def _write(
    split: Literal["train", "holdout"],
    rows: _Rows,
    chosen: NDArray[np.int64],
    uri: str,
    folder: Path,
    options: Options,
    num_classes: int,
    written: list[str],
) -> tuple[Split, tuple[float, ...], tuple[float, ...]]:
    """Write the chosen rows in a seeded random order as shards; mean and std are per channel."""
    chosen = chosen[order.permutation(options.seed, 0, len(chosen))]
    shards: list[Shard] = []
    total, squares = np.zeros((2, rows.images.shape[1]))
    shard_rows = options.shard_rows or max(1, SHARD_BYTES // rows.images[0].nbytes)
    for start in range(0, len(chosen), shard_rows):
        part = chosen[start : start + shard_rows]
        batch = rows.images[part]
        aside = folder / "shard.arrow"
        write_shard(aside, batch, rows.labels[part])
        sha256 = storage.sha256_file(aside)
        # the digest in the name keeps a replaced dataset readable until the new manifest stands
        name = f"{split}-{len(shards):05d}-{sha256[:12]}.arrow"
        written.append(name)
        storage.upload(aside, storage.join(uri, name))
        shards.append(Shard(name=name, rows=len(part), bytes=aside.stat().st_size, sha256=sha256))
        for few in np.array_split(batch, -(-len(batch) // 256)):  # float64 takes eight times the memory
            channels = np.moveaxis(few, 1, 0).reshape(len(total), -1).astype(np.float64)
            total += channels.sum(axis=1)
            squares += (channels**2).sum(axis=1)
    counts = np.bincount(rows.labels[chosen], minlength=num_classes + 1)
    values = max(1, len(chosen)) * int(np.prod(rows.images.shape[2:]))
    mean = total / values
    std = np.sqrt(np.maximum(squares / values - mean**2, 0))
    made = Split(rows=len(chosen), label_counts=tuple(counts.tolist()), shards=tuple(shards))
    return made, tuple(mean.tolist()), tuple(std.tolist())


@contextmanager
def _removing_on_failure(uri: str, before: set[str]) -> Iterator[list[str]]:
    """Collect names of files; if the block fails, remove those that were not there before it."""
    written: list[str] = []
    try:
        yield written
    except BaseException:
        for name in set(written) - before:
            with suppress(StorageError):  # the place is out of reach: the first error says so
                storage.remove(storage.join(uri, name))
        raise
