"""Where data comes from: each source tells its labels at once and hands out its rows in parts."""

import os
from collections.abc import Callable, Generator, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdrl.data.folder import folder
from cdrl.data.parquet import parquet
from cdrl.data.points import LAWS
from cdrl.data.rows import Example, Request, Source, label_names, place_of
from cdrl.errors import DataError

__all__ = ["SOURCES", "open_source"]


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
        DataError: unknown, missing or empty source, or a label that is none of `class_names`.
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
    labels = 1 + np.asarray(bunch.target, np.int32)
    return Source(labels, tuple(str(name) for name in bunch.target_names), partial(partial, _digit_rows))


def _digit_rows(start: int, stop: int) -> Generator[Example, None, None]:
    from sklearn.datasets import load_digits

    stretched = np.rint(load_digits().images[start:stop] * (255 / 16)).astype(np.uint8)
    for row, digit in enumerate(stretched, start):
        yield Example(f"digit {row}", Image.fromarray(digit))


NUM_POINTS = 50_000


def _points(name: str, request: Request) -> Source:
    """Points of a known law in the plane; as many again to hold out."""
    _no_choice(name, request)
    seed = (request.seed, 0 if request.train else 1)
    return Source(np.zeros(NUM_POINTS, np.int32), (), partial(partial, _point_rows, name, seed))


def _point_rows(name: str, seed: tuple[int, int], start: int, stop: int) -> Generator[Example, None, None]:
    points = LAWS[name].draw(NUM_POINTS, np.random.default_rng(seed))
    for row in range(start, stop):
        yield Example(f"point {row}", points[row])


def _torchvision(request: Request) -> Source:
    """A classification set of torchvision with a training and a test half; downloaded where the net allows."""
    root = Path(os.path.abspath(request.path)) if request.path else Path.home() / ".cache" / "cdrl" / "torchvision"
    dataset = _torchvision_set(request.variant, str(root), request.train)
    # most sets know their labels; of the others every row has to be read
    attribute = next((name for name in ("targets", "labels", "_labels") if hasattr(dataset, name)), None)
    known_labels = (label for _, label in dataset) if attribute is None else getattr(dataset, attribute)
    numbers = [int(label) for label in known_labels]
    known = getattr(dataset, "classes", None) or label_names(numbers)
    names = request.class_names or tuple(str(name) for name in known)
    where = f"torchvision:{request.variant} row"
    labels = [1 + place_of(number, names, f"{where} {row}") for row, number in enumerate(numbers)]
    part = partial(partial, _torchvision_rows, request.variant, str(root), request.train)
    return Source(np.array(labels, np.int32), names, part)


@lru_cache(maxsize=2)  # both halves
def _torchvision_set(variant: str, root: str, train: bool) -> Any:
    import inspect

    import torchvision

    constructor: Any = getattr(torchvision.datasets, variant, None)
    parameters: Iterable[str] = inspect.signature(constructor).parameters if isinstance(constructor, type) else ()
    half: dict[str, Any] = {"train": train} if "train" in parameters else {}
    if "split" in parameters and not half:
        half = {"split": "train" if train else "test"}
    if not half or "download" not in parameters:
        raise DataError(f"torchvision:{variant}: expected a downloadable set with train and test halves, such as MNIST")
    try:
        return constructor(root=root, download=True, **half)
    except Exception as error:  # torchvision raises whatever its many downloaders and readers do
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"torchvision:{variant}: not under {root} and not to be downloaded: {reason}") from None


def _torchvision_rows(variant: str, root: str, train: bool, start: int, stop: int) -> Generator[Example, None, None]:
    dataset = _torchvision_set(variant, root, train)
    for row in range(start, stop):
        image, _ = dataset[row]
        yield Example(f"torchvision:{variant} row {row}", image)


SOURCES: dict[str, Callable[[Request], Source]] = {
    "digits": _digits,
    **{name: partial(_points, name) for name in LAWS},
    "folder": folder,
    "parquet": parquet,
    "torchvision": _torchvision,
}


def _no_choice(name: str, request: Request) -> None:
    if request.path is not None or request.class_names:
        raise DataError(f"{name}: brings its own data; leave --path, --holdout-path and --class-names out")
