r"""A Pair is an energy net and its initializer; a PairLadder says which pair serves which level.

Levels are independent in training (x_s and x_t come from data in closed form), so one shared pair, one pair per level
and every grouping in between are the same method: an update knows one Pair and cannot tell which of them it is in.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from cdrl.errors import ConfigError
from cdrl.method.guidance import Condition
from cdrl.method.rng import Rng
from cdrl.method.schedule import Transition

__all__ = ["Pair", "PairLadder", "groups_of_levels"]


class Pair(nn.Module):
    """An energy net f and an initializer g.

    Args:
        energy: f(y, logsnr, label) -> (B,).
        initializer: g(x_t, logsnr, label, rng) -> mean of y; None starts chains at x_t itself (DRL).
        base_measure: weight of a standard normal base measure on x_s that f is relative to (0 = none, the paper).
    """

    def __init__(self, energy: nn.Module, initializer: nn.Module | None, base_measure: float = 0.0) -> None:
        super().__init__()
        self.energy, self.initializer, self.base_measure = energy, initializer, base_measure

    def propose(
        self, x_t: Tensor, transition: Transition, condition: Condition, rng: Rng, dropout: Rng | None = None
    ) -> tuple[Tensor, Tensor]:
        """The initializer's mean and its draw y_init = mean + scale * sigma_post * eps, both like x_t, with graph.

        `dropout` is the randomness of dropout masks while training; None = no dropout.
        """
        if self.initializer is None:
            return x_t, x_t
        mean = condition.mean(partial(self.initializer, rng=dropout), x_t, transition.logsnr_t)
        return mean, mean + transition.scale * transition.sigma_post * rng.normal(x_t)


class PairLadder(nn.Module):
    """level -> Pair.

    Args:
        groups: the levels of each pair; together 0 ... num_levels-1, each once.
        build: makes one fresh Pair.
    """

    def __init__(self, groups: Sequence[Sequence[int]], build: Callable[[], Pair]) -> None:
        super().__init__()
        self.groups = tuple(tuple(group) for group in groups)
        levels = sorted(level for group in self.groups for level in group)
        if levels != list(range(len(levels))) or not all(self.groups):
            raise ConfigError(f"pairs: each level must stand in exactly one group, got {self.groups}")
        self.pairs = nn.ModuleList(build() for _ in self.groups)
        self._pair_of_level = {level: number for number, group in enumerate(self.groups) for level in group}

    @property
    def num_levels(self) -> int:
        """T, the number of levels that the pairs serve together."""
        return len(self._pair_of_level)

    def __getitem__(self, level: int) -> Pair:
        """The pair that serves a level."""
        pair = self.pairs[self._pair_of_level[level]]
        assert isinstance(pair, Pair)
        return pair

    def distinct(self) -> Iterator[Pair]:
        """Each pair once."""
        for group in self.groups:
            yield self[group[0]]

    def draw_levels(self, number: int, rng: Rng, like: Tensor) -> Tensor:
        """(B,) levels, uniform over those of pair `number`; B and device are those of `like`."""
        levels = torch.tensor(self.groups[number], device=like.device)
        uniform = rng.uniform(like.new_empty(len(like), dtype=torch.float64))
        return levels[(uniform * len(levels)).long()]


def groups_of_levels(pairs: str | Sequence[Sequence[int]], num_levels: int) -> Sequence[Sequence[int]]:
    """The groups that `shared`, `per_level` or an explicit grouping stand for."""
    if pairs == "shared":
        return [range(num_levels)]
    if pairs == "per_level":
        return [[level] for level in range(num_levels)]
    assert not isinstance(pairs, str)
    return pairs
