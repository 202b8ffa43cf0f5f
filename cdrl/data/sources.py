"""Where data comes from. Each source yields examples one by one, so that a set larger than memory passes through."""

import glob
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdrl.data import images, order
from cdrl.data.points import LAWS
from cdrl.errors import DataError

__all__ = ["Example", "SOURCES", "Source", "open_source"]


class Example(NamedTuple):
    """One row of a source.

    Attributes:
        where: names the row in errors, such as a file.
        content: an image, or a float32 point (dims,).
        label: place of its class in the source's `class_names`, from 0; None = no label.
    """

    where: str
    content: Image.Image | NDArray[np.float32]
    label: int | None


@dataclass(frozen=True)
class Source:
    """Examples, to be walked through once, with the names of their classes (none if unlabelled) and their number."""

    examples: Iterable[Example]
    class_names: tuple[str, ...]
    total: int


@dataclass(frozen=True)
class Request:
    """What a source is asked for: the NAME of `torchvision:NAME`, and the arguments of `open_source`."""

    variant: str
    path: str | None
    class_names: tuple[str, ...] | None
    seed: int
    train: bool


def open_source(
    name: str, path: str | None = None, *, class_names: tuple[str, ...] | None = None, seed: int = 0, train: bool = True
) -> Source:
    """Find a source by name: `digits`, `checkerboard`, `gaussians`, `folder`, `parquet` or `torchvision:NAME`.

    Args:
        path: file, folder or glob of `folder` and `parquet`; root folder of `torchvision`.
        class_names: names to go by, in this order; default: what the source knows or holds.
        seed: of the order of `folder` and of the points of `checkerboard` and `gaussians`.
        train: the training or the test half, of sources that have both.

    Raises:
        DataError: unknown, missing or empty source. Walking through the examples may raise it too.
    """
    kind, _, variant = name.partition(":")
    if kind not in SOURCES or bool(variant) != (kind == "torchvision"):
        known = ", ".join("torchvision:NAME" if known == "torchvision" else known for known in SOURCES)
        raise DataError(f"unknown source {name!r}; expected one of: {known}")
    return SOURCES[kind](Request(variant, path, class_names, seed, train))


def _digits(request: Request) -> Source:
    """1797 handwritten digits of 8x8 pixels that ship with scikit-learn, values 0 ... 16 stretched to 0 ... 255."""
    from sklearn.datasets import load_digits

    _no_choice("digits", request)
    bunch = load_digits()
    stretched = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    rows = (
        Example(f"digit {row}", Image.fromarray(digit), int(label))
        for row, (digit, label) in enumerate(zip(stretched, bunch.target, strict=True))
    )
    return Source(rows, tuple(str(name) for name in bunch.target_names), len(stretched))


NUM_POINTS = 50_000


def _points(name: str, request: Request) -> Source:
    """Points of a known law in the plane; as many again to hold out."""
    _no_choice(name, request)
    points = LAWS[name].draw(NUM_POINTS, np.random.default_rng([request.seed, 0 if request.train else 1]))
    return Source((Example(f"point {row}", point, None) for row, point in enumerate(points)), (), NUM_POINTS)


def _folder(request: Request) -> Source:
    """A folder of class folders of images, or of images without classes."""
    root = Path(_path("folder", request))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in images.SUFFIXES and path.is_file())
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    if not files:
        raise DataError(f"{root}: no images; expected files such as .png or .jpg, best in one folder per class")
    classes = [path.relative_to(root).parts[0] if path.parent != root else None for path in files]
    loose = [path for path, name in zip(files, classes, strict=True) if name is None]
    if loose and len(loose) < len(files):
        raise DataError(f"{root}: images both in class folders and outside ({loose[0].name}); move the loose ones")
    found = () if loose else tuple(sorted({name for name in classes if name is not None}))
    if loose and request.class_names:
        raise DataError(f"{root}: no class folders, but classes {', '.join(request.class_names[:5])} are expected")
    names = found if request.class_names is None else request.class_names
    pairs = zip(files, classes, strict=True)
    labels = [None if name is None else _place(name, names, str(path)) for path, name in pairs]

    def examples() -> Iterator[Example]:
        # shuffled, so that the first few rows hold every class
        for row in order.permutation(request.seed, 0, len(files)):
            yield Example(str(files[row]), images.decode(files[row], str(files[row])), labels[row])

    return Source(examples(), names, len(files))


IMAGE_COLUMNS = ("img", "image", "img.bytes", "image.bytes")  # binary, or struct with the field `bytes`
LABEL_COLUMN = "label"


def _parquet(request: Request) -> Source:
    """Parquet files with encoded images and, where the column exists, integer (from 0) or string labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = _parquet_files(_path("parquet", request))
    try:
        tables = [pq.ParquetFile(path) for path in files]
        labelled = all(LABEL_COLUMN in table.schema_arrow.names for table in tables)
        names = request.class_names
        if not labelled and names:
            raise DataError(f"{files[0]}: no column {LABEL_COLUMN!r}, but classes {', '.join(names[:5])} are expected")
        if names is None and labelled:
            names = _label_names(value for table in tables for value in table.read([LABEL_COLUMN])[0].to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{files[0].parent}: unreadable Parquet: {' '.join(str(error).split())}") from None
    total = sum(table.metadata.num_rows for table in tables)
    if not total:
        raise DataError(f"{request.path}: the Parquet files have no rows")

    def examples() -> Iterator[Example]:
        for path, table in zip(files, tables, strict=True):
            column = next((name for name in IMAGE_COLUMNS if name in table.schema_arrow.names), None)
            if column is None:
                found = ", ".join(table.schema_arrow.names)
                raise DataError(f"{path}: no image column; expected one of {', '.join(IMAGE_COLUMNS)}, got {found}")
            row = 0
            for batch in table.iter_batches(256, columns=[column, LABEL_COLUMN] if labelled else [column]):
                contents = batch.column(column).to_pylist()
                values = batch.column(LABEL_COLUMN).to_pylist() if labelled else [None] * len(contents)
                for content, value in zip(contents, values, strict=True):
                    where = f"{path} row {row}"
                    encoded = content.get("bytes") if isinstance(content, dict) else content
                    if not isinstance(encoded, bytes):
                        got = type(encoded).__name__
                        raise DataError(f"{where}: expected the bytes of an image in {column}, got {got}")
                    label = None if value is None else _place(value, names or (), where)
                    yield Example(where, images.decode(encoded, where), label)
                    row += 1

    return Source(examples(), names or (), total)


def _parquet_files(path: str) -> list[Path]:
    root = Path(path)
    files = sorted(root.glob("*.parquet")) if root.is_dir() else sorted(map(Path, glob.glob(path)))
    if not files:
        raise DataError(f"{path}: no Parquet files here")
    halves = {half for half in ("train", "test") for file in files if file.name.startswith(half)}
    if len(halves) == 2:
        raise DataError(
            f"{path}: holds both train and test files; keep them apart: "
            f"--path '{root}/train-*.parquet' --holdout-path '{root}/test-*.parquet'"
        )
    return files


def _torchvision(request: Request) -> Source:
    """A classification set of torchvision with a training and a test half; downloaded where the net allows."""
    import inspect

    import torchvision

    variant = request.variant
    constructor: Any = getattr(torchvision.datasets, variant, None)
    parameters = inspect.signature(constructor).parameters if isinstance(constructor, type) else {}
    half: dict[str, Any] = {"train": request.train} if "train" in parameters else {}
    if "split" in parameters and not half:
        half = {"split": "train" if request.train else "test"}
    if not half or "download" not in parameters:
        raise DataError(f"torchvision:{variant}: expected a downloadable set with train and test halves, such as MNIST")
    root = Path(request.path) if request.path else Path.home() / ".cache" / "cdrl" / "torchvision"
    try:
        dataset = constructor(root=str(root), download=True, **half)
    except Exception as error:  # torchvision raises whatever its many downloaders and readers do
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"torchvision:{variant}: not under {root} and not to be downloaded: {reason}") from None
    known = getattr(dataset, "classes", None) or _label_names(int(label) for _, label in dataset)
    names = request.class_names or tuple(str(name) for name in known)

    def examples() -> Iterator[Example]:
        for row in range(len(dataset)):
            where = f"torchvision:{variant} row {row}"
            image, label = dataset[row]
            yield Example(where, image, _place(int(label), names, where))

    return Source(examples(), names, len(dataset))


SOURCES: dict[str, Callable[[Request], Source]] = {
    "digits": _digits,
    **{name: partial(_points, name) for name in LAWS},
    "folder": _folder,
    "parquet": _parquet,
    "torchvision": _torchvision,
}


def _no_choice(name: str, request: Request) -> None:
    if request.path is not None or request.class_names:
        raise DataError(f"{name}: brings its own data; leave --path, --holdout-path and --class-names out")


def _path(name: str, request: Request) -> str:
    if request.path is None:
        raise DataError(f"{name}: where is the data? give --path")
    return request.path


def _label_names(values: Iterable[Any]) -> tuple[str, ...]:
    """Names for labels as found: strings sorted, or the integers 0 ... largest."""
    found = {value for value in values if value is not None}
    if all(isinstance(value, int) for value in found):
        return tuple(str(label) for label in range(max(found, default=-1) + 1))
    return tuple(sorted(str(value) for value in found))


def _place(value: Any, names: tuple[str, ...], where: str) -> int:
    """Place of a label among the class names: itself if it is an integer, looked up if it is a string."""
    if isinstance(value, int) and 0 <= value < len(names):
        return value
    if isinstance(value, str) and value in names:
        return names.index(value)
    few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise DataError(f"{where}: unknown label {value!r}; expected one of {len(names)} classes: {few}")
