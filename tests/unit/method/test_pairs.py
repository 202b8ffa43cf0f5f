"""Which pair serves which level, and what a pair proposes."""

import pytest
import torch
from torch import nn

from cdrl.errors import ConfigError
from cdrl.method.guidance import Condition
from cdrl.method.pairs import Pair, PairLadder, groups_of_levels
from cdrl.method.rng import Rng
from cdrl.method.schedule import Schedule, cosine
from tests.unit.method.gaussians import Linear, mean_within, variance_within


def build() -> Pair:
    return Pair(nn.Linear(2, 1), None)


def test_groups_by_name() -> None:
    assert [list(group) for group in groups_of_levels("shared", 3)] == [[0, 1, 2]]
    assert groups_of_levels("per_level", 3) == [[0], [1], [2]]
    assert groups_of_levels([[0, 2], [1]], 3) == [[0, 2], [1]]


def test_each_level_has_its_pair() -> None:
    ladder = PairLadder([[3, 0], [1], [2, 4]], build)
    assert ladder.num_levels == 5 and len(ladder.pairs) == 3
    assert [list(ladder.pairs).index(ladder[level]) for level in range(5)] == [0, 1, 2, 0, 2]
    with pytest.raises(KeyError):
        ladder[5]
    shared = PairLadder(groups_of_levels("shared", 5), build)
    assert len({id(shared[level]) for level in range(5)}) == 1
    weights = [pair.energy.weight for pair in PairLadder(groups_of_levels("per_level", 3), build).pairs]
    assert not weights[0].equal(weights[1]) and not weights[1].equal(weights[2])


@pytest.mark.parametrize("groups", [[[0], [2]], [[0, 1], [1]], [[1, 2]], [[0], [], [1]], [[0, 0]], [[-1, 0]]])
def test_groups_that_are_no_partition_are_refused(groups: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="each level must stand in exactly one group"):
        PairLadder(groups, build)


def test_drawn_levels_are_uniform_over_the_pairs_own() -> None:
    ladder = PairLadder([[1, 4, 5], [0], [2, 3]], build)
    levels = ladder.draw_levels(0, Rng(0, chunks=range(4)), torch.empty(6_000, 1))
    assert levels.shape == (6_000,) and levels.dtype == torch.long
    assert set(levels.tolist()) == {1, 4, 5}
    shares = torch.bincount(levels)[[1, 4, 5]] / 6_000
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), rtol=0, atol=0.03)
    assert ladder.draw_levels(1, Rng(0), torch.empty(5)).tolist() == [0] * 5
    halves = [ladder.draw_levels(0, Rng(0, chunks=chunks), torch.empty(3_000)) for chunks in ((0, 1), (2, 3))]
    assert torch.cat(halves).equal(levels)


@pytest.mark.parametrize("level", [0, 3, 5])
def test_a_proposal_is_normal_around_the_initializers_mean(level: int) -> None:
    x_t = torch.full((20_000, 1), 0.5, dtype=torch.float64)
    tr = Schedule(cosine(6), 4e-4).transition(level, x_t)
    pair = Pair(nn.Identity(), Linear(0.8))
    mean, y_init = pair.propose(x_t, tr, Condition(), Rng(level))
    assert mean.requires_grad and y_init.requires_grad
    torch.testing.assert_close(mean.detach(), 0.8 * x_t)
    assert mean_within(y_init.detach(), 0.4)
    assert variance_within(y_init.detach(), (tr.scale[0] * tr.sigma_post[0]).item() ** 2)


def test_without_initializer_a_chain_starts_at_x_t() -> None:
    x_t = torch.randn(3, 1)
    tr = Schedule(cosine(2), 4e-4).transition(0, x_t)
    mean, y_init = build().propose(x_t, tr, Condition(), Rng(0))
    assert mean.equal(x_t) and y_init.equal(x_t)
