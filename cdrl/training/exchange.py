"""The mean over the pieces of all replicas of a pair: what they tell each other in an update.

Exact: each replica adds up the nodes of the tree that it holds whole (`cdrl.method.tree`); each then finishes the tree
for one segment of the vector, and the segments are put together. Nothing is added on the way, so the result has the
same bits for every number of replicas, and with equal shares of a power of two the traffic is that of an all-reduce.
Otherwise one all-reduce of what each has, weighed with its share.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from cdrl.method.tree import leaves, tree_sum, whole_nodes

__all__ = ["Exchange"]


@dataclass(frozen=True)
class Exchange:
    """One replica's place among those of its pair.

    Args:
        group: their processes.
        shares: the chunks of each replica; one after the other they are the batch.
        replica: this one.
        waiting: entered with a name while others are waited for.
    """

    group: dist.ProcessGroup
    shares: list[range]
    replica: int
    waiting: Callable[[str], AbstractContextManager[object]]

    def exact(self, pieces: Iterator[Tensor]) -> Tensor:
        """The mean of all chunks (n,) from this replica's, each a piece (n,)."""
        mine, share = self._nodes[self.replica], self.shares[self.replica]
        sums = [tree_sum(node, leaves(share), pieces) for node in mine]
        size, num = len(sums[0]), len(self.shares)
        segment = -(-size // num)
        padded = [functional.pad(each, (0, segment * num - size)).view(num, segment) for each in sums]
        counts = [len(nodes) * segment for nodes in self._nodes]
        received = sums[0].new_empty(sum(counts))
        whole = sums[0].new_empty(segment * num)
        with self.waiting("the gradients of other replicas"):
            sent = torch.stack(padded, dim=1).flatten()  # (replicas, nodes, segment)
            dist.all_to_all_single(received, sent, counts, [len(mine) * segment] * num, group=self.group)
            known = [node for nodes in self._nodes for node in nodes]
            part = tree_sum(self._batch, known, iter(received.split(segment)))
            dist.all_gather_into_tensor(whole, part.div_(len(self._batch)), group=self.group)
        return whole[:size]

    def weighed(self, pieces: Iterator[Tensor]) -> Tensor:
        """The mean of all chunks (n,) from the mean of this replica's, the only piece (n,)."""
        (mean,) = pieces
        mean *= len(self.shares[self.replica]) / len(self._batch)
        with self.waiting("the gradients of other replicas"):
            dist.all_reduce(mean, group=self.group)
        return mean

    @cached_property
    def _batch(self) -> range:
        return range(self.shares[-1].stop)

    @cached_property
    def _nodes(self) -> list[list[range]]:
        """What each replica sends: the largest nodes of the tree that it holds whole."""
        return [whole_nodes(share, self._batch) for share in self.shares]
