"""The plan: a permutation, seeded, in which every run of rows is a fair sample of the classes."""

import numpy as np
import pytest

from cdrl.data import order
from cdrl.data.plan import make_plan, stratified


@pytest.mark.parametrize("counts", [[0, 500, 500, 500], [300, 40, 3, 900], [0, 1, 2000]])
def test_every_window_has_the_classes_in_proportion(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)  # class after class, as folders give them
    found = labels[stratified(labels, seed=3)]
    shares = np.array(counts) / len(labels)
    for width in (10, 64, 500):
        for start in range(0, len(labels) - width, 17):
            window = np.bincount(found[start : start + width], minlength=len(counts))
            # each class lies on a jittered grid: an interval of L cells holds between L-2 and L+2 of its rows
            assert (np.abs(window - width * shares) <= 2 + 2 * len(counts) * shares).all()


def test_the_order_is_a_seeded_permutation() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 999).astype(np.int32)
    first, again, other = (stratified(labels, seed) for seed in (0, 0, 1))
    assert sorted(first) == list(range(999)) and (first == again).all() and (first != other).any()
    # neither class after class nor a fixed cycle of classes
    assert len(set(map(tuple, labels[first][:995].reshape(-1, 5)))) > 50


def test_without_labels_it_is_the_order_of_an_epoch() -> None:
    assert (stratified(np.zeros(100, np.int32), 7) == order.permutation(7, 0, 100)).all()
    assert len(stratified(np.zeros(0, np.int32), 7)) == 0


def test_every_row_has_one_place_and_every_place_one_shard() -> None:
    labels = np.repeat([1, 2], 50).astype(np.int32)
    held = np.arange(0, 100, 9)
    kept = np.setdiff1d(np.arange(100), held)
    plan = make_plan(labels, kept, held, seed=0, shard_rows=30)
    assert sorted(plan.places) == list(range(100))
    assert set(plan.places[held]) == set(range(len(kept), 100))
    assert [(piece.split, piece.number, piece.start, piece.stop) for piece in plan.pieces] == [
        ("train", 0, 0, 30), ("train", 1, 30, 60), ("train", 2, 60, 88), ("holdout", 0, 88, 100)
    ]  # fmt: skip
    assert list(plan.cuts(np.array([5, 29, 30, 88, 99]))) == [0, 2, 3, 3, 5]
