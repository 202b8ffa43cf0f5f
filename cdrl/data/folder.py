"""A folder of class folders of images, or of images without classes. Names are kept as short strings: many fit."""

import os
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cdrl.data import images, order
from cdrl.data.rows import Example, Part, Request, Source, file_states, place_of
from cdrl.errors import DataError

__all__ = ["folder"]


def folder(request: Request) -> Source:
    """Images below a folder, of any depth; the first folder on the way to an image is its class."""
    if request.path is None:
        raise DataError("folder: where is the data? give --path")
    root = os.path.abspath(request.path)
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder")
    # as paths are sorted: folder by folder
    files = sorted(_found(root), key=lambda file: file.replace(os.sep, "\0"))
    if not files:
        raise DataError(f"{root}: no images; expected files such as .png or .jpg, best in one folder per class")
    classes = [file.partition(os.sep)[0] if os.sep in file else None for file in files]
    loose = [file for file, name in zip(files, classes, strict=True) if name is None]
    if loose and len(loose) < len(files):
        raise DataError(f"{root}: images both in class folders and outside ({loose[0]}); move the loose ones")
    found = () if loose else tuple(sorted({name for name in classes if name is not None}))
    if loose and request.class_names:
        raise DataError(f"{root}: no class folders, but classes {', '.join(request.class_names[:5])} are expected")
    names = found if request.class_names is None else request.class_names
    pairs = zip(files, classes, strict=True)
    labels = [0 if name is None else 1 + place_of(name, names, os.path.join(root, file)) for file, name in pairs]
    state = file_states(root, files)
    # shuffled, so that the first few rows hold every class
    shuffled = order.permutation(request.seed, 0, len(files))
    part = partial(_part, root, [files[row] for row in shuffled])
    return Source(np.array(labels, np.int32)[shuffled], names, part, state)


def _found(root: str) -> Iterator[str]:
    """Images below the folder, relative to it; hidden files and folders are passed over."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{root}: cannot be listed: {error}")

    for place, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = os.path.join(place, name)
            if not name.startswith(".") and Path(name).suffix.lower() in images.SUFFIXES and os.path.isfile(path):
                yield os.path.relpath(path, root)


def _part(root: str, files: list[str], start: int, stop: int) -> Part:
    return partial(_rows, root, files[start:stop])


def _rows(root: str, files: list[str]) -> Generator[Example, None, None]:
    for file in files:
        path = os.path.join(root, file)
        # a name that is not UTF-8 can be opened, but not written to a manifest
        yield Example(path.encode(errors="backslashreplace").decode(), Path(path))
