"""Every pair's batch is trained whole, once, by any number of workers, in balance."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cdrl.errors import ConfigError
from cdrl.training.grid import Grid

small = st.integers(1, 8)


@st.composite
def worlds(draw: st.DrawFn) -> list[Grid]:
    """All ranks of some world that fits, with or without costs, for all pairs or some."""
    num_pairs, num_chunks = draw(small), draw(small)
    trained = sorted(draw(st.sets(st.integers(0, num_pairs - 1), min_size=1))) if draw(st.booleans()) else None
    count = num_pairs if trained is None else len(trained)
    cost = st.floats(0.1, 100)
    costs = draw(st.lists(cost, min_size=count, max_size=count)) if draw(st.booleans()) else None
    world = draw(st.integers(1, count * num_chunks))
    return [Grid(num_pairs, num_chunks, world, rank, trained, costs) for rank in range(world)]


@given(worlds())
def test_every_chunk_of_every_trained_pair_is_covered_once(grids: list[Grid]) -> None:
    covered = Counter((pair, chunk) for grid in grids for pair in grid.pairs for chunk in grid.chunks)
    trained = range(grids[0].num_pairs) if grids[0].trained is None else grids[0].trained
    assert covered == {(pair, chunk): 1 for pair in trained for chunk in range(grids[0].num_chunks)}
    for grid in grids:
        assert grid.pairs and grid.chunks.step == 1  # one slice of the batch
        assert grid.ranks == grids[0].ranks


@given(worlds())
def test_a_pair_is_spoken_for_by_its_first_replica(grids: list[Grid]) -> None:
    for pair in range(grids[0].num_pairs):
        (owner,) = {grid.owner(pair) for grid in grids}
        if pair in grids[0].ranks:
            assert pair in grids[owner].pairs and grids[owner].chunks.start == 0
        else:
            assert owner == 0


@given(worlds())
def test_work_is_balanced(grids: list[Grid]) -> None:
    """No worker has more than the greedy bounds allow: of whole pairs one beyond the mean; of chunks one beyond."""
    first = grids[0]
    costs = dict(zip(first.ranks, first.costs or [1.0] * len(first.ranks), strict=True))
    load = [sum(costs[pair] for pair in grid.pairs) for grid in grids]
    if first.world <= len(costs):
        assert max(load) <= sum(load) / first.world + max(costs.values()) + 1e-9
        assert max(load) - min(load) <= max(costs.values()) + 1e-9
        return
    for pair, ranks in first.ranks.items():
        shares = [len(grids[rank].chunks) for rank in ranks]
        assert shares == sorted(shares, reverse=True) and shares[0] - shares[-1] <= 1
        if len(ranks) > 1:  # when its last replica came, no pair with room cost more for each
            then = costs[pair] / (len(ranks) - 1)
            rest = [other for other in costs if len(first.ranks[other]) < first.num_chunks]
            assert all(costs[other] / len(first.ranks[other]) <= then + 1e-9 for other in rest)


def test_equal_costs_are_dealt_in_turn() -> None:
    assert [Grid(6, 4, 4, rank).pairs for rank in range(4)] == [[0, 4], [1, 5], [2], [3]]
    assert Grid(3, 4, 6).ranks == {0: [0, 3], 1: [1, 4], 2: [2, 5]}
    assert [Grid(1, 4, 3, rank).chunks for rank in range(3)] == [range(0, 2), range(2, 3), range(3, 4)]


def test_costs_decide() -> None:
    assert [Grid(4, 1, 2, rank, costs=[5, 1, 2, 3]).pairs for rank in range(2)] == [[0, 1], [2, 3]]
    assert Grid(2, 4, 5, costs=[1, 4]).ranks == {0: [0], 1: [1, 2, 3, 4]}
    assert Grid(6, 4, 3, 2, trained=[3]).ranks == {3: [0, 1, 2]}
    assert Grid(6, 4, 3, trained=[3]).prefix(3) == "pair_3/" and Grid(1, 4).prefix(0) == ""


@pytest.mark.parametrize("world", [0, 13])
def test_a_world_that_does_not_fit_is_refused(world: int) -> None:
    told = rf"cluster\.num_workers: expected 1 \.\.\. 12 \(3 trained pairs x training\.num_chunks = 4\), got {world};"
    with pytest.raises(ConfigError, match=told):
        Grid(3, 4, world)
    assert Grid(3, 4, 12, 11).chunks == range(3, 4)


def test_one_rank_needs_no_process_group() -> None:
    grid = Grid(2, 4)
    assert grid.synchroniser(exact=True) is None
    assert grid.any(True) is True and grid.any(False) is False
    assert grid.sum(torch.tensor([1, 2])).tolist() == [1, 2]
    net = nn.Linear(2, 2)
    before = net.weight.detach().clone()
    grid.share([net.weight], 0)
    assert net.weight.equal(before)
