"""The pair grid: which rank trains which pair, and which part of its batch (ARCHITECTURE section 5).

Fewer workers than pairs: each takes several pairs whole. More: every pair gets equally many replicas, which share its
batch and average gradients among themselves; ranks of different pairs exchange nothing in a step.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cdrl.errors import ConfigError
from cdrl.method.cooperative import Synchronise

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """The place of one rank.

    Args:
        num_pairs: pairs of the ladder.
        num_chunks: equal pieces of a pair's batch.
        world: ranks.
        rank: this one.

    Raises:
        ConfigError: more workers than pairs, but not a multiple, or replicas that do not divide the chunks.
    """

    num_pairs: int
    num_chunks: int
    world: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.world > self.num_pairs and self.world % self.num_pairs:
            raise ConfigError(
                f"cluster.num_workers: {self.world} workers do not fit {self.num_pairs} pairs; "
                f"use at most {self.num_pairs} or a multiple of it"
            )
        if self.num_chunks % self.num_replicas:
            raise ConfigError(
                f"cluster.num_workers: {self.num_replicas} replicas cannot share training.num_chunks = "
                f"{self.num_chunks} equal chunks; use a divisor of it"
            )

    @property
    def num_replicas(self) -> int:
        """Ranks that share one pair."""
        return max(1, self.world // self.num_pairs)

    @property
    def replica(self) -> int:
        """Which of a pair's replicas this rank is."""
        return self.rank // self.num_pairs if self.world > self.num_pairs else 0

    @property
    def pairs(self) -> list[int]:
        """The pairs that this rank trains."""
        if self.world > self.num_pairs:
            return [self.rank % self.num_pairs]
        return list(range(self.rank, self.num_pairs, self.world))

    @property
    def chunks(self) -> range:
        """The chunks of a pair's batch that this rank takes."""
        share = self.num_chunks // self.num_replicas
        return range(self.replica * share, (self.replica + 1) * share)

    def owner(self, pair: int) -> int:
        """The rank that speaks for a pair: its first replica."""
        return pair if self.world > self.num_pairs else pair % self.world

    def prefix(self, pair: int) -> str:
        """What the metrics of a pair are named with: nothing where it is the only one."""
        return f"pair_{pair}/" if self.num_pairs > 1 else ""

    def synchroniser(self) -> Synchronise | None:
        """The gradient average over this rank's replicas, as one flat all-reduce; None where there is one replica.

        A collective: every rank must call it equally often, since process groups are made here.
        """
        if self.num_replicas == 1:
            return None
        groups = [dist.new_group(list(range(pair, self.world, self.num_pairs))) for pair in range(self.num_pairs)]
        group = groups[self.pairs[0]]
        assert isinstance(group, dist.ProcessGroup)  # this rank is in it

        def average(parameters: Iterable[nn.Parameter]) -> None:
            gradients = []
            for parameter in parameters:
                if parameter.grad is None:  # every rank contributes the same layout
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, group=group)
            flat /= self.num_replicas
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

        return average

    def share(self, tensors: list[Tensor], pair: int) -> None:
        """Give every rank the owner's tensors, in place. A collective."""
        if self.world == 1:
            return
        for tensor in tensors:
            dist.broadcast(tensor, src=self.owner(pair))

    def any(self, flag: bool) -> bool:
        """Whether any rank says so. A collective."""
        if self.world == 1:
            return flag
        vote = torch.tensor([float(flag)], device=_collective_device())
        dist.all_reduce(vote, op=dist.ReduceOp.MAX)
        return bool(vote.item())

    def sum(self, table: Tensor) -> Tensor:
        """The element-wise sum over all ranks. A collective."""
        if self.world > 1:
            table = table.to(_collective_device())
            dist.all_reduce(table)
        return table.cpu()


def _collective_device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
