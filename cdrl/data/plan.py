"""The plan of a dataset: which row goes where, decided from labels and a seed before any row is decoded.

    places   train rows in order, then held-out rows in order: 0 ... n-1
    shards   runs of places

So the dataset is the same for any number of workers, and a prepare that was killed finds its place again.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cdrl.data import order
from cdrl.errors import DataError

__all__ = ["Piece", "Plan", "make_plan", "split_rows", "stratified"]

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """The places start ... stop-1, which become shard `number` of a split."""

    split: Literal["train", "holdout"]
    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """Where rows go.

    Attributes:
        places: (n,) the place of each row of the source.
        pieces: the shards, in order of their places.
    """

    places: Rows
    pieces: tuple[Piece, ...]

    def cuts(self, places: Rows) -> Rows:
        """(pieces+1,) Of ascending places, those from cuts[k] to cuts[k+1] belong to piece k."""
        return np.searchsorted(places, [piece.start for piece in self.pieces] + [len(self.places)])


def make_plan(labels: NDArray[np.int32], kept: Rows, held: Rows, *, seed: int, shard_rows: int) -> Plan:
    """Deal the rows `kept` for training and the rows `held` out, all rows together, to shards of `shard_rows` rows."""
    pieces: list[Piece] = []
    halves: tuple[tuple[Literal["train", "holdout"], int, int], ...] = (
        ("train", 0, len(kept)),
        ("holdout", len(kept), len(labels)),
    )
    for split, first, end in halves:
        for number, start in enumerate(range(first, end, shard_rows)):
            pieces.append(Piece(split, number, start, min(start + shard_rows, end)))
    ordered = np.concatenate([rows[stratified(labels[rows], seed)] for rows in (kept, held)])
    places = np.empty(len(labels), np.int64)
    places[ordered] = np.arange(len(labels))
    return Plan(places, tuple(pieces))


def stratified(labels: NDArray[np.int32], seed: int) -> Rows:
    """A seeded random order (n,) in which every run of rows has each class in proportion, but for a few rows.

    The k-th row of a class of m rows gets a random key between k/m and (k+1)/m; sorting by keys interleaves the
    classes. With one class or none it is a plain permutation.
    """
    shuffled = order.permutation(seed, 0, len(labels))
    uniform = order.permutation(seed, 1, len(labels)) / max(1, len(labels))
    by_class = np.argsort(labels[shuffled], kind="stable")
    counts = np.bincount(labels)
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    keys = np.empty(len(labels))
    keys[by_class] = np.arange(len(labels)) - firsts
    keys = (keys + uniform) / counts[labels[shuffled]]
    return shuffled[np.argsort(keys, kind="stable")]


def split_rows(labels: NDArray[np.int32], holdout: float, seed: int) -> tuple[Rows, Rows]:
    """Rows kept for training and rows held out, in proportion to the classes where labels exist.

    Args:
        holdout: a fraction below 1, or a number of rows.

    Raises:
        DataError: too few rows, or too few of a class.
    """
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(labels))
    if holdout == 0:
        return everything, everything[:0]
    if holdout >= 1 and holdout != int(holdout):
        raise DataError(f"--holdout {holdout}: expected a fraction below 1 or a whole number of rows")
    classes = labels if labels.any() else None
    size = int(holdout) if holdout >= 1 else holdout
    try:
        kept, held = train_test_split(everything, test_size=size, stratify=classes, random_state=seed)
    except ValueError as error:
        raise DataError(f"cannot hold out {holdout:g} of {len(labels)} rows: {error}; change --holdout") from None
    return np.sort(kept), np.sort(held)
