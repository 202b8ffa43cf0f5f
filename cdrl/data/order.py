"""The order of the training data: a pure function of (seed, epoch), so that a step number alone says where a run is.

The training stream is the concatenation of epochs; position q lies in epoch q // n, and each epoch is a permutation of
the n rows. Step k with a global batch of B takes the positions k B ... k B + B - 1, however many workers share it.

A split that lies on the disk as a whole is permuted as a whole. One that is streamed is permuted in `Windows`: first
the shards, then the rows within each few shards that follow one another, so that only these need to be at hand.
"""

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Windows", "batch_flips", "batch_indices", "batch_shards", "permutation", "window_rows", "window_shards"]

Indices = NDArray[np.int64]

WORDS_PER_COUNT = 4  # of Philox4x64


class Windows(NamedTuple):
    """What the order of a streamed split depends on besides the seed.

    Attributes:
        shard_rows: rows of each shard, at least 1.
        size: shards that are mixed at a time.
    """

    shard_rows: tuple[int, ...]
    size: int


@lru_cache(maxsize=4)  # a batch may straddle two epochs
def permutation(seed: int, epoch: int, n: int) -> Indices:
    """The order of one epoch: a permutation of 0 ... n-1, int64 (n,), read-only."""
    # sorting raw Philox words is stable across numpy versions, which Generator.permutation does not promise
    return _read_only(np.argsort(_words("order", seed, epoch, 0, n), kind="stable"))


@lru_cache(maxsize=4)
def window_shards(seed: int, epoch: int, windows: Windows) -> tuple[Indices, ...]:
    """The shards of each window of one epoch: `windows.size` shard numbers each, the last one maybe fewer."""
    num_shards = len(windows.shard_rows)
    order = np.argsort(_words("shards", seed, epoch, 0, num_shards), kind="stable")
    return tuple(_read_only(order[first : first + windows.size]) for first in range(0, num_shards, windows.size))


@lru_cache(maxsize=4)
def window_rows(seed: int, epoch: int, windows: Windows, number: int) -> Indices:
    """The order within one window: the rows of its shards, int64 (rows of the window,), read-only."""
    starts = _shard_starts(windows)
    shards = window_shards(seed, epoch, windows)[number]
    rows = np.concatenate([np.arange(starts[shard], starts[shard + 1], dtype=np.int64) for shard in shards])
    return _read_only(rows[np.argsort(_words(f"window {number}", seed, epoch, 0, len(rows)), kind="stable")])


def batch_indices(seed: int, step: int, batch_size: int, n: int, windows: Windows | None = None) -> Indices:
    """Row numbers of the global batch of one step, int64 (batch_size,); it may straddle epochs.

    Args:
        step: number of the update, from 0.
        n: rows of the split, at least 1.
        windows: of a split that is streamed.
    """
    epochs, places = _positions(step, batch_size, n)
    indices = np.empty(batch_size, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
        here = epochs == epoch
        if windows is None:
            indices[here] = permutation(seed, epoch, n)[places[here]]
            continue
        starts = _window_starts(seed, epoch, windows)
        owners = np.searchsorted(starts, places, side="right") - 1
        for number in np.unique(owners[here]):
            mine = here & (owners == number)
            indices[mine] = window_rows(seed, epoch, windows, int(number))[places[mine] - starts[number]]
    return indices


def batch_flips(seed: int, step: int, batch_size: int, n: int, windows: Windows | None = None) -> NDArray[np.bool_]:
    """Which images of the `batch_indices` of the same arguments are mirrored, bool (batch_size,).

    A fair coin for each (seed, epoch, row), whatever the batch size and the order.
    """
    epochs, _ = _positions(step, batch_size, n)
    rows = batch_indices(seed, step, batch_size, n, windows)
    starts = np.array([0, n]) if windows is None else _shard_starts(windows)
    owners = np.searchsorted(starts, rows, side="right") - 1
    flips = np.empty(batch_size, np.bool_)
    for epoch in range(epochs[0], epochs[-1] + 1):
        for owner in np.unique(owners[epochs == epoch]):
            mine = (epochs == epoch) & (owners == owner)
            first, end = int(starts[owner]), int(starts[owner + 1])
            flips[mine] = _coins(seed, epoch, first, end)[rows[mine] - first]
    return flips


def batch_shards(seed: int, step: int, batch_size: int, windows: Windows) -> list[int]:
    """The shards of the windows that one step of a streamed split needs, the first needed first.

    If that is one window, the shards of the window after it follow: two are at hand, whatever the step.
    """
    n = sum(windows.shard_rows)
    epochs, places = _positions(step, batch_size, n)
    needed = []
    for epoch in range(epochs[0], epochs[-1] + 1):
        owners = np.searchsorted(_window_starts(seed, epoch, windows), places[epochs == epoch], side="right") - 1
        needed += [(epoch, number) for number in range(owners[0], owners[-1] + 1)]
    if len(needed) == 1:
        [(epoch, number)] = needed
        is_last = number + 1 == len(window_shards(seed, epoch, windows))
        needed.append((epoch + 1, 0) if is_last else (epoch, number + 1))
    shards = [int(shard) for epoch, number in needed for shard in window_shards(seed, epoch, windows)[number]]
    return list(dict.fromkeys(shards))


# of a streamed split for each shard of the batches at hand
@lru_cache(maxsize=8)
def _coins(seed: int, epoch: int, first: int, end: int) -> NDArray[np.bool_]:
    return (_words("flip", seed, epoch, first, end) >> np.uint64(63)).astype(np.bool_)


@lru_cache(maxsize=4)
def _shard_starts(windows: Windows) -> Indices:
    return np.cumsum([0, *windows.shard_rows])


@lru_cache(maxsize=4)
def _window_starts(seed: int, epoch: int, windows: Windows) -> Indices:
    rows = np.asarray(windows.shard_rows)
    return np.cumsum([0, *(rows[shards].sum() for shards in window_shards(seed, epoch, windows))])


def _positions(step: int, batch_size: int, n: int) -> tuple[Indices, Indices]:
    stream = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    return stream // n, stream % n


def _words(purpose: str, seed: int, epoch: int, first: int, end: int) -> NDArray[np.uint64]:
    """Numbers `first` ... `end - 1` of a stream of random words."""
    key = hashlib.sha256(f"{purpose}/{seed}/{epoch}".encode()).digest()[:16]
    source = np.random.Philox(key=int.from_bytes(key, "little"))
    source.advance(first // WORDS_PER_COUNT)
    return source.random_raw(end - first + first % WORDS_PER_COUNT)[first % WORDS_PER_COUNT :]


def _read_only(order: Indices) -> Indices:
    order.flags.writeable = False
    return order
