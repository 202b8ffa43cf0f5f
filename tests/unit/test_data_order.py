"""The order of the data is a pure function of (seed, epoch)."""

import hashlib

import numpy as np
import pytest

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
