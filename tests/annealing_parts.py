"""Densities whose normalizer is known, annealed both ways."""

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from cdrl.method.hmc import Density
from cdrl.method.likelihood import Gaussian, LogZ, ais, plan
from cdrl.method.rng import Rng

LOG_Z = 17.3


class Scaled:
    """A normalized distribution times e^17.3."""

    def __init__(self, exact: torch.distributions.Distribution) -> None:
        self.exact = exact

    def log_prob(self, y: Tensor) -> Tensor:
        return self.exact.log_prob(y) + LOG_Z


def mixture(num_dims: int, num_parts: int, spread: float) -> MixtureSameFamily:
    """Components of unlike weights, means and variances; in 64 dimensions they do not overlap."""
    rng = Rng(0, "mixture", num_dims)
    like = torch.empty(num_parts, num_dims, dtype=torch.float64)
    parts = Independent(Normal(spread * rng.normal(like), 0.7 * torch.exp(0.4 * rng.normal(like))), 1)
    weights = torch.arange(1.0, num_parts + 1, dtype=torch.float64)
    return MixtureSameFamily(Categorical(weights / weights.sum()), parts, validate_args=False)


def moments(exact: MixtureSameFamily) -> Gaussian:
    """The Gaussian with the mixture's mean and covariance."""
    weights, means = exact.mixture_distribution.probs, exact.component_distribution.mean
    away = means - weights @ means
    covariance = torch.einsum("k,ki,kj->ij", weights, away, away)
    return Gaussian.of(weights @ means, covariance + torch.diag(weights @ exact.component_distribution.variance))


def isotropic(num_dims: int, variance: float) -> Gaussian:
    return Gaussian.of(torch.zeros(num_dims, dtype=torch.float64), variance * torch.eye(num_dims, dtype=torch.float64))


def both_ways(
    density: Density, start: Gaussian, exact: Tensor, num_temperatures: int, num_leapfrog: int = 1
) -> tuple[LogZ, LogZ]:
    """Forward from the Gaussian, backward from exact draws (B, D)."""
    density, like = start.whitened(density), torch.empty(exact.shape, dtype=exact.dtype)
    path = plan(density, like, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog, rng=Rng(0, "pilot"))
    forward = ais(density, Rng(0, "start").normal(like), path, rng=Rng(0, "forward"))
    return forward, ais(density, start.whiten(exact), path, rng=Rng(0, "backward"), backward=True)


def assert_brackets(pair: tuple[LogZ, LogZ], exact: float, within: float) -> None:
    """Both estimates agree with the truth; the chains' mean log weights lie on its two sides."""
    forward, backward = pair
    for one in pair:
        assert abs(one.nats - exact) < min(within, 4.5 * one.standard_error), (one.nats - exact, one.standard_error)
    assert forward.work.sum(dim=0).mean() < exact < backward.work.sum(dim=0).mean()


def drawn(exact: torch.distributions.Distribution, num_chains: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return exact.sample((num_chains,))
