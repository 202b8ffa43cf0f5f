r"""A sum in a fixed order: the same bits, however its terms are spread over replicas.

The terms 0 ... n-1 are the leaves of a binary tree; a node is the range of its leaves, and splits at the largest power
of two below its length. A replica adds up the nodes that it holds whole; whoever knows the nodes of all replicas
finishes the tree. No addition depends on who made it.
"""

from collections.abc import Container, Iterator

from torch import Tensor

__all__ = ["leaves", "tree_sum", "whole_nodes"]


def leaves(part: range) -> list[range]:
    """The nodes of single terms."""
    return [range(term, term + 1) for term in part]


def whole_nodes(part: range, node: range) -> list[range]:
    """The largest nodes at or below `node` that lie inside `part`, in order."""
    inside = range(max(part.start, node.start), min(part.stop, node.stop))
    if inside == node:
        return [node]
    return [found for half in _halves(node) for found in whole_nodes(part, half)] if inside else []


def tree_sum(node: range, known: Container[range], values: Iterator[Tensor]) -> Tensor:
    """The sum of a node from the values of known nodes below it, which come in order and are given up to it.

    Values are asked for one by one, so that with lazy ones no more than one partial sum per level is alive.
    """
    if node in known:
        return next(values)
    left, right = (tree_sum(half, known, values) for half in _halves(node))
    return left.add_(right)


def _halves(node: range) -> tuple[range, range]:
    middle = 1 << ((len(node) - 1).bit_length() - 1)
    return node[:middle], node[middle:]
