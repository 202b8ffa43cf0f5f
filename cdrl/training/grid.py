"""The pair grid: which rank trains which pair, and which part of its batch (ARCHITECTURE section 5).

Fewer workers than pairs: each takes several pairs whole, in balance by their cost. More: every further worker joins
the pair that costs most per replica; replicas share its chunks and average gradients among themselves. Ranks of
different pairs exchange nothing in an update.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.method.cooperative import Synchronise
from cdrl.training.exchange import Exchange

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """The place of one rank.

    Args:
        num_pairs: pairs of the ladder.
        num_chunks: equal pieces of a pair's batch.
        world: ranks.
        rank: this one.
        trained: numbers of the pairs that are trained; default: all.
        costs: of an update of each of these, in any unit; default: equal. The same on every rank.
        waiting: entered with a name while this rank waits for others.

    Raises:
        ConfigError: there are more workers than chunks of all trained pairs.
    """

    num_pairs: int
    num_chunks: int
    world: int = 1
    rank: int = 0
    trained: Sequence[int] | None = None
    costs: Sequence[float] | None = None
    waiting: Callable[[str], AbstractContextManager[object]] = nullcontext

    def __post_init__(self) -> None:
        num_trained = len(self._costs)
        if not 1 <= self.world <= num_trained * self.num_chunks:
            raise ConfigError(
                f"cluster.num_workers: expected 1 ... {num_trained * self.num_chunks} ({num_trained} trained pairs x "
                f"training.num_chunks = {self.num_chunks}), got {self.world}; a worker needs a chunk to work on"
            )

    @cached_property
    def ranks(self) -> dict[int, list[int]]:
        """The ranks of each trained pair, by replica."""
        return _deal(self._costs, self.world, self.num_chunks)

    @cached_property
    def pairs(self) -> list[int]:
        """The pairs that this rank trains."""
        return [pair for pair, ranks in self.ranks.items() if self.rank in ranks]

    @cached_property
    def chunks(self) -> range:
        """The chunks of a pair's batch that this rank takes."""
        ranks = self.ranks[self.pairs[0]]
        return self._shares(ranks)[ranks.index(self.rank)]

    def owner(self, pair: int) -> int:
        """The rank that speaks for a pair: its first replica, or rank 0 where nobody trains it."""
        return self.ranks.get(pair, [0])[0]

    def prefix(self, pair: int) -> str:
        """What the metrics of a pair are named with: nothing where it is the only one."""
        return f"pair_{pair}/" if self.num_pairs > 1 else ""

    def synchroniser(self, *, exact: bool) -> Synchronise | None:
        """The mean over the replicas of this rank's pair; None where it is the only one.

        A collective: every rank must call it equally often, since process groups are made here.

        Args:
            exact: updates are chunkwise, and the sum shall have the same bits for every world.
        """
        shared = {pair: ranks for pair, ranks in self.ranks.items() if len(ranks) > 1}
        if not shared:
            return None
        with self.waiting("the start of all ranks"):
            groups = {pair: dist.new_group(ranks) for pair, ranks in shared.items()}
        pair = self.pairs[0]
        if pair not in groups:
            return None
        group, ranks = groups[pair], self.ranks[pair]
        assert isinstance(group, dist.ProcessGroup)  # this rank is in it
        exchange = Exchange(group, self._shares(ranks), ranks.index(self.rank), self.waiting)
        return exchange.exact if exact else exchange.weighed

    def share(self, tensors: list[Tensor], pair: int) -> None:
        """Give every rank the owner's tensors, in place. A collective."""
        if self.world == 1:
            return
        with self.waiting(f"pair {pair}"):
            for tensor in tensors:
                dist.broadcast(tensor, src=self.owner(pair))

    def any(self, flag: bool) -> bool:
        """Whether any rank says so. A collective."""
        return bool(self.sum(torch.tensor([float(flag)])).item())

    def sum(self, table: Tensor) -> Tensor:
        """The element-wise sum over all ranks. A collective."""
        return self.begin_sum(table)()

    def begin_sum(self, table: Tensor) -> Callable[[], Tensor]:
        """Begin a sum; the call that is returned waits for it. Both are collectives."""
        if self.world == 1:
            return table.cpu
        table = table.to("cuda" if dist.get_backend() == "nccl" else "cpu", copy=True)
        work = dist.all_reduce(table, async_op=True)
        assert work is not None  # it is asynchronous

        def finish() -> Tensor:
            with self.waiting("a sum over all ranks"):
                work.wait()
            return table.cpu()

        return finish

    def _shares(self, ranks: list[int]) -> list[range]:
        """The chunks of each replica: contiguous, as even as they can be, in order."""
        share, more = divmod(self.num_chunks, len(ranks))
        ends = [share * number + min(number, more) for number in range(len(ranks) + 1)]
        return [range(start, stop) for start, stop in zip(ends, ends[1:], strict=False)]

    @property
    def _costs(self) -> dict[int, float]:
        trained = range(self.num_pairs) if self.trained is None else self.trained
        return dict(zip(trained, self.costs or [1.0] * len(trained), strict=True))


def _deal(costs: dict[int, float], world: int, num_chunks: int) -> dict[int, list[int]]:
    """The ranks of each pair; ties go to the lowest number."""
    if world <= len(costs):
        load = [0.0] * world
        rank_of = {}
        for pair in sorted(costs, key=lambda pair: (-costs[pair], pair)):  # longest processing time first
            rank_of[pair] = min(range(world), key=lambda rank: (load[rank], rank))
            load[rank_of[pair]] += costs[pair]
        return {pair: [rank_of[pair]] for pair in costs}
    ranks = {pair: [rank] for rank, pair in enumerate(costs)}
    for rank in range(len(costs), world):
        room = [pair for pair in costs if len(ranks[pair]) < num_chunks]
        ranks[max(room, key=lambda pair: (costs[pair] / len(ranks[pair]), -pair))].append(rank)
    return ranks
