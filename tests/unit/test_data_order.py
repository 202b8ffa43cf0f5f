"""The order of the data is a pure function of (seed, epoch)."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdrl.data import order


@pytest.mark.parametrize(("batch_size", "n"), [(64, 1297), (7, 5), (10, 10), (3, 1)])
def test_every_row_occurs_once_per_epoch(batch_size: int, n: int) -> None:
    steps = -(-3 * n // batch_size)
    stream = np.concatenate([order.batch_indices(5, step, batch_size, n) for step in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_the_stream_does_not_depend_on_the_batch_size_or_the_past() -> None:
    large = order.batch_indices(5, 7, 60, 100)
    small = np.concatenate([order.batch_indices(5, step, 20, 100) for step in (21, 22, 23)])
    np.testing.assert_array_equal(large, small)
    flips = np.concatenate([order.batch_flips(5, step, 20, 100) for step in (21, 22, 23)])
    np.testing.assert_array_equal(order.batch_flips(5, 7, 60, 100), flips)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {(seed, epoch): order.permutation(seed, epoch, 1000) for seed in range(2) for epoch in range(2)}
    for one in orders:
        for other in orders:
            common = int((orders[one] == orders[other]).sum())
            assert common == 1000 if one == other else common < 10  # expected fixed points of a random pair: 1


def test_flips_are_fair_coins_that_change_between_epochs() -> None:
    n = 4000
    first, second = (order.batch_flips(5, epoch, n, n)[np.argsort(order.permutation(5, epoch, n))] for epoch in (0, 1))
    # 4 standard deviations of 4000 fair coins are 0.032
    assert abs(first.mean() - 0.5) < 0.032
    assert abs((first == second).mean() - 0.5) < 0.032


def test_the_order_of_this_version_is_frozen() -> None:
    # a run resumed under another version must see the same data
    digest = hashlib.sha256(order.permutation(5, 3, 1000).astype("<i8").tobytes()).hexdigest()
    assert digest == "efac7e77e0b9daad24fdbd354cf06fe2ff99b5eea05694eb26e9fb104af0cb1f"


def test_a_cached_order_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        order.permutation(5, 0, 10)[0] = 1


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(seed=st.integers(0, 9), shard_rows=sizes, size=st.integers(1, 13), batch_size=st.integers(1, 40))
def test_every_streamed_row_occurs_once_per_epoch(seed: int, shard_rows: list[int], size: int, batch_size: int) -> None:
    windows, n = order.Windows(tuple(shard_rows), size), sum(shard_rows)
    steps = -(-2 * n // batch_size)
    stream = np.concatenate([order.batch_indices(seed, step, batch_size, n, windows) for step in range(steps)])
    for epoch in range(2):
        rows = stream[epoch * n : (epoch + 1) * n]
        assert sorted(rows) == list(range(n))
        # window after window: rows of one never come between rows of another
        owners = np.searchsorted(np.cumsum(shard_rows), rows, side="right")
        for shards in order.window_shards(seed, epoch, windows):
            count = sum(shard_rows[shard] for shard in shards)
            assert set(owners[:count]) == set(shards.tolist())
            owners = owners[count:]


@given(
    seed=st.integers(0, 9),
    shard_rows=sizes,
    size=st.none() | st.integers(1, 13),
    first=st.integers(0, 30),
    workers=st.integers(1, 4),
    per_worker=st.integers(1, 6),
)
def test_any_split_over_workers_and_any_resume_give_the_same_stream(
    seed: int, shard_rows: list[int], size: int | None, first: int, workers: int, per_worker: int
) -> None:
    windows, n = order.Windows(tuple(shard_rows), size) if size else None, sum(shard_rows)
    batch_size = workers * per_worker
    # one run with a batch of 1, from the beginning, against one that begins at a later step
    ones = range(first * batch_size, (first + 2) * batch_size)
    rows = np.concatenate([order.batch_indices(seed, step, 1, n, windows) for step in ones])
    flips = np.concatenate([order.batch_flips(seed, step, 1, n, windows) for step in ones])
    for step in (0, 1):
        batch = slice(step * batch_size, (step + 1) * batch_size)
        np.testing.assert_array_equal(order.batch_indices(seed, first + step, batch_size, n, windows), rows[batch])
        np.testing.assert_array_equal(order.batch_flips(seed, first + step, batch_size, n, windows), flips[batch])


@given(seed=st.integers(0, 9), shard_rows=sizes, size=st.integers(1, 5), step=st.integers(0, 40))
def test_the_shards_of_a_batch_are_told_before_it_comes(seed: int, shard_rows: list[int], size: int, step: int) -> None:
    windows, n, ends = order.Windows(tuple(shard_rows), size), sum(shard_rows), np.cumsum(shard_rows)
    told = order.batch_shards(seed, step, 3, windows)
    needed = np.searchsorted(ends, order.batch_indices(seed, step, 3, n, windows), side="right")
    assert set(needed.tolist()) <= set(told) and len(told) == len(set(told))
    if min(shard_rows) >= 6:  # twice the batch: then the next batch cannot leave them
        following = np.searchsorted(ends, order.batch_indices(seed, step + 1, 3, n, windows), side="right")
        assert set(following.tolist()) <= set(told)


@given(seed=st.integers(0, 9), epoch=st.integers(0, 3), shard_rows=sizes, size=st.integers(1, 13))
def test_a_coin_belongs_to_its_row_in_either_order(seed: int, epoch: int, shard_rows: list[int], size: int) -> None:
    windows, n = order.Windows(tuple(shard_rows), size), sum(shard_rows)
    streamed, whole = np.empty(n, bool), np.empty(n, bool)
    streamed[order.batch_indices(seed, epoch, n, n, windows)] = order.batch_flips(seed, epoch, n, n, windows)
    whole[order.batch_indices(seed, epoch, n, n)] = order.batch_flips(seed, epoch, n, n)
    np.testing.assert_array_equal(streamed, whole)


def test_a_window_of_the_whole_split_is_well_mixed() -> None:
    windows = order.Windows((100,) * 10, 10)
    rows = order.batch_indices(5, 0, 1000, 1000, windows)
    # the rank correlation of an independent order has a standard deviation of 1 / sqrt(999)
    assert abs(np.corrcoef(rows, np.arange(1000))[0, 1]) < 4 / np.sqrt(999)
    assert (rows != order.batch_indices(5, 1, 1000, 1000, windows)).mean() > 0.98


def test_the_streamed_order_of_this_version_is_frozen() -> None:
    windows = order.Windows((70, 50, 30, 80, 20), 2)
    rows = order.batch_indices(5, 1, 250, 250, windows)
    flips = order.batch_flips(5, 1, 250, 250, windows)
    digest = hashlib.sha256(rows.astype("<i8").tobytes() + flips.tobytes()).hexdigest()
    assert digest == "3ce39bb62b3be29676ff0f0f2061a3c64080534f89632c485df96ca9aab8ffb7"
