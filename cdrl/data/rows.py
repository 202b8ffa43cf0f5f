"""What a source is: labels that are known at once, and rows that any process can read, a part at a time."""

import hashlib
import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdrl.errors import DataError

__all__ = ["Example", "Part", "Request", "Source", "file_states", "label_names", "place_of"]


class Example(NamedTuple):
    """One row of a source, as it lies there.

    Attributes:
        where: names the row in errors, such as a file.
        content: an encoded image (a file or the bytes of one), an image, a float32 point (dims,), or whatever else
            stands in a row that is damaged.
    """

    where: str
    content: Path | bytes | Image.Image | NDArray[np.float32] | object


Part = Callable[[], Generator[Example, None, None]]
"""Reads a run of rows in order; it can be sent to another process."""


@dataclass(frozen=True)
class Source:
    """Rows and what is known of them before any is read.

    Attributes:
        labels: (n,) 0 = none, c = class `class_names[c - 1]`.
        class_names: none if the rows have no labels.
        part: rows start ... stop-1.
        state: changes when the files that hold the rows change.
    """

    labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    part: Callable[[int, int], Part]
    state: str = ""


@dataclass(frozen=True)
class Request:
    """What a source is asked for: the NAME of `torchvision:NAME`, and the arguments of `open_source`."""

    variant: str
    path: str | None
    class_names: tuple[str, ...] | None
    seed: int
    train: bool


def file_states(root: str, files: Iterable[str]) -> str:
    """SHA-256 (hex) of names, sizes and times of change of files below a folder."""
    digest = hashlib.sha256()
    for file in files:
        found = os.stat(os.path.join(root, file))
        digest.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def label_names(values: Iterable[Any]) -> tuple[str, ...]:
    """Names for labels as found: strings sorted, or the integers 0 ... largest."""
    found = {value for value in values if value is not None}
    if all(isinstance(value, int) for value in found):
        return tuple(str(label) for label in range(max(found, default=-1) + 1))
    return tuple(sorted(str(value) for value in found))


def place_of(value: Any, names: tuple[str, ...], where: str) -> int:
    """Place of a label among the class names: itself if it is an integer, looked up if it is a string.

    Raises:
        DataError: naming `where`, if it is none of them.
    """
    if isinstance(value, int) and 0 <= value < len(names):
        return value
    if isinstance(value, str) and value in names:
        return names.index(value)
    few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise DataError(f"{where}: unknown label {value!r}; expected one of {len(names)} classes: {few}")
