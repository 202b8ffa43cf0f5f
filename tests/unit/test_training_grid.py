"""Every pair's batch is trained whole, once, by whatever number of workers fits."""

from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from cdrl.errors import ConfigError
from cdrl.training.grid import Grid

small = st.integers(1, 12)


def fits(num_pairs: int, num_chunks: int, world: int) -> bool:
    """The rule in words: whole pairs per worker, or equal replicas of each pair with equal shares of its chunks."""
    return world <= num_pairs or (world % num_pairs == 0 and num_chunks % (world // num_pairs) == 0)


@given(small, small, small)
def test_every_chunk_of_every_pair_is_covered_once(num_pairs: int, num_chunks: int, world: int) -> None:
    assume(fits(num_pairs, num_chunks, world))
    grids = [Grid(num_pairs, num_chunks, world, rank) for rank in range(world)]
    covered = Counter((pair, chunk) for grid in grids for pair in grid.pairs for chunk in grid.chunks)
    assert covered == {(pair, chunk): 1 for pair in range(num_pairs) for chunk in range(num_chunks)}
    for grid in grids:
        assert grid.pairs and len(grid.chunks) * grid.num_replicas == num_chunks
        assert 0 <= grid.replica < grid.num_replicas
        assert list(grid.chunks) == list(range(grid.chunks.start, grid.chunks.stop))  # one slice of the batch
    # no worker has two pairs more than another
    assert max(len(grid.pairs) for grid in grids) - min(len(grid.pairs) for grid in grids) <= 1


@given(small, small, small)
def test_a_pair_is_spoken_for_by_one_of_its_own_ranks(num_pairs: int, num_chunks: int, world: int) -> None:
    assume(fits(num_pairs, num_chunks, world))
    grids = [Grid(num_pairs, num_chunks, world, rank) for rank in range(world)]
    for pair in range(num_pairs):
        owners = {grid.owner(pair) for grid in grids}
        assert len(owners) == 1
        owner = grids[owners.pop()]
        assert pair in owner.pairs and owner.replica == 0


@given(small, small, small)
def test_a_world_that_does_not_fit_is_refused(num_pairs: int, num_chunks: int, world: int) -> None:
    assume(not fits(num_pairs, num_chunks, world))
    with pytest.raises(ConfigError, match=r"cluster\.num_workers: .*; use "):
        Grid(num_pairs, num_chunks, world, 0)


def test_the_refusal_says_what_fits() -> None:
    with pytest.raises(ConfigError, match="4 workers do not fit 3 pairs; use at most 3 or a multiple of it"):
        Grid(3, 4, 4)
    with pytest.raises(ConfigError, match="3 replicas cannot share training.num_chunks = 4 equal chunks; use a"):
        Grid(1, 4, 3)


def test_one_rank_needs_no_process_group() -> None:
    grid = Grid(2, 4)
    assert grid.synchroniser() is None
    assert grid.any(True) is True and grid.any(False) is False
    assert grid.sum(torch.tensor([1, 2])).tolist() == [1, 2]
    net = nn.Linear(2, 2)
    before = net.weight.detach().clone()
    grid.share([net.weight], 0)
    assert net.weight.equal(before)
