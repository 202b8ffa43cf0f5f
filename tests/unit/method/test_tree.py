"""The order of a sum is that of the whole, whoever adds."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from cdrl.method.tree import leaves, tree_sum, whole_nodes


def terms(count: int) -> list[torch.Tensor]:
    """Numbers whose sum depends on its order in the last bits."""
    generator = torch.Generator().manual_seed(count)
    return list(torch.randn(count, 50, generator=generator) * 10.0 ** torch.randint(-6, 7, (count, 1)))


def straight(values: list[torch.Tensor]) -> torch.Tensor:
    """Neighbours in pairs, then these, and so on; whoever has no neighbour goes on alone."""
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=False)
        values = [a + b for a, b in pairs] + (values[-1:] if len(values) % 2 else [])
    return values[0]


@st.composite
def divisions(draw: st.DrawFn) -> list[range]:
    """Contiguous shares of 1 ... 40 terms, one for each replica."""
    count = draw(st.integers(1, 40))
    cuts = sorted(draw(st.sets(st.integers(1, count), max_size=6)) | {0, count})
    return [range(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]


@given(divisions())
def test_any_division_gives_the_same_bits(parts: list[range]) -> None:
    whole = range(parts[-1].stop)
    values = terms(len(whole))
    expected = straight(values)
    sums, known = [], []
    for part in parts:
        mine = iter([values[term].clone() for term in part])
        nodes = whole_nodes(part, whole)
        assert [term for node in nodes for term in node] == list(part)
        sums += [tree_sum(node, leaves(part), mine) for node in nodes]
        known += nodes
    assert tree_sum(whole, known, iter(sums)).equal(expected)


def test_equal_shares_of_a_power_of_two_are_one_node_each() -> None:
    shares = [range(i, i + 4) for i in (0, 4, 8, 12)]
    assert [whole_nodes(share, range(16)) for share in shares] == [[share] for share in shares]
    assert whole_nodes(range(1, 7), range(7)) == [range(1, 2), range(2, 4), range(4, 7)]  # of seven, 4 ... 6 is a node


def test_few_terms_are_alive_at_a_time() -> None:
    alive, most = 0, 0

    class Term:
        """Counts itself, and what it is added to goes on."""

        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def add_(self, other: "Term") -> "Term":
            nonlocal alive
            alive -= 1
            return self

    tree_sum(range(64), leaves(range(64)), (Term() for _ in range(64)))
    assert alive == 1 and most == 7
