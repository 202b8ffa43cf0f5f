"""The bar of the normalizer: 64 dimensions, components six standard deviations apart, 0.1 nats."""

from functools import partial

import pytest

from cdrl.method.hmc import value_and_score
from tests.annealing_parts import LOG_Z, Scaled, assert_brackets, both_ways, drawn, mixture, moments

pytestmark = pytest.mark.integration


def test_a_64_dimensional_mixture_is_bracketed_within_a_tenth_of_a_nat() -> None:
    exact = mixture(64, 5, 0.4)
    density = partial(value_and_score, Scaled(exact))
    pair = both_ways(density, moments(exact), drawn(exact, 1000), 400, 2)
    assert max(one.standard_error for one in pair) < 0.03
    assert_brackets(pair, LOG_Z, 0.1)
