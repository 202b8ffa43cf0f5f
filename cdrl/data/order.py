"""The order of the training data: a pure function of (seed, epoch), so that a step number alone says where a run is.

The training stream is the concatenation of epochs; position q lies in epoch q // n, and each epoch is a permutation of
the n rows. Step k with a global batch of B takes the positions k B ... k B + B - 1, however many workers share it.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["batch_flips", "batch_indices", "permutation"]

Indices = NDArray[np.int64]


@lru_cache(maxsize=16)  # a batch may straddle two epochs, and pairs of networks may have seeds of their own
def permutation(seed: int, epoch: int, n: int) -> Indices:
    """The order of one epoch: a permutation of 0 ... n-1, int64 (n,), read-only."""
    # sorting raw Philox words is stable across numpy versions, which Generator.permutation does not promise
    order = np.argsort(_words("order", seed, epoch, n), kind="stable")
    order.flags.writeable = False
    return order


def batch_indices(seed: int, step: int, batch_size: int, n: int) -> Indices:
    """Row numbers of the global batch of one step, int64 (batch_size,); it may straddle epochs.

    Args:
        step: number of the update, from 0.
        n: rows of the split, at least 1.
    """
    epochs, places = _positions(step, batch_size, n)
    indices = np.empty(batch_size, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
        here = epochs == epoch
        indices[here] = permutation(seed, epoch, n)[places[here]]
    return indices


def batch_flips(seed: int, step: int, batch_size: int, n: int) -> NDArray[np.bool_]:
    """Which images of `batch_indices(seed, step, batch_size, n)` are mirrored, bool (batch_size,).

    A fair coin for each (seed, epoch, row), whatever the batch size.
    """
    epochs, _ = _positions(step, batch_size, n)
    rows = batch_indices(seed, step, batch_size, n)
    flips = np.empty(batch_size, np.bool_)
    for epoch in range(epochs[0], epochs[-1] + 1):
        here = epochs == epoch
        flips[here] = _coins(seed, epoch, n)[rows[here]]
    return flips


@lru_cache(maxsize=16)
def _coins(seed: int, epoch: int, n: int) -> NDArray[np.bool_]:
    return (_words("flip", seed, epoch, n) >> np.uint64(63)).astype(np.bool_)


def _positions(step: int, batch_size: int, n: int) -> tuple[Indices, Indices]:
    stream = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    return stream // n, stream % n


def _words(purpose: str, seed: int, epoch: int, n: int) -> NDArray[np.uint64]:
    key = hashlib.sha256(f"{purpose}/{seed}/{epoch}".encode()).digest()[:16]
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(n)
